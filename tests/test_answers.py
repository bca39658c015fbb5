"""What callbacks and rewards answer wrongly is told with their names; errors keep their origin and no tensors."""

import gc
import traceback
import weakref

import numpy as np
import pytest
import torch
from conftest import brightness, contrast

from stream_t1 import NoCandidateLeftError
from stream_t1.models.memory import CachedChunk, ChunkContext
from stream_t1.models.streaming_decoder import DecoderState
from stream_t1.rewards import RewardOutput, WeightedReward
from stream_t1.search import BestOfN, Choice, RewardRoutedSink

REWARDS = {"image_reward": brightness, "video_reward": contrast}


def search(pipe, embeds, **arguments):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt_embeds=embeds, **{"num_frames": 21, "generator": generator, **REWARDS, **arguments})


STEP_ANSWERS = {
    "a tensor": (lambda x: x, TypeError, "returned a Tensor; it must return a dict or None"),
    "a list": (lambda x: [x], TypeError, "returned a list"),
    "an empty list": (lambda x: [], TypeError, "returned a list"),
    "False": (lambda x: False, TypeError, "returned a bool"),
    "another key": (lambda x: {"noise": x}, ValueError, "returned 'noise'.*latents, prompt_embeds"),
    "no latents": (lambda x: {"latents": None}, TypeError, "`latents`, which .* gave, is a NoneType"),
    "an array": (lambda x: {"latents": x.numpy()}, TypeError, "is a ndarray"),
    "sparse": (lambda x: {"latents": x.to_sparse()}, TypeError, "is torch.sparse_coo; .* dense"),
    "meta": (lambda x: {"latents": x.to("meta")}, TypeError, "is on the meta device"),
    "complex": (lambda x: {"latents": x.to(torch.complex64)}, TypeError, "is torch.complex64"),
    "whole numbers": (lambda x: {"latents": x.int()}, TypeError, "is torch.int32"),
    "fewer": (lambda x: {"latents": x[:1]}, ValueError, "must keep"),
    "no prompt": (lambda x: {"prompt_embeds": None}, TypeError, "`prompt_embeds`, which .* gave, is a NoneType"),
    "two prompts": (lambda x: {"prompt_embeds": torch.zeros(2, 6, 8)}, ValueError, r"must be \(1, tokens, 8\)"),
    "another width": (lambda x: {"prompt_embeds": torch.zeros(1, 6, 9)}, ValueError, r"\(1, 6, 9\)"),
    "NaN": (lambda x: {"prompt_embeds": torch.full((1, 6, 8), float("nan"))}, ValueError, "not finite"),
}


@pytest.mark.parametrize("answer, error, message", STEP_ANSWERS.values(), ids=STEP_ANSWERS)
def test_a_wrong_answer_of_a_step_callback_is_told_with_its_name(toy_pipeline, embeds, answer, error, message):
    with pytest.raises(error, match=message) as caught:
        search(toy_pipeline, embeds, callback_on_step_end=lambda pipe, step, t, tensors: answer(tensors["latents"]))
    assert "`callback_on_step_end`" in str(caught.value)


@pytest.mark.parametrize("change", [torch.Tensor.double, torch.Tensor.half, lambda x: x.clone().requires_grad_()])
def test_latents_of_another_float_dtype_or_with_gradients_are_taken(toy_pipeline, embeds, change):
    def callback(pipe, step, timestep, tensors):
        return {"latents": change(tensors["latents"])}

    assert np.isfinite(search(toy_pipeline, embeds, callback_on_step_end=callback).frames).all()


