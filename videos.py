"""What a call has made so far, in the form that was asked for."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from .models.pixels import stack, to_output
from .rewards.scoring import clear_variables
from .search.beam import Beam
from .search.outputs import NoCandidateLeftError, StreamChunk
from .search.prompt_search import PromptSearch


def best_videos(searches: Sequence[PromptSearch], first_chunk: int = 0) -> np.ndarray | torch.Tensor | list:
    """The best beams' videos from a chunk on; prompts without a finished chunk have none."""
    output_type = searches[0].plan.request.output_type
    searches = [search for search in searches if search.chunk_index > first_chunk]
    beams = [beam for search in searches for beam in search.best_beams()]
    if output_type == "latent":
        return stack([torch.cat(beam.latents[first_chunk:], dim=1) for beam in beams])
    return to_output([torch.cat(beam.frames[first_chunk:]) for beam in beams], output_type)


def stream_chunk(search: PromptSearch, beam: Beam, index: int, output_type: str) -> StreamChunk:
    """A beam's chunk, to be given away."""
    words = search.inputs.script.words(index)
    if output_type == "latent":
        return StreamChunk(index, beam.latents[index], search.trace, words)
    return StreamChunk(index, to_output([beam.frames[index]], output_type)[0], search.trace, words)


def let_go(error: BaseException, searches: Sequence[PromptSearch], num_given: int = 0) -> None:
    """Takes the search's tensors out of an error, and puts in what was finished after so many chunks were given."""
    clear_variables(error)
    if isinstance(error, NoCandidateLeftError):
        error.frames = best_videos(searches, num_given)


def chunk_bar(pipe: "StreamT1Pipeline", searches: Sequence[PromptSearch]) -> tqdm:  # noqa: F821 - it imports this file
    """A progress bar over the chunks of all searches, endless for an endless stream, as the user configured it."""
    num_made = sum(search.chunk_index for search in searches)
    options = {"desc": "chunks", "initial": num_made, **getattr(pipe, "_progress_bar_config", {})}
    if searches[0].plan.is_endless:
        return tqdm(itertools.count(), **options)
    return tqdm(total=sum(search.plan.num_chunks for search in searches), **options)
