"""Best of N: whole videos, made side by side, of which nothing is dropped before the end."""

from dataclasses import dataclass

from . import beam, choice, geometry


@dataclass(frozen=True)
class BestOfN:
    """Makes `num_videos` plain samples; the final selection takes the best.

    Video i is, bit for bit, the i-th of so many successive calls with one beam, one candidate and the same generator.
    So each is denoised and decoded by itself.

    Args:
        num_videos: N.

    Raises:
        TypeError, ValueError: it is no whole number, or below 1.
    """

    num_videos: int

    drops = False
    ranks = False  # in the order of their seeds
    compares_rounds = True  # every video is scored alone
    scales = "num_videos"

    def __post_init__(self) -> None:
        number = geometry.whole_number("num_videos", self.num_videos, least=1, most=256, of=" of BestOfN")
        object.__setattr__(self, "num_videos", number)

    @property
    def num_beams(self) -> int:
        return self.num_videos

    @property
    def num_lineages(self) -> int:
        """Base seeds: one a video."""
        return self.num_videos

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        has_begun = len(beams) > 1 or beams[0].lineage is not None
        counts = [1] * len(beams) if has_begun else [self.num_videos]
        candidates = []
        for candidate in steps.propose(beams, counts):
            candidates += steps.score(beams, steps.denoise(beams, [candidate]))
        return choice.Choice(candidates, beam.alive_indices(candidates))

    def work(self, chunk_index: int, num_parents: int) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """Exact."""
        exact = choice.SearchWork.of(self.num_videos, self.num_videos, batch=1)
        return exact, exact
