"""`save_to` and `pipe.resume`: a run that was stopped goes on, bit for bit."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from conftest import brightness, contrast, nothing_done, toy_transformer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stream_t1.rewards import SharpnessReward
from stream_t1.search import (
    Backtracking,
    BeamSearch,
    BestOfN,
    Choice,
    EarlyPruning,
    EarlyStop,
    EMASink,
    EvolutionSearch,
    ParticleSearch,
    RewardRoutedSink,
    SearchTrace,
    SlidingWindow,
    StaticSink,
)
from stream_t1.search.saved_run import TAG

REWARDS = {"image_reward": brightness, "video_reward": contrast}
APPENDING = RewardRoutedSink(quality_threshold=-1e9, transition_threshold=float("-inf"))


class Stopped(BaseException):
    """Ends a call from inside, as Ctrl-C does not."""


def stopping(reward, after):
    """A reward that stops the run at its call number `after`."""
    calls = itertools.count(1)

    def stop(frames, prompt, fps):
        if next(calls) > after:
            raise Stopped
        return reward(frames, prompt, fps)

    stop.__name__ = reward.__name__
    return stop


def asked(**arguments):
    given = {"num_frames": 45, "output_type": "pt", "generator": torch.Generator().manual_seed(3), **REWARDS}
    return given | arguments


@pytest.fixture
def pipe(toy_pipeline):
    """A window of one chunk between the sink and the current one, so that chunks leave early."""
    toy_pipeline.register_to_config(window_frames=9)
    return toy_pipeline


def without_seconds(trace):
    """A copy that equals those of other runs."""
    content = json.loads(json.dumps(trace.as_json()))
    for record in (*content["chunks"], *(attempt["record"] for attempt in content["given_up"])):
        record["work"]["seconds"] = {}
    return content


def file_content(path):
    """Tensors, and the header without seconds."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[TAG])
    for prompt in header["prompts"]:
        prompt["trace"] = without_seconds(SearchTrace.from_json(prompt["trace"]))
    return header, {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def assert_same(one, other):
    assert torch.equal(torch.as_tensor(one.frames), torch.as_tensor(other.frames))
    assert [without_seconds(trace) for trace in one.traces] == [without_seconds(trace) for trace in other.traces]


def resumed_after(pipe, path, num_calls, given=REWARDS, **arguments):
    """The run, stopped at a call of the video reward, and gone on with."""
    stop = stopping(arguments.get("video_reward", contrast), num_calls)
    with pytest.raises(Stopped):
        pipe(save_to=path, **asked(**arguments | {"video_reward": stop}))
    return pipe.resume(path, **given)


SEARCHES = {
    "three beams": {"num_beams": 3, "num_candidates": 2},
    "three beams of one video each": {"num_beams": 3, "num_candidates": 3, "num_videos_per_prompt": 3},
    "particles": {"search": ParticleSearch(3, strength=200.0, threshold=1.0)},
    "particles that end": {"search": ParticleSearch(3, strength=50.0, potential="max", tempering=0.1)},
    "best of three": {"search": BestOfN(3)},
    "rounds": {"search": EarlyStop(BeamSearch(2, 2), patience=2, max_rounds=2)},
    "pruning": {"search": EarlyPruning(4, 2, 1, num_beams=2)},
    "evolution": {"search": EvolutionSearch(2, 4, 1, 0.3)},
    "budget": {"search": BeamSearch(budget=[(1, 4), (3, 2)])},
    "reference seeds": {"num_beams": 2, "candidate_seeds": "reference"},
    "max_lag": {"num_beams": 3, "max_lag": 1},
    "monitors": {"monitors": {"m": contrast}, "trace_thumbnails": True},
    "latent": {"output_type": "latent"},
    "normalised": {"score_normalization": "zscore", "num_inference_steps": 2, "reward_window": 2},
    "back": {"search": Backtracking(BeamSearch(2, 2), 10.0, depth=2, retries=2)},
    "sliding": {"memory": SlidingWindow(), "num_beams": 3},
    "static": {"memory": StaticSink(positions="relative"), "num_beams": 3},
    "averages": {"memory": EMASink(), "num_beams": 3},
    "appends": {"memory": APPENDING, "num_beams": 3},
}


CALLS = {"particles": 10, "particles that end": 10, "best of three": 10, "back": 7}  # else the fourth chunk's


@pytest.mark.parametrize("name", SEARCHES)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(pipe, embeds, tmp_path, name):
    arguments = {"prompt_embeds": embeds, **SEARCHES[name]}
    given = REWARDS | ({"monitors": {"m": contrast}} if "monitors" in arguments else {})
    whole = pipe(save_to=tmp_path / "whole", **asked(**arguments))
    path = tmp_path / "stopped"
    assert_same(resumed_after(pipe, path, CALLS.get(name, 3), given, **arguments), whole)
    assert file_content(path) == file_content(tmp_path / "whole")


def forwards(pipe, run):
    """How often the transformer runs, and how many of these are clean passes."""
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(float(kwargs["timestep"][0]) == 0.0), with_kwargs=True
    )
    try:
        run()
    finally:
        handle.remove()
    return len(seen), sum(seen)


