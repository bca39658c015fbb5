"""The authors' rollouts and their forerunners', reproduced.

The cases were made by running the systems' public code at a tiny size, on the CPU, in float32, on random weights and
scripted rewards. The tolerance is for float32 kernels that round differently.
"""

import pytest
import torch
from conftest import REFERENCE, Case
from safetensors.torch import load_file

from stream_t1 import PromptTimeline
from stream_t1.checkpoints import convert_wan_transformer
from stream_t1.search import EMASink, RewardRoutedSink, SlidingWindow, StaticSink

TOLERANCE = 1e-4
CLOSE = 3e-5  # 3e-6 is reached; the smallest error of a wrong rule was 3e-4
POLICIES = {policy.__name__: policy for policy in (SlidingWindow, StaticSink)}


class Scripted:
    """A reward that reads its scores from a list, in the order in which candidates are scored."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = list(scores)

    def __call__(self, frames, prompt, fps):
        taken, self.scores = self.scores[: len(frames)], self.scores[len(frames) :]
        return torch.tensor(taken, dtype=torch.float64)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def run(pipe, case: Case, memory, prompt=None, **arguments):
    config = case.config
    return pipe(
        prompt,
        prompt_embeds=case.prompt_embeds if prompt is None else None,
        height=8 * 4,
        width=8 * 6,
        num_frames=4 * (config["num_latent_frames"] - 1) + 1,
        generator=torch.Generator().manual_seed(config["seed"]),
        num_beams=config["beam_width"],
        num_candidates=config["expansion"],
        num_videos_per_prompt=config["beam_width"],
        noise_correlation=config["noise_sigma"],
        candidate_seeds="reference",
        memory=memory,
        output_type="latent",
        **arguments,
    )


def rollout(pipe, case: Case, **arguments):
    config = case.config
    memory = RewardRoutedSink(
        quality_threshold=config["short_threshold"],
        transition_threshold=config["long_threshold"],
        max_sink_frames=config["max_sink_size"],
        ema_decay=config["ema_decay"],
    )
    return run(
        pipe,
        case,
        memory,
        image_reward=Scripted(case.golden["short"]),
        video_reward=Scripted(case.golden["long"]),
        short_weight_cap=config["fusion_cap"],
        reward_window=config["window_chunks"],
        final_selection="score",
        **arguments,
    )


def history(trace) -> list[list]:
    """Per last beam, best first: its candidates' traces, chunk by chunk."""
    beams = [[]]
    for chunk in trace.chunks:
        kept = sorted((c for c in chunk.candidates if c.kept), key=lambda c: -c.score)
        beams = [[*beams[candidate.parent], candidate] for candidate in kept]
    return beams


@pytest.mark.parametrize("name", ["routed", "static_sink"])
def test_rollout_of_the_authors_code_is_reproduced(reference_pipeline, name):
    case = Case(f"rollouts/{name}")
    output = rollout(reference_pipeline(case.config), case)
    for beam, expected in zip(output.frames, case.latents, strict=True):
        for chunk, expected_chunk in zip(beam.split(3, dim=1), expected.split(3, dim=1), strict=True):
            assert relative_error(chunk, expected_chunk) < TOLERANCE


@pytest.mark.parametrize("name", ["routed", "static_sink"])
def test_seeds_routes_scores_and_sinks_of_the_authors_code_are_reproduced(reference_pipeline, name):
    case = Case(f"rollouts/{name}")
    trace = rollout(reference_pipeline(case.config), case).trace
    beams, golden = history(trace), case.golden
    assert [[c.seed for c in beam] for beam in beams] == golden["history_seeds"]
    assert [[[c.short, c.long] for c in beam] for beam in beams] == golden["rewards"]
    expected_routes = [list(routes.values()) for routes in golden["routes"]]
    assert [[c.route or "discard" for c in beam] for beam in beams] == expected_routes
    assert [sinks[1:] for sinks in trace.chunks[-1].sinks] == golden["append_sink_start_frames"]
    assert [3 * len(sinks) for sinks in trace.chunks[-1].sinks] == golden["final_sink_frames"]
    assert [beam[-1].score for beam in beams] == pytest.approx(golden["scores"], abs=1e-7)


