"""A past that is given: first frames of the video that are not made but encoded and remembered, or held to.

Axes: C channels, F frames, H and W height and width, h and w those of latents.
"""

from dataclasses import dataclass

import torch

from . import geometry, request_checks

PIXELS, LATENTS = ("image", "video"), ("image_latents", "video_latents")
RESIZES = (None, "crop")


@dataclass(frozen=True, eq=False)
class GivenPast:
    """What a call is given to begin with. Its latents are whole chunks, or the first latent frame alone."""

    name: str  # of the argument
    frames: torch.Tensor | None  # (F, 3, H, W) uint8 or floats in [0, 1], to be encoded
    latents: torch.Tensor | None  # (1, C, F, h, w), if these were given instead
    own_size: tuple[int, int]  # pixels, height and width
    num_latents: int  # latent frames

    @classmethod
    def of(
        cls, name: str, given: object, resize: str | None, units: "geometry.VideoGeometry", num_channels: int
    ) -> "GivenPast":
        """The past of latents, or of frames (F, 3, H, W), found to be of a length and a size that fit the models.

        Args:
            resize: of the call; frames to be resized may have any size.

        Raises:
            TypeError, ValueError: it is not; the message says what is.
        """
        if name in LATENTS:
            cls._check_latents(name, given, units, num_channels)
            *_, num_latents, height, width = given.shape
            frames, own_size = None, (height * units.spatial_factor, width * units.spatial_factor)
        else:
            frames, own_size = given, tuple(given.shape[-2:])
            if name == "video":
                advice = "Cut it to {nearest}."
                units.check_num_frames(len(given), name, advice)
            num_latents, given = units.num_latent_frames(len(given)), None
        if resize is None:
            cls._check_own_size(name, own_size, units)
        return cls(name, frames, given, own_size, num_latents)

    @staticmethod
    def _check_latents(name: str, given: object, units: "geometry.VideoGeometry", num_channels: int) -> None:
        request_checks.check_float_tensor(name, given)
        shape, wanted = tuple(given.shape), f"(1, {num_channels}, {'1' if name == 'image_latents' else 'F'}, h, w)"
        if len(shape) != 5 or shape[0] != 1 or 0 in shape or (name == "image_latents" and shape[2] != 1):
            raise ValueError(f"`{name}` has shape {shape}; it must be {wanted}.")
        if shape[1] != num_channels:
            raise ValueError(
                f"`{name}` has {shape[1]} channels, and this model's latents have {num_channels}: it is of another "
                f"model. It must be {wanted}."
            )
        request_checks.check_finite(name, given)
        if name == "video_latents":
            first, more = units.first_chunk_frames, shape[2] - units.first_chunk_frames
            if more < 0 or more % units.chunk_frames:
                lower = first + max(more // units.chunk_frames, 0) * units.chunk_frames
                nearest = f"{lower}" if more < 0 else f"{lower} or {lower + units.chunk_frames}"
                chunks = f"{first} and then chunks of {units.chunk_frames}"
                raise ValueError(f"`{name}` has {shape[2]} latent frames; it must have {chunks}. Use {nearest}.")

    @staticmethod
    def _check_own_size(name: str, own_size: tuple[int, int], units: "geometry.VideoGeometry") -> None:
        if not units.fits(*own_size):
            height, width = units.nearest_size(*own_size)
            advice = f"Give one of {width}x{height}"
            advice += ', or let it be scaled and cut with `resize="crop"`.' if name in PIXELS else "."
            raise ValueError(
                f"`{name}` is of {own_size[1]}x{own_size[0]} pixels; a width must be a multiple of "
                f"{units.column_factor} and a height of {units.row_factor}. {advice}"
            )

    def num_chunks(self, units: "geometry.VideoGeometry") -> int:
        """Whole chunks of it; 0 when it is but the first latent frame of a chunk that is made."""
        if self.num_latents < units.first_chunk_frames:
            return 0
        return (self.num_latents - units.first_chunk_frames) // units.chunk_frames + 1

    def size(
        self,
        height: int | None,
        width: int | None,
        defaults: tuple[int, int],
        resize: str | None,
        units: "geometry.VideoGeometry",
    ) -> tuple[int, int]:
        """Height and width of the video: those of the call, else its own, else, where these do not fit, `defaults`.

        Raises:
            ValueError: they are not its own, and it is not to be resized.
        """
        own = self.own_size if units.fits(*self.own_size) else defaults
        size = (own[0] if height is None else height, own[1] if width is None else width)
        if resize is None and size != self.own_size:
            advice = ', or let it be scaled and cut with `resize="crop"`' if self.name in PIXELS else ""
            raise ValueError(
                f"`{self.name}` is of {self.own_size[1]}x{self.own_size[0]} pixels, and the video of "
                f"{size[1]}x{size[0]}. Leave out `height` and `width`, give one of that size{advice}."
            )
        return size

    def check_rest(self, num_chunks: int, units: "geometry.VideoGeometry") -> None:
        """Checks that something of the video is left to be made.

        Raises:
            ValueError: nothing is.
        """
        given = self.num_chunks(units)
        if given >= num_chunks:
            has, asked, least = (units.num_frames(chunks) for chunks in (given, num_chunks, given + 1))
            raise ValueError(
                f"`{self.name}` has {has} frames, and `num_frames`, {asked}, counts them: nothing is left to be made. "
                f"Use `num_frames={least}` or more."
            )
