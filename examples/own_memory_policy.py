"""Remember by a rule of your own: a memory policy is a small class.

python examples/own_memory_policy.py
"""

from dataclasses import dataclass

import torch

from stream_t1.demo import load_pipeline
from stream_t1.search import MemoryPolicy, Route


@dataclass(frozen=True)
class KeepTheBest(MemoryPolicy):
    """A chunk stays for ever when its image reward is the best so far."""

    def route(self, short_scores, long_scores):
        return Route.APPEND if short_scores[-1] == max(short_scores) else Route.DISCARD

    def evict(self, sinks, chunk, route):
        return (*sinks, chunk) if route == Route.APPEND else sinks


def main() -> list[int]:
    """Returns the first latent frames of the sinks that the best video ended with."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        "a green triangle moving up on a white background",
        num_frames=117,
        memory=KeepTheBest(),
        generator=torch.Generator().manual_seed(0),
    )
    sinks = output.trace.chunks[-1].sinks[output.trace.final.order[0]]
    print(f"sinks begin at the latent frames {sinks}")
    return sinks


if __name__ == "__main__":
    main()