def test_noise_of_the_last_chunk_is_the_authors(reference_pipeline):
    case = Case("rollouts/routed")
    kept = []

    def remember(pipe, chunk_index, state):
        kept[:] = [state["candidates"][index].noise for index in state["kept"]]

    rollout(reference_pipeline(case.config), case, callback_on_chunk_end=remember)
    torch.testing.assert_close(torch.stack(kept), case.tensors["last_noise"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name, memory",
    [
        ("self_forcing", SlidingWindow()),
        ("reward_forcing", EMASink(ema_decay=0.8)),
        ("longlive_infinity", StaticSink(positions="relative")),
    ],
)
def test_memory_policy_of_the_forerunner_is_reproduced(reference_pipeline, name, memory):
    case = Case(f"policies/{name}")
    output = run(reference_pipeline(case.config), case, memory)
    assert relative_error(output.frames, case.latents) < TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "causal_forcing_framewise_i2v",
        "longlive2_i2v_clamp",
        "longlive_continuation",
        "self_forcing_continuation",
        "self_forcing_i2v",
        "self_forcing_independent_first_frame",
    ],
)
def test_a_given_past_and_a_first_frame_of_its_own_are_those_of_the_systems_code(reference_pipeline, name):
    case = Case(f"time/{name}")
    given = case.tensors.get("prefix_latents", case.tensors.get("first_latent"))
    past = {}
    if given is not None:
        past = {"image_latents" if given.shape[1] == 1 else "video_latents": given.transpose(1, 2)}
    policy = POLICIES[case.config["policy"]](positions=case.config["positions"])
    frames = run(reference_pipeline(case.config), case, policy, **past).frames
    first, later = case.config.get("first_chunk_frames") or case.config["chunk_frames"], case.config["chunk_frames"]
    lengths = [first] + [later] * ((case.config["num_latent_frames"] - first) // later)
    chunks = zip(frames.split(lengths, dim=2), case.latents.split(lengths, dim=2), strict=True)
    assert max(relative_error(chunk, expected) for chunk, expected in chunks) < CLOSE
    assert given is None or torch.equal(frames[:, :, : given.shape[1]], given.transpose(1, 2))


@pytest.fixture(scope="module")
def switching_transformer(reference_transformer):
    """The reference transformer with the weights of the cases whose prompts change: there, single tokens count."""
    model = type(reference_transformer).from_config(reference_transformer.config)
    model.load_state_dict(convert_wan_transformer(load_file(REFERENCE / "time" / "wan_of_switches.safetensors")))
    return model.eval()


@pytest.mark.parametrize(
    "name, recached",
    [
        ("longlive_switch_keep", [0, 0, 0, 0, 0, 3, 0, 0, 3, 0, 0, 0]),
        ("longlive_switch_reset", [0, 0, 0, 0, 0, 4, 0, 0, 4, 0, 0, 0]),
        ("longlive_switch_keep_early", [0, 0, 2, 0, 4, 0, 0, 3, 0]),
    ],
)
def test_prompts_that_change_are_longlives(reference_pipeline, switching_transformer, name, recached):
    case = Case(f"time/{name}")
    frames = [0, *(4 * frame - 3 for frame in case.config["switch_frames"])]
    pipe = reference_pipeline(case.config)
    pipe.transformer = switching_transformer
    prompts = PromptTimeline(dict(zip(frames, case.prompt_embeds.split(1), strict=True)))
    recache = "window" if case.config["global_sink"] else "all"
    output = run(pipe, case, StaticSink(), prompt=prompts, recache=recache)
    for chunk, expected in zip(output.frames.split(3, dim=2), case.latents.split(3, dim=2), strict=True):
        assert relative_error(chunk, expected) < CLOSE
    assert [chunk.work.recached_chunks for chunk in output.trace.chunks] == recached