@pytest.fixture
def finished(pipe, embeds, tmp_path):
    """A run of two chunks, and its file."""
    return pipe(prompt_embeds=embeds, save_to=tmp_path / "run", **asked(num_frames=21)), tmp_path / "run"


def test_a_finished_run_gives_its_video_without_the_transformer(pipe, finished):
    output, path = finished
    before = path.read_bytes()
    assert forwards(pipe, lambda: assert_same(pipe.resume(path, **REWARDS), output)) == (0, 0)
    assert path.read_bytes() == before


def test_only_clean_passes_make_the_memory_again(pipe, embeds, tmp_path):
    with pytest.raises(Stopped):
        pipe(prompt_embeds=embeds, save_to=tmp_path / "run", **asked(video_reward=stopping(contrast, 3)))
    num_forwards, num_clean = forwards(pipe, lambda: pipe.resume(tmp_path / "run", **REWARDS))
    assert num_clean <= 3 * 2 and num_forwards - num_clean <= 2 * 4  # three chunks, two beams; one chunk of four steps


def test_a_longer_plain_sample_is_the_one_that_was_longer_from_the_beginning(pipe, embeds, tmp_path):
    plain = {"prompt_embeds": embeds, "num_beams": 1, "num_candidates": 1, "memory": EMASink()}
    pipe(save_to=tmp_path / "run", **asked(num_frames=33, **plain))
    longer = pipe(save_to=tmp_path / "longer", **asked(num_frames=57, **plain))
    resumed = pipe.resume(tmp_path / "run", num_frames=57, **REWARDS)
    assert torch.equal(resumed.frames, longer.frames)
    known = [(c.evicted, c.sinks, c.work.clean_passes) for c in longer.trace.chunks]
    assert [(c.evicted, c.sinks, c.work.clean_passes) for c in resumed.trace.chunks] == known


def test_searching_again_from_a_chunk_without_a_change_gives_the_same(pipe, finished):
    output, path = finished
    before = path.read_bytes()
    for chunk in range(3):
        assert torch.equal(pipe.resume(path, from_chunk=chunk, **REWARDS).frames, output.frames)
    assert path.read_bytes() == before


def test_searching_again_with_other_numbers_keeps_the_chunks_before(pipe, finished, tmp_path):
    output, path = finished
    changed = {"num_beams": 1, "num_candidates": 4, "generator": torch.Generator().manual_seed(9)}
    again = pipe.resume(path, from_chunk=1, save_to=tmp_path / "other", **changed, **REWARDS)
    first, second = again.trace.chunks
    assert first == output.trace.chunks[0] and len(second.candidates) == 4 and again.trace.call_seed == 9
    assert {c.seed for c in second.candidates}.isdisjoint(c.seed for c in output.trace.chunks[1].candidates)
    assert_same(pipe.resume(tmp_path / "other", **REWARDS), again)


def test_a_run_of_several_prompts_goes_on_in_the_one_that_it_was_stopped_in(pipe, embeds, tmp_path):
    arguments = {"prompt_embeds": torch.cat([embeds, embeds + 1]), "num_frames": 21}
    whole = pipe(**asked(**arguments))
    assert_same(resumed_after(pipe, tmp_path / "run", 4, **arguments), whole)


def test_a_stream_that_was_left_is_gone_on_with_as_a_call(pipe, embeds, tmp_path):
    stream = pipe.stream(prompt_embeds=embeds, save_to=tmp_path / "run", **asked(num_beams=1))
    next(stream)
    stream.close()
    whole = pipe(prompt_embeds=embeds, **asked(num_beams=1))
    assert torch.equal(pipe.resume(tmp_path / "run", **REWARDS).frames, whole.frames)


