"""`torch.compile` of the repeated blocks: few graphs, and the same video."""

import math
import random

import pytest
import torch
from conftest import toy_transformer

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.search import RewardRoutedSink

APPENDS = RewardRoutedSink(quality_threshold=-math.inf, transition_threshold=-math.inf)
LATENTS = {"image_reward": False, "video_reward": False, "output_type": "latent"}


class GraphCounter:
    """A backend that counts graphs and runs them unchanged."""

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


def pipeline_of(transformer) -> StreamT1Pipeline:
    pipe = StreamT1Pipeline(
        None, None, transformer, None, FewStepFlowMatchScheduler(), default_height=16, default_width=16
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def counted():
    """A pipeline whose blocks are compiled, and the counter of its graphs."""
    transformer, backend = toy_transformer(), GraphCounter()
    transformer.compile_repeated_blocks(backend=backend, fullgraph=True, dynamic=True)
    return pipeline_of(transformer), backend


def test_40_chunks_of_a_plain_stream_need_at_most_8_graphs(counted, embeds):
    pipe, backend = counted
    trace = pipe(prompt_embeds=embeds, num_frames=477, memory=APPENDS, num_beams=1, num_candidates=1, **LATENTS).trace
    assert len(trace.chunks) == 40 and len(trace.chunks[-1].sinks[0]) == 5
    assert 0 < backend.num_graphs <= 8


def test_searches_of_40_chunks_share_8_graphs_another_size_needs_no_more_and_another_prompt_one(counted, embeds):
    pipe, backend = counted
    for num_beams, choose in ((2, any_two), (4, any_few)):
        search = {"num_beams": num_beams, "num_candidates": num_beams, "callback_on_chunk_end": choose}
        trace = pipe(prompt_embeds=embeds, num_frames=477, memory=APPENDS, **search, **LATENTS).trace
        assert len(trace.chunks) == 40 and len(trace.chunks[-1].sinks[0]) == 5
    num_graphs = backend.num_graphs
    search = {"num_frames": 93, "memory": APPENDS, "num_beams": 2, "num_candidates": 2, **LATENTS}
    search["callback_on_chunk_end"] = any_two
    pipe(prompt_embeds=embeds, height=32, width=48, **search)
    assert 0 < backend.num_graphs == num_graphs
    steps = iter(range(100))
    other = lambda pipe, step, timestep, tensors: {"prompt_embeds": -embeds} if next(steps) == 20 else {}  # noqa: E731
    pipe(prompt_embeds=embeds, callback_on_step_end=other, **search)
    assert backend.num_graphs == num_graphs + 1 <= 8


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_pipeline_makes_the_same_video(backend, embeds):
    bare, compiled = toy_transformer(), toy_transformer()
    compiled.compile_repeated_blocks(backend=backend, fullgraph=True, dynamic=True)
    search = {"num_frames": 21, "num_beams": 1, "num_candidates": 2, **LATENTS}
    search["callback_on_chunk_end"] = lambda *_: {"kept": [1]}
    videos = [
        pipeline_of(model)(prompt_embeds=embeds, generator=torch.Generator().manual_seed(0), **search).frames
        for model in (bare, compiled)
    ]
    assert (videos[1] - videos[0]).norm() < 1e-4 * videos[0].norm()