KEPT_ANSWERS = {
    "a number": ({"kept": 0}, TypeError, "keeps a int; `kept`"),
    "a fraction": ({"kept": [0.6]}, TypeError, "keeps 0.6"),
    "a bool": ({"kept": [True]}, TypeError, "keeps True"),
    "a mask": ({"kept": np.array([True, False, True, False])}, TypeError, "keeps True"),
    "a text": ({"kept": "01"}, TypeError, "keeps a str"),
    "scores": ({"kept": torch.tensor([0.1, 0.2])}, TypeError, "keeps 0.1"),
    "a grid": ({"kept": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, r"keeps \[0, 0\]"),
    "a negative": ({"kept": [-1]}, ValueError, r"`kept` \[-1\]"),
    "not a dict": ([0], TypeError, "returned a list"),
    "another key": ({"keep": [0]}, ValueError, "returned 'keep'"),
}


@pytest.mark.parametrize("answer, error, message", KEPT_ANSWERS.values(), ids=KEPT_ANSWERS)
def test_a_wrong_answer_of_a_chunk_callback_is_told_with_its_name(toy_pipeline, embeds, answer, error, message):
    with pytest.raises(error, match=message) as caught:
        search(toy_pipeline, embeds, callback_on_chunk_end=lambda *_: answer)
    assert "`callback_on_chunk_end`" in str(caught.value)


@pytest.mark.parametrize("kept", [(1, 3), np.array([1, 3]), torch.tensor([1, 3]), [np.int64(1), np.uint8(3)]])
def test_indices_may_come_in_any_list_of_whole_numbers(toy_pipeline, embeds, kept):
    trace = search(toy_pipeline, embeds, callback_on_chunk_end=lambda *_: {"kept": kept}, num_frames=9).trace
    assert [candidate.kept for candidate in trace.chunks[0].candidates] == [False, True, False, True]


SCORES = {
    "sparse": (lambda x: x.to_sparse(), "sparse"),
    "meta": (lambda x: x.to("meta"), "on the meta device"),
    "complex": (lambda x: x.to(torch.complex64), "a torch.complex64 tensor"),
    "bool": (lambda x: x > 0, "a torch.bool tensor"),
    "parts": (lambda x: RewardOutput(x, [x]), "`parts` that are no dict"),
    "numbered parts": (lambda x: RewardOutput(x, {1: x}), "`parts` that are no dict"),
    "a part": (lambda x: RewardOutput(x, {"a": x[0]}), "part a` gave a tensor of shape"),
    "a number as part": (lambda x: RewardOutput(x, {"a": 1.0}), "part a` gave a float"),
    "lost": (lambda x: RewardOutput(x, lost=("why",)), "gave `lost`"),
    "lost numbers": (lambda x: RewardOutput(x, lost=(1,) * len(x)), "gave `lost`"),
    "gated": (lambda x: RewardOutput(x, gated="no"), "gave `gated`"),
}


@pytest.mark.parametrize("answer, message", SCORES.values(), ids=SCORES)
def test_a_wrong_answer_of_a_reward_is_told_with_its_name(toy_pipeline, embeds, answer, message):
    with pytest.raises(TypeError, match=message) as caught:
        search(toy_pipeline, embeds, image_reward=lambda *arguments: answer(brightness(*arguments)))
    assert "`image_reward" in str(caught.value)


def test_scores_with_gradients_or_of_half_precision_are_taken(toy_pipeline, embeds):
    def reward(frames, prompt, fps):
        with torch.inference_mode(False), torch.enable_grad():
            weight = torch.ones((), requires_grad=True)
            return weight * torch.arange(float(len(frames))).half()

    assert search(toy_pipeline, embeds, image_reward=reward).trace.chunks[0].candidates[3].short == 3.0


class Stray:
    """A search that gives something of its own."""

    num_beams = 2

    def __init__(self, change):
        self.change = change

    def __call__(self, steps, beams):
        candidates = steps.score(beams, steps.denoise(beams, steps.propose(beams, 2)))
        return self.change(candidates)


CHOICES = {
    "no choice": (lambda c: c, TypeError, "gave a list"),
    "no candidates": (lambda c: Choice(None, [0]), TypeError, "not all of `Candidate`, in a list"),
    "no list": (lambda c: Choice(c, 0), TypeError, "keeps a int"),
    "fractions": (lambda c: Choice(c, [0.5]), TypeError, "keeps 0.5"),
    "weights of text": (lambda c: Choice(c, [0], ["x"]), TypeError, "`log_weights` of Stray is 'x'"),
    "weights": (lambda c: Choice(c, [0], 1.0), TypeError, "`log_weights` that are a float"),
    "NaN": (lambda c: Choice(c, [0], [float("nan")]), ValueError, "`log_weights` of Stray is nan"),
}


@pytest.mark.parametrize("change, error, message", CHOICES.values(), ids=CHOICES)
def test_a_wrong_choice_of_a_search_is_told_with_its_name(toy_pipeline, embeds, change, error, message):
    with pytest.raises(error, match=message) as caught:
        search(toy_pipeline, embeds, search=Stray(change))
    assert "Stray" in str(caught.value)


@pytest.mark.parametrize("weights", [np.array([0.5, 0.25]), torch.tensor([0.5, 0.25]), [np.float32(0.5), 0.25]])
def test_weights_may_come_in_any_list_of_numbers(toy_pipeline, embeds, weights):
    seen = []

    def weighing(steps, beams):
        seen.append([beam.log_weight for beam in beams])
        candidates = steps.score(beams, steps.denoise(beams, steps.propose(beams, [2] + [1] * (len(beams) - 1))))
        return Choice(candidates, [0, 1], weights)

    weighing.num_beams = 2
    search(toy_pipeline, embeds, search=weighing)
    assert seen[1] == [0.5, 0.25]


def test_a_policy_that_gives_no_sinks_is_told_so(toy_pipeline, embeds):
    class Sinkless(RewardRoutedSink):
        def evict(self, sinks, chunk, route):
            return None

    with pytest.raises(TypeError, match="`evict` of Sinkless gave NoneType"):
        search(toy_pipeline, embeds, memory=Sinkless(), num_frames=81)


def fails(after: int, error=RuntimeError):
    """A reward that raises from its n-th chunk on."""

    def deep_inside(frames):
        raise error("a shape that does not fit")

    def reward(frames, prompt, fps):
        return deep_inside(frames) if frames.shape[1] > 12 * after - 3 else contrast(frames, prompt, fps)

    return reward


def lines(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("rewards", [fails(0), WeightedReward([brightness, fails(0)], [1.0, 1.0])], ids=["one", "sum"])
@pytest.mark.parametrize("arguments", [{}, {"num_beams": 1, "num_candidates": 1}, {"search": BestOfN(2)}])
def test_a_bug_that_hits_all_candidates_of_the_first_chunk_is_raised_as_itself(
    toy_pipeline, embeds, rewards, arguments
):
    with pytest.raises(RuntimeError, match="a shape that does not fit") as caught:
        search(toy_pipeline, embeds, video_reward=rewards, **arguments)
    assert type(caught.value) is RuntimeError and "deep_inside" in lines(caught.value)
    assert "`video_reward`" in lines(caught.value) or not hasattr(caught.value, "__notes__")


def test_when_all_are_lost_later_the_first_exception_is_the_cause(toy_pipeline, embeds):
    with pytest.raises(NoCandidateLeftError, match="No candidate of chunk 1") as caught:
        search(toy_pipeline, embeds, video_reward=fails(1))
    assert type(caught.value.__cause__) is RuntimeError and "deep_inside" in lines(caught.value)
    assert caught.value.frames.shape == (1, 9, 16, 16, 3)


def test_a_bug_of_a_later_prompt_keeps_the_videos_before(toy_pipeline, embeds):
    calls = []

    def reward(frames, prompt, fps):
        calls.append(len(frames))
        if len(calls) > 2:
            raise ValueError("out of order")
        return brightness(frames, prompt, fps)

    with pytest.raises(NoCandidateLeftError) as caught:
        search(toy_pipeline, torch.cat((embeds, embeds)), image_reward=reward)
    assert isinstance(caught.value.__cause__, ValueError) and caught.value.frames.shape[:2] == (1, 21)


def test_exceptions_of_several_types_cost_candidates_and_are_no_bug(toy_pipeline, embeds):
    calls = []

    def reward(frames, prompt, fps):
        calls.append(1)
        raise (RuntimeError if len(calls) % 2 else ValueError)("either way")

    with pytest.raises(NoCandidateLeftError) as caught:
        search(toy_pipeline, embeds, image_reward=reward)
    assert str(caught.value.__cause__) == "either way"


def fails_at_chunk_1(pipe, chunk_index, state):
    if chunk_index == 1:
        raise OSError("of the callback")


ENDS = {
    "a reward, at once": {"video_reward": fails(0)},
    "a reward, later": {"video_reward": fails(2)},
    "a chunk callback": {"callback_on_chunk_end": fails_at_chunk_1},
    "a step callback": {"callback_on_step_end": lambda *_: [1][2]},
    "a wrong answer": {"image_reward": lambda frames, prompt, fps: frames},
}


@pytest.mark.parametrize("arguments", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("way", ["call", "stream"])
def test_an_error_that_is_kept_holds_nothing_of_the_search(toy_pipeline, embeds, arguments, way):
    with pytest.raises((RuntimeError, OSError, TypeError, IndexError)) as caught:
        if way == "call":
            search(toy_pipeline, embeds, num_frames=33, **arguments)
        else:
            list(search(toy_pipeline.stream, embeds, num_frames=33, **arguments))
    error = caught.value
    gc.collect()
    alive = [x for x in gc.get_objects() if isinstance(x, CachedChunk | DecoderState | ChunkContext)]
    assert alive == [] and error.__traceback__ is not None


def test_an_error_of_a_reward_holds_no_clips(toy_pipeline, embeds):
    seen = []

    def reward(frames, prompt, fps):
        seen.append(weakref.ref(frames))
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError) as caught:
        search(toy_pipeline, embeds, image_reward=reward)
    gc.collect()
    assert len(seen) == 5 and not any(reference() is not None for reference in seen) and caught.value