def test_a_prompt_that_a_callback_changed_stays_changed(pipe, embeds, tmp_path):
    def changing():
        calls = itertools.count()
        return lambda pipe, step, timestep, tensors: {"prompt_embeds": embeds + 1} if next(calls) == 5 else {}

    callback = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    whole = pipe(prompt_embeds=embeds, **asked(callback_on_step_end=changing(), **callback))
    given = REWARDS | {"callback_on_step_end": lambda pipe, step, timestep, tensors: {}}
    arguments = {"prompt_embeds": embeds, "callback_on_step_end": changing(), **callback}
    assert torch.equal(resumed_after(pipe, tmp_path / "run", 3, given, **arguments).frames, whole.frames)


def test_a_callback_that_was_given_is_called_for_the_chunks_that_are_left(pipe, embeds, tmp_path):
    def turn_around(pipe, chunk_index, state):
        seen.append(chunk_index)
        return {"kept": state["kept"][::-1]}

    seen = []
    arguments = {"prompt_embeds": embeds, "callback_on_chunk_end": turn_around}
    whole = pipe(**asked(**arguments))
    seen.clear()
    given = REWARDS | {"callback_on_chunk_end": turn_around}
    assert_same(resumed_after(pipe, tmp_path / "run", 3, given, **arguments), whole)
    assert seen == [0, 1, 2, 3]


def test_words_and_what_ships_need_not_be_given_again(reading_pipeline, tmp_path):
    reading_pipeline.image_reward = SharpnessReward()
    search = EarlyStop(BeamSearch(2, 2), margin=float("inf"), patience=1)
    arguments = {"search": search, "memory": APPENDING, "generator": torch.Generator().manual_seed(1)}
    output = reading_pipeline(["a red circle", "a dog"], num_frames=9, save_to=tmp_path / "run", **arguments)
    resumed = reading_pipeline.resume(str(tmp_path / "run"))
    assert_same(resumed, output)
    assert [trace.config["prompt"] for trace in resumed.traces] == ["a red circle", "a dog"]


def test_the_file_holds_what_the_arithmetic_says_and_full_size_is_under_100_mb(pipe, embeds, tmp_path):
    def most_bytes(num_chunks, chunk_numbers, embeds_numbers, num_beams, num_candidates):
        """Latents of all candidates, noise of the kept ones, one prompt; float32."""
        return 4 * (num_chunks * chunk_numbers * num_beams * (num_candidates + 1) + embeds_numbers)

    pipe(prompt_embeds=embeds, save_to=tmp_path / "run", **asked())
    tensors = load_file(tmp_path / "run")
    assert sum(tensor.nbytes for tensor in tensors.values()) <= most_bytes(4, 4 * 3 * 2 * 2, 6 * 8, 2, 2)
    assert {name.split(".")[-1] for name in tensors} == {"latents", "noise", "0"}  # no keys, values or states
    header = (tmp_path / "run").stat().st_size - sum(tensor.nbytes for tensor in tensors.values())
    full = most_bytes(7, 16 * 3 * 60 * 104, 512 * 4096, 2, 2)
    assert full + 10 * header < 100e6 and full == 58_707_968


class OwnMemory:
    """A search that grows a beam from a memory that it made."""

    num_beams = 1

    def __call__(self, steps, beams):
        candidates = steps.propose(beams, 1)
        candidates = [replace(each, memory=replace(beams[0].memory, window=())) for each in candidates]
        return Choice(steps.score(beams, steps.denoise(beams, candidates)), [0])


def test_a_memory_of_the_searchs_own_is_refused_by_name(pipe, embeds, tmp_path):
    with pytest.raises(ValueError, match="a memory that the search put in"):
        pipe(prompt_embeds=embeds, save_to=tmp_path / "run", **asked(search=OwnMemory()))


@pytest.mark.parametrize("make", [str, lambda path: path], ids=["text", "path"])
def test_a_file_that_is_there_is_not_replaced(pipe, finished, embeds, make):
    _, path = finished
    with nothing_done(pipe), pytest.raises(FileExistsError, match="saved run: go on with it by `pipe.resume"):
        pipe(prompt_embeds=embeds, save_to=make(path), **asked())
    path.write_bytes(b"mine")
    with nothing_done(pipe), pytest.raises(FileExistsError, match="Name another file"):
        pipe(prompt_embeds=embeds, save_to=make(path), **asked())
    assert path.read_bytes() == b"mine"


