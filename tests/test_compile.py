"""`torch.compile` of the repeated blocks: few graphs, and the same video."""

import math
import random

import pytest
import torch

from stream_t1.demo import load_pipeline
from stream_t1.search import RewardRoutedSink

APPENDS = RewardRoutedSink(quality_threshold=-math.inf, transition_threshold=-math.inf)
QUIET = {"image_reward": False, "video_reward": False, "output_type": "latent"}


class GraphCounter:
    """A backend that runs what it is given as it is."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        self.num_graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def any_two(pipe, chunk_index, state):
    """Keeps two candidates of one beam or of two, or only one, so that every size of batch comes up."""
    return {"kept": random.Random(chunk_index).sample(range(4), k=1 if chunk_index % 5 == 4 else 2)}


def any_few(pipe, chunk_index, state):
    """Keeps one to four candidates, whoever their parents are."""
    chooser = random.Random(chunk_index)
    return {"kept": chooser.sample(range(len(state["candidates"])), k=chooser.randint(1, 4))}


@pytest.fixture
def counted(toy_pipeline):
    """A pipeline whose blocks are compiled, and what counts its graphs."""
    backend = GraphCounter()
    toy_pipeline.transformer.compile_repeated_blocks(backend=backend, fullgraph=True, dynamic=True)
    yield toy_pipeline, backend
    for block in toy_pipeline.transformer.blocks:  # it is shared with other tests
        block._compiled_call_impl = None


@pytest.mark.parametrize("num_beams, num_candidates, choose", [(2, 2, any_two), (4, 4, any_few), (1, 1, None)])
def test_40_chunks_with_sinks_being_appended_need_at_most_8_graphs(counted, embeds, num_beams, num_candidates, choose):
    pipe, backend = counted
    search = {"num_beams": num_beams, "num_candidates": num_candidates, "callback_on_chunk_end": choose}
    trace = pipe(prompt_embeds=embeds, num_frames=477, memory=APPENDS, **search, **QUIET).trace
    assert len(trace.chunks) == 40 and len(trace.chunks[-1].sinks[0]) == 5
    assert 0 < backend.num_graphs <= 8


def test_another_size_needs_no_more_graphs_and_another_prompt_one(counted, embeds):
    pipe, backend = counted
    search = {"num_frames": 93, "memory": APPENDS, "callback_on_chunk_end": any_two, **QUIET}
    pipe(prompt_embeds=embeds, **search)
    num_graphs = backend.num_graphs
    pipe(prompt_embeds=embeds, height=32, width=48, **search)
    assert backend.num_graphs == num_graphs
    steps = iter(range(100))
    other = lambda pipe, step, timestep, tensors: {"prompt_embeds": -embeds} if next(steps) == 20 else {}  # noqa: E731
    pipe(prompt_embeds=embeds, callback_on_step_end=other, **search)
    assert backend.num_graphs == num_graphs + 1 <= 8


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_pipeline_makes_the_same_video(backend):
    bare, compiled = load_pipeline(), load_pipeline()
    compiled.transformer.compile_repeated_blocks(backend=backend, fullgraph=True, dynamic=True)
    videos = []
    for pipe in (bare, compiled):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        arguments = {"num_frames": 57, "memory": APPENDS, "generator": generator, "output_type": "latent"}
        videos.append(pipe("a red circle moving left on a white background", **arguments).frames)
    assert (videos[1] - videos[0]).norm() < 1e-4 * videos[0].norm()
