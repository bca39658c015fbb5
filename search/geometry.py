"""Which videos fit a model: chunks, window, sizes in pixels, the end of the rotary table; and checks of numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class VideoGeometry:
    """The units in which a pipeline makes video. A check raises ValueError and names the nearest allowed values."""

    first_chunk_frames: int  # latent frames of a video's first chunk
    chunk_frames: int  # and of every later one
    window_frames: int  # latent frames of context, the first sink and the current chunk included
    temporal_factor: int  # pixel frames per latent frame, but for the first
    spatial_factor: int  # pixels per latent, in height and in width
    row_factor: int  # pixels per token, downwards
    column_factor: int  # and across
    longest_frames: int  # latent frames for which there are absolute positions

    @classmethod
    def of(
        cls,
        chunk_frames: int,
        first_chunk_frames: int | None,
        window_frames: int,
        transformer: Mapping[str, object] | None,
        vae: Mapping[str, object] | None,
    ) -> "VideoGeometry":
        """The geometry of a window and two models' configs; without a model, that of Wan 2.1.

        Args:
            first_chunk_frames: None: as every chunk.
        """
        spatial_factor = 8 if vae is None else vae["scale_factor_spatial"]
        _, patch_height, patch_width = (1, 2, 2) if transformer is None else transformer["patch_size"]
        return cls(
            first_chunk_frames=chunk_frames if first_chunk_frames is None else first_chunk_frames,
            chunk_frames=chunk_frames,
            window_frames=window_frames,
            temporal_factor=4 if vae is None else vae["scale_factor_temporal"],
            spatial_factor=spatial_factor,
            row_factor=spatial_factor * patch_height,
            column_factor=spatial_factor * patch_width,
            longest_frames=1024 if transformer is None else transformer["rope_max_seq_len"],
        )

    def chunk_shape(self, num_channels: int, height: int, width: int) -> tuple[int, int, int, int]:
        """C, F, h and w of the latents of one chunk, but for the first."""
        return num_channels, self.chunk_frames, height // self.spatial_factor, width // self.spatial_factor

    def num_latent_frames(self, num_frames: int) -> int:
        return (num_frames - 1) // self.temporal_factor + 1

    def num_chunks(self, num_frames: int) -> int:
        return (self.num_latent_frames(num_frames) - self.first_chunk_frames) // self.chunk_frames + 1

    def num_frames(self, num_chunks: int) -> int:
        """Pixel frames of a video of so many chunks."""
        num_latents = self.first_chunk_frames + (num_chunks - 1) * self.chunk_frames
        return self.temporal_factor * (num_latents - 1) + 1

    @property
    def pixel_frames(self) -> tuple[int, int]:
        """Pixel frames of the first chunk and of a later one."""
        return self.num_frames(1), self.temporal_factor * self.chunk_frames

    def filled_sink_frames(self, sink_frames: int) -> int:
        """Latent frames of the first whole chunks that hold `sink_frames`."""
        if sink_frames == 0:
            return 0
        num_more = max(sink_frames - self.first_chunk_frames, 0)
        return self.first_chunk_frames + math.ceil(num_more / self.chunk_frames) * self.chunk_frames

    def first_frame(self, chunk_index: int) -> int:
        """The pixel frame at which a chunk begins."""
        return self.num_frames(chunk_index) if chunk_index else 0

    def chunk_at(self, frame: int) -> int:
        """The first chunk that begins at or after a pixel frame."""
        second, third = self.first_frame(1), self.first_frame(2)
        return 0 if frame == 0 else 1 + max(-(-(frame - second) // (third - second)), 0)

    def check_size(self, height: int, width: int, names: tuple[str, str] = ("height", "width")) -> None:
        for name, value, factor in zip(names, (height, width), (self.row_factor, self.column_factor), strict=True):
            whole_number(name, value)
            if value < factor or value % factor:
                lower = max(value // factor, 1) * factor
                nearest = f"{lower}" if value < factor else f"{lower} or {lower + factor}"
                raise ValueError(f"`{name}` is {value}; it must be a multiple of {factor} pixels. Use {nearest}.")

    def fits(self, height: int, width: int) -> bool:
        """Whether videos can be of so many pixels."""
        return height > 0 and width > 0 and height % self.row_factor == 0 and width % self.column_factor == 0

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that fit and are nearest."""
        sides = ((height, self.row_factor), (width, self.column_factor))
        return tuple(max(round(side / factor), 1) * factor for side, factor in sides)

    def check_num_frames(self, num_frames: int, name: str = "num_frames", advice: str = "Use {nearest}.") -> None:
        """
        Args:
            name: of what has so many pixel frames.
            advice: what to do, with a place for the nearest lengths.
        """
        whole_number(name, num_frames)
        first, step = self.pixel_frames
        if num_frames >= first and (num_frames - first) % step == 0:
            return
        chunks = max((num_frames - first) // step + 1, 1)
        nearest = f"{self.num_frames(chunks)}"
        if num_frames > first:
            nearest += f" or {self.num_frames(chunks + 1)}"
        unit, lengths = f"chunks of {self.chunk_frames} latent frames", f"{step} k - {self.temporal_factor - 1}"
        if self.first_chunk_frames != self.chunk_frames:
            unit = f"a first chunk of {self.first_chunk_frames} latent frames and {unit}"
            lengths = f"{step} k + {first}, k from 0 on"
        said = f"`{name}` is {num_frames}" if name == "num_frames" else f"`{name}` has {num_frames} frames"
        raise ValueError(f"{said}; with {unit} it must be {lengths}. {advice.format(nearest=nearest)}")

    def check_window(self, sink_frames: int, *, averages: bool = False) -> None:
        """
        Args:
            sink_frames: those of whole chunks.
            averages: whether chunks are averaged into the sinks.
        """
        least = max(sink_frames + self.chunk_frames, self.first_chunk_frames)
        if self.window_frames < least:
            raise ValueError(
                f"`window_frames` is {self.window_frames}; it counts the first sinks ({sink_frames}) and the current "
                f"chunk ({self.chunk_frames}), so it must be {least} or more."
            )

        if averages and sink_frames == self.first_chunk_frames != self.chunk_frames:
            enough = sink_frames + self.chunk_frames
            raise ValueError(
                f"The sinks are the first chunk of {sink_frames} latent frames, and `memory` averages chunks of "
                f"{self.chunk_frames} into them. Load the pipeline with `sink_frames={enough}` "
                "or more, or use StaticSink() or SlidingWindow()."
            )

    def check_absolute_positions(self, num_frames: int | None, policy_name: str) -> None:
        """`num_frames` is None for an endless stream."""
        latent_frames = None if num_frames is None else self.num_latent_frames(num_frames)
        if latent_frames is None or latent_frames > self.longest_frames:
            most = self.num_frames((self.longest_frames - self.first_chunk_frames) // self.chunk_frames + 1)
            asked = f"{num_frames}, that is {latent_frames} latent frames" if num_frames else "None, an endless stream"
            raise ValueError(
                f"`num_frames` is {asked}, and absolute positions end at "
                f"{self.longest_frames}. Use {most} frames or fewer, or a memory policy with relative positions, "
                f'such as {policy_name}(positions="relative").'
            )


def whole_number(name: str, value: object, least: int | None = None, most: int | None = None, of: str = "") -> int:
    """`value` as Python's own int; numpy's are taken too.

    Args:
        name: of the argument, for messages.
        of: whose it is, when it is not the call's: " of BeamSearch".

    Raises:
        TypeError: `value` is no whole number.
        ValueError: it is below `least` or above `most`.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}`{of} is {value!r}, a {type(value).__name__}; it must be a whole number.")
    if abs(value) > LARGEST:
        raise ValueError(f"`{name}`{of} is too large; no number of things is above {LARGEST}.")
    if least is not None and value < least:
        raise ValueError(f"`{name}`{of} is {value}; it must be {least} or more.")
    if most is not None and value > most:
        raise ValueError(f"`{name}`{of} is {value}; it must be {most} or less.")
    return int(value)


def real_number(name: str, value: object, of: str = "", *, may_be_infinite: bool = False) -> float:
    """`value` as Python's own number, whole ones as int; numpy's are taken too.

    Args:
        name, of: as of `whole_number`.

    Raises:
        TypeError: `value` is no real number.
        ValueError: it is not a number (NaN), or infinite where it may not be.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}`{of} is {value!r}, a {type(value).__name__}; it must be a number.")
    try:
        number = float(value)
    except OverflowError as error:  # an int of hundreds of digits
        raise ValueError(f"`{name}`{of} is too large for a number.") from error
    if math.isnan(number) or not (may_be_infinite or math.isfinite(number)):
        wanted = "a number, and may be infinite" if may_be_infinite else "finite"
        raise ValueError(f"`{name}`{of} is {number}; it must be {wanted}.")
    return int(value) if isinstance(value, Integral) else number


def true_or_false(name: str, value: object, of: str = "") -> bool:
    """`value` as Python's own bool; numpy's are taken too.

    Raises:
        TypeError: `value` is something else, a number for example.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}`{of} is {value!r}, a {type(value).__name__}; it must be True or False.")
    return bool(value)


def check_chunk_multiple(name: str, value: int, chunk_frames: int, first_chunk_frames: int | None = None) -> int:
    """Gives `value` latent frames as Python's own int.

    Raises:
        TypeError, ValueError: they are no whole number of chunks, nor the first chunk and a whole number of others.
    """
    value = whole_number(name, value, least=0)
    rests = {0} if first_chunk_frames is None else {0, first_chunk_frames % chunk_frames}
    if value % chunk_frames not in rests:
        lower = value // chunk_frames * chunk_frames
        beside = "" if len(rests) == 1 else f", or such a multiple and `first_chunk_frames`, {first_chunk_frames}"
        raise ValueError(
            f"`{name}` is {value}; it must be a multiple of `chunk_frames`, {chunk_frames}{beside}. "
            f"Use {lower} or {lower + chunk_frames}."
        )
    return value