NOT_KEPT = {
    "no folder": (lambda p, e, d: p(prompt_embeds=e, save_to=d / "none" / "a"), FileNotFoundError, "no folder"),
    "a number": (lambda p, e, d: p(prompt_embeds=e, save_to=3), TypeError, "`save_to` is 3"),
    "an endless stream": (
        lambda p, e, d: p.stream(prompt_embeds=e, save_to=d / "a", num_frames=None, horizon=3),
        ValueError,
        "an endless stream has no end",
    ),
    "steps": (lambda p, e, d: p.steps(prompt_embeds=e, save_to=d / "a"), ValueError, "a loop of one's own"),
}


@pytest.mark.parametrize("call, kind, told", NOT_KEPT.values(), ids=NOT_KEPT)
def test_what_cannot_be_kept_is_refused_before_any_work(pipe, embeds, tmp_path, call, kind, told):
    with nothing_done(pipe), pytest.raises(kind, match=told):
        call(pipe, embeds, tmp_path)
    assert list(tmp_path.iterdir()) == []


def changed_header(path, **changes):
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[TAG])
    save_file(load_file(path), path, {TAG: json.dumps(header | changes)})


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


OTHER_FILES = {
    "none": (lambda path: path.unlink(), FileNotFoundError, "there is no such file"),
    "cut": (cut, ValueError, "is no saved run, or is cut short"),
    "text": (lambda path: path.write_text("hello"), ValueError, "is no saved run"),
    "other tensors": (lambda path: save_file({"a": torch.ones(1)}, path), ValueError, "no saved run of Stream-T1"),
    "format": (lambda path: changed_header(path, format=2), ValueError, "of format 2; this version .* reads 1"),
    "version": (lambda path: changed_header(path, version="0.1.0"), ValueError, "a run of Stream-T1 0.1.0, and this"),
    "damaged": (lambda path: changed_header(path, prompts=[{}]), ValueError, "damaged saved run"),
    "no prompts": (lambda path: changed_header(path, prompts=[]), ValueError, "damaged saved run"),
}


@pytest.mark.parametrize("change, kind, told", OTHER_FILES.values(), ids=OTHER_FILES)
def test_a_file_that_is_no_run_of_this_version_is_refused(pipe, finished, change, kind, told):
    _, path = finished
    change(path)
    with nothing_done(pipe), pytest.raises(kind, match=told):
        pipe.resume(path, **REWARDS)


def other_weights(pipe):
    pipe.transformer = toy_transformer(num_layers=1)


def other_window(pipe):
    pipe.register_to_config(window_frames=12)


MISMATCHES = {
    "no rewards": ({}, "does not hold `image_reward` and `video_reward` of its call"),
    "another reward": ({"image_reward": contrast, "video_reward": contrast}, "made with brightness as `image_reward`"),
    "no reward": ({"image_reward": False, "video_reward": contrast}, "and here it is none"),
    "another policy": ({"memory": EMASink(), **REWARDS}, "was made with `memory` .*RewardRoutedSink"),
    "another search": ({"search": BestOfN(2), **REWARDS}, "was made with `search` .*BeamSearch"),
    "shorter": ({"num_frames": 9, **REWARDS}, "`num_frames` is 9, .*as many or more"),
    "no length": ({"num_frames": 22, **REWARDS}, "`num_frames` is 22"),
    "no such chunk": ({"from_chunk": 3, **REWARDS}, "`from_chunk` is 3"),
    "another size": ({"height": 32, **REWARDS}, "`resume` was given `height`"),
    "seeds": ({"generator": torch.Generator(), **REWARDS}, "`resume` was given `generator`"),
}


@pytest.mark.parametrize("given, told", MISMATCHES.values(), ids=MISMATCHES)
def test_what_does_not_fit_the_run_is_told_by_name_before_any_work(pipe, finished, given, told):
    _, path = finished
    with nothing_done(pipe), pytest.raises((ValueError, TypeError), match=told):
        pipe.resume(path, **given)


@pytest.mark.parametrize(
    "change, told",
    [(other_weights, "other weights of the transformer"), (other_window, "made with `window_frames` 9")],
)
def test_a_run_of_another_model_is_told_by_name(pipe, finished, change, told):
    _, path = finished
    change(pipe)
    with nothing_done(pipe), pytest.raises(ValueError, match=told):
        pipe.resume(path, **REWARDS)


def test_a_finished_run_whose_last_chunk_was_weighed_as_the_last_is_not_made_longer(pipe, embeds, tmp_path):
    search = ParticleSearch(2, strength=1.0, potential="max")
    pipe(prompt_embeds=embeds, save_to=tmp_path / "run", **asked(search=search, num_frames=9))
    with nothing_done(pipe), pytest.raises(ValueError, match="can't be made longer"):
        pipe.resume(tmp_path / "run", num_frames=21, **REWARDS)
