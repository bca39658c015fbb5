"""Prompts that change along a video: what the model reads and remembers, and what rewards read."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import brightness, contrast

from stream_t1 import FewStepFlowMatchScheduler, PromptTimeline, StreamT1Pipeline
from stream_t1.models import ChunkMemory
from stream_t1.models.memory import ChunkRecord
from stream_t1.models.prompt import Prompt
from stream_t1.models.rotary import rotary_table
from stream_t1.search import (
    BeamSearch,
    BestOfN,
    Choice,
    EMASink,
    Lookahead,
    RewardRoutedSink,
    SearchTrace,
    SlidingWindow,
    StaticSink,
)
from stream_t1.search.script import PromptChange, PromptScript, blend_prompts

PLAIN = {"num_beams": 1, "num_candidates": 1, "output_type": "latent"}
SEARCH = {"image_reward": brightness, "video_reward": contrast, "output_type": "latent"}
APPENDS = RewardRoutedSink(quality_threshold=-1e9, transition_threshold=-1e9)


@pytest.fixture
def three(embeds):
    """Three prompts' embeddings."""
    return embeds, embeds.flip(1) - 0.5, 2 * embeds.roll(1, 2)


def run(pipe, prompt, **arguments):
    """Seven chunks, which begin at frames 0, 9, 21, 33, 45, 57 and 69."""
    given = {"num_frames": 81, "generator": torch.Generator().manual_seed(0)}
    if torch.is_tensor(prompt):
        return pipe(prompt_embeds=prompt, **given | arguments)
    return pipe(prompt, **given | arguments)


@contextmanager
def forwards_of(pipe):
    """Timestep, frames, rows and prompt of every forward."""
    seen = []

    def watch(module, args, kwargs):
        rows, _, frames, *_ = kwargs["hidden_states"].shape
        seen.append((float(kwargs["timestep"][0]), frames, rows, kwargs["encoder_hidden_states"].clone()))

    handle = pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.mark.parametrize("arguments", [PLAIN, PLAIN | {"transition": 3, "recache": "all"}, SEARCH])
def test_equal_prompts_are_no_change_bit_for_bit(toy_pipeline, embeds, arguments):
    changing = PromptTimeline({0: embeds, 21: embeds.clone(), 57: embeds})
    one, other = (run(toy_pipeline, prompt, **arguments) for prompt in (embeds, changing))
    assert torch.equal(one.frames, other.frames)
    assert [chunk.work.chunk_forwards for chunk in one.trace.chunks] == [
        chunk.work.chunk_forwards for chunk in other.trace.chunks
    ]


def test_equal_texts_are_no_change_bit_for_bit(reading_pipeline):
    one, other = (run(reading_pipeline, prompt, **PLAIN) for prompt in ("a", PromptTimeline({0: "a", 45: "a"})))
    assert torch.equal(one.frames, other.frames)


def test_a_timeline_of_one_prompt_is_that_prompt(reading_pipeline):
    one, other = (run(reading_pipeline, prompt, **PLAIN) for prompt in ("a", PromptTimeline({0: "a"})))
    assert torch.equal(one.frames, other.frames)


def test_a_prompt_holds_from_the_first_chunk_that_begins_at_or_after_its_frame(toy_pipeline, three):
    for frame in (22, 33):
        with forwards_of(toy_pipeline) as seen:
            run(toy_pipeline, PromptTimeline({0: three[0], frame: three[1]}), recache="none", **PLAIN)
        chunks = [prompt for _, _, _, prompt in seen][::5]  # four steps and a clean pass
        assert [torch.equal(prompt, three[1]) for prompt in chunks] == [False] * 3 + [True] * 4


def test_a_transition_of_one_chunk_is_a_hard_change(toy_pipeline, three):
    prompt = PromptTimeline({0: three[0], 33: three[1]})
    zero, one, two = (run(toy_pipeline, prompt, transition=number, **PLAIN).frames for number in (0, 1, 2))
    assert torch.equal(zero, one) and not torch.equal(one, two)


def test_a_transition_mixes_the_embeddings_and_recaches_at_every_chunk_of_it(toy_pipeline, three):
    prompt = PromptTimeline({0: three[0], 33: three[1]})
    with forwards_of(toy_pipeline) as seen:
        trace = run(toy_pipeline, prompt, transition=3, **PLAIN).trace
    clean = [prompt for timestep, frames, _, prompt in seen if timestep == 0.0 and frames == 3]
    mixes = [three[0]] * 3 + [blend_prompts(*three[:2], k / 3) for k in (1, 2)] + [three[1]]
    assert all(torch.equal(read, mix) for read, mix in zip(clean, mixes, strict=True))
    assert [chunk.prompt_weight for chunk in trace.chunks] == [1, 1, 1, 1 / 3, 2 / 3, 1, 1]
    assert [chunk.work.recached_chunks > 0 for chunk in trace.chunks] == [False] * 3 + [True] * 3 + [False]


def test_a_mix_keeps_each_tokens_norm(three):
    source, target = three[0], torch.cat((three[1][:, :-1], torch.zeros_like(three[1][:, -1:])), dim=1)
    source = torch.cat((source[:, :-1], torch.zeros_like(source[:, -1:])), dim=1)  # padding stays padding
    mixed = blend_prompts(source, target, 0.25)
    torch.testing.assert_close(mixed.norm(dim=-1), 0.75 * source.norm(dim=-1) + 0.25 * target.norm(dim=-1))
    line = torch.nn.functional.cosine_similarity(mixed[:, :-1], torch.lerp(source, target, 0.25)[:, :-1], dim=-1)
    torch.testing.assert_close(line, torch.ones_like(line))
    assert torch.equal(mixed[:, -1], torch.zeros_like(mixed[:, -1]))


def test_a_change_during_a_transition_goes_on_from_the_mix(toy_pipeline, three):
    prompt = PromptTimeline({0: three[0], 33: three[1], 45: three[2]})
    with forwards_of(toy_pipeline) as seen:
        run(toy_pipeline, prompt, transition=2, recache="none", **PLAIN)
    read = [prompt for timestep, _, _, prompt in seen if timestep == 0.0]
    half = blend_prompts(*three[:2], 0.5)
    assert torch.equal(read[3], half) and torch.equal(read[4], blend_prompts(half, three[2], 0.5))
    assert torch.equal(read[5], three[2])


def test_a_script_that_forgets_its_beginning_says_the_same_of_the_rest(three):
    changes = [PromptChange(chunk, str(chunk), three[chunk % 3], transition=3) for chunk in (0, 2, 4, 5, 9)]
    whole = PromptScript(tuple(changes), (PromptChange(0, "a"), PromptChange(6, "b")), cuts=(3, 8))
    for first in range(1, 13):
        rest = whole.forget(first)
        assert len(rest.changes) <= len(whole.changes)
        for chunk in range(first, 13):
            assert rest.as_recorded(chunk) == whole.as_recorded(chunk)
            assert torch.equal(rest.embeds(chunk), whole.embeds(chunk))
            assert (rest.new_embeds(chunk) is None) == (whole.new_embeds(chunk) is None)
            assert rest.stretch_begin(chunk) == whole.stretch_begin(chunk) or rest.stretch_begin(chunk) < first
    assert [change.chunk_index for change in whole.forget(13).changes] == [9]


def remembered_at(pipe, prompt, index, **arguments):
    """A plain run's steps and beam at a chunk."""
    given = {**PLAIN, "num_frames": 81, "generator": torch.Generator().manual_seed(0), **arguments}
    steps, beams = pipe.steps(prompt, **given)
    for _ in range(index):
        beams = steps.commit(beams, steps.denoise(beams, steps.propose(beams, 1)))
        steps = steps.ahead()
    return steps, beams[0]


def clean_pass(pipe, latents, embeds, past, positions):
    """Keys and values of latents behind a past, under a prompt."""
    prompt, record, config = Prompt(embeds), ChunkRecord(), pipe.transformer.config
    context = past.context(
        latents.shape[1:],
        patch_size=config.patch_size,
        head_dim=config.attention_head_dim,
        positions=positions,
        prompt=prompt.memory,
        device=latents.device,
    )
    with torch.no_grad():
        pipe.transformer(latents[None], torch.zeros(1), prompt.embeds, context=context.recording(record))
    return record


def starts(chunks):
    return [chunk.start_frame for chunk in chunks]


# By name: chunk, mode, then first frames of the sinks and the window, and the frames that go through the pass.
RECACHES = {
    "the window alone": (5, "window", [0], [9, 12], (6, 15)),
    "the sinks too": (5, "all", [3], [9, 12], (3, 15)),
    "an early change makes the sinks anew": (2, "window", [0], [3], (0, 6)),
    "as long as the window holds everything": (4, "window", [0], [6, 9], (0, 12)),
}


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("index, mode, sinks, window, span", RECACHES.values(), ids=RECACHES)
def test_a_recache_is_a_fresh_clean_pass_of_the_same_latents(
    toy_pipeline, three, positions, index, mode, sinks, window, span
):
    prompt = PromptTimeline({0: three[0], 12 * index - 3: three[1]})
    steps, beam = remembered_at(toy_pipeline, prompt, index, memory=StaticSink(positions=positions), recache=mode)
    made, (begin, end) = steps.recached(beam), span
    kept = beam.memory.sinks if (mode, index) == ("window", 5) else ()
    latents = torch.cat(beam.latents, dim=1)[:, begin:end]
    past = ChunkMemory(sinks=kept, num_frames=begin)
    record = clean_pass(toy_pipeline, latents, three[1], past, positions)
    tokens = record.key.shape[1] // (end - begin)
    assert starts(made.sinks) == sinks and starts(made.window) == window and made.num_frames == 3 * index
    for chunk in (*made.sinks, *made.window)[len(kept) :]:
        rows = slice((chunk.start_frame - begin) * tokens, (chunk.start_frame - begin + 3) * tokens)
        assert torch.equal(chunk.key, record.key[:, rows]) and torch.equal(chunk.value, record.value[:, rows])
    assert steps.work.recached_chunks == (end - begin) // 3 and made.sinks[: len(kept)] == kept


def test_nothing_is_computed_where_nothing_of_it_would_be_kept(toy_models, three):
    """A window that has room for the coming chunk alone."""
    pipe = StreamT1Pipeline(None, None, *toy_models, FewStepFlowMatchScheduler(), window_frames=6)
    pipe.set_progress_bar_config(disable=True)
    prompt = PromptTimeline({0: three[0], 33: three[1]})
    trace = run(pipe, prompt, height=16, width=16, memory=StaticSink(), **PLAIN).trace
    assert sum(chunk.work.recached_chunks for chunk in trace.chunks) == 0


def test_none_remembers_the_past_as_it_was(toy_pipeline, three):
    steps, beam = remembered_at(toy_pipeline, PromptTimeline({0: three[0], 57: three[1]}), 5, recache="none")
    assert steps.recached(beam) is beam.memory and steps.work.recached_chunks == 0


def test_a_flush_keeps_the_sinks_and_the_newest_chunks_and_computes_nothing(toy_pipeline, three):
    """Twelve frames: three sinks, the coming chunk, and none but it. What left is recorded."""
    prompt = PromptTimeline({0: three[0], 57: three[1]})
    arguments = {"memory": APPENDS, "recache": "flush", **SEARCH, "num_beams": 1, "num_candidates": 1}
    trace = run(toy_pipeline, prompt, **arguments).trace
    assert trace.chunks[4].sinks == [[0, 3, 6]]  # and 9, 12 in the window
    left = [(each.chunk, each.done) for each in trace.chunks[5].evicted]
    assert left == [(3, "discard"), (4, "discard")] and sum(chunk.work.recached_chunks for chunk in trace.chunks) == 0
    assert [each.chunk for each in trace.chunks[4].evicted] == [2]


def test_the_policys_sinks_are_kept_as_they_are(toy_pipeline, three):
    """What routes made of sinks counts as sinks: only the window is made again."""
    steps, beam = remembered_at(toy_pipeline, PromptTimeline({0: three[0], 69: three[1]}), 6, memory=EMASink())
    made = steps.recached(beam)
    assert made.sinks is beam.memory.sinks and starts(made.window) == starts(beam.memory.window)
    assert not any(a is b for a, b in zip(made.window, beam.memory.window, strict=True))


def test_each_kept_beam_is_recached_once_whatever_its_candidates(toy_pipeline, three):
    prompt = PromptTimeline({0: three[0], 57: three[1]})
    with forwards_of(toy_pipeline) as seen:
        trace = run(toy_pipeline, prompt, num_beams=2, num_candidates=3, memory=StaticSink(), **SEARCH).trace
    passes = [frames for timestep, frames, rows, _ in seen if timestep == 0.0 and frames > 3]
    assert passes == [9, 9]
    work = trace.chunks[5].work
    assert work.recached_chunks == 6 and work.chunk_forwards == work.forwards + work.clean_passes + 6
    assert work.seconds["recache"] > 0


def test_a_candidate_that_is_kept_twice_is_recached_once(toy_pipeline, three):
    prompt = PromptTimeline({0: three[0], 21: three[1]})

    class Twice(BeamSearch):
        def __call__(self, steps, beams):
            choice = super().__call__(steps, beams)
            return replace(choice, kept=[choice.kept[0]] * 2)

    trace = run(toy_pipeline, prompt, search=Twice(2, 2), **SEARCH).trace
    assert trace.chunks[2].work.recached_chunks == 2


@pytest.mark.parametrize("search", [BestOfN(2), BeamSearch(1, 2)])
def test_other_searches_recache_too(toy_pipeline, three, search):
    trace = run(toy_pipeline, PromptTimeline({0: three[0], 21: three[1]}), search=search, **SEARCH).trace
    assert trace.chunks[2].work.recached_chunks == 2 * search.num_beams


def test_a_roll_out_reads_the_coming_prompt_and_its_recache_is_counted(toy_pipeline, three):
    steps, beam = remembered_at(toy_pipeline, PromptTimeline({0: three[0], 21: three[1]}), 1)
    (grown,) = steps.commit([beam], steps.denoise([beam], steps.propose([beam], 1)))
    ahead = steps.ahead()
    with forwards_of(toy_pipeline) as seen:
        ahead.denoise([grown], ahead.propose([grown], 2))
    assert all(torch.equal(prompt, three[1]) for _, _, _, prompt in seen[1:]) and seen[0][:3] == (0.0, 6, 1)
    assert steps.work.recached_chunks == 2


def test_a_search_may_ask_for_another_recache(toy_pipeline, three):
    """The trace says so, and the beam grows from it."""
    asked = []

    def search(steps, beams):
        candidates = steps.propose(beams, 1)
        if steps.chunk_index == 5:
            memory = steps.recached(beams[0], "all")
            asked.append(memory)
            candidates = [replace(candidate, memory=memory) for candidate in candidates]
        return Choice(steps.denoise(beams, candidates), [0])

    search.drops = False
    arguments = {"memory": StaticSink(), "output_type": "latent"}
    prompt = PromptTimeline({0: three[0], 57: three[1]})
    own = run(toy_pipeline, prompt, search=search, **arguments)
    expected = run(toy_pipeline, prompt, recache="all", num_beams=1, num_candidates=1, **arguments)
    assert torch.equal(own.frames, expected.frames) and own.trace.chunks[5].candidates[0].own == ["memory"]
    assert own.trace.chunks[5].sinks == [[3]] and len(asked) == 1


def test_several_videos_of_several_timelines_are_those_of_single_calls(toy_pipeline, three):
    timelines = [
        PromptTimeline({0: three[0], 21: three[1]}),
        PromptTimeline({0: three[2]}),
        PromptTimeline({0: three[1], 57: three[2]}),
    ]
    both = toy_pipeline(
        timelines, num_frames=81, generator=[torch.Generator().manual_seed(n) for n in range(3)], **PLAIN
    )
    for number, prompt in enumerate(timelines):
        alone = run(toy_pipeline, prompt, generator=torch.Generator().manual_seed(number), **PLAIN)
        assert torch.equal(both.frames[number], alone.frames[0])


def test_texts_and_timelines_may_stand_in_one_list(reading_pipeline):
    prompts = ["a", PromptTimeline({0: "b", 21: "c"})]
    output = reading_pipeline(prompts, num_frames=33, **PLAIN)
    told = [[chunk.prompt for chunk in trace.chunks] for trace in output.traces]
    assert told == [["a"] * 3, ["b", "b", "c"]]


def test_a_timeline_of_another_copy_of_the_code_is_known_by_what_it_has(reading_pipeline):
    """Such as one of the installed package, where the pipeline is remote code."""
    other = type("PromptTimeline", (), vars(PromptTimeline({0: "a", 9: "b"})) | {"texts": ["a", "b"]})()
    other.as_config = lambda: {"of": "another copy"}
    trace = reading_pipeline(other, num_frames=21, **PLAIN).trace
    assert [chunk.prompt for chunk in trace.chunks] == ["a", "b"] and trace.config["prompt"] == {"of": "another copy"}


class Reading:
    """A reward that notes what it reads: words, and pictures in a clip."""

    reads_prompt = True

    def __init__(self):
        self.calls = []

    def __call__(self, frames, prompt, fps):
        self.calls.append((prompt[0], frames.shape[1]))
        return contrast(frames, prompt, fps)


def test_rewards_and_monitors_read_the_chunks_own_words_and_pictures(reading_pipeline):
    image, video, monitor = Reading(), Reading(), Reading()
    prompt = PromptTimeline({0: "a", 33: "b"})
    rewards = {"image_reward": image, "video_reward": video, "monitors": {"read": monitor}, "output_type": "pt"}
    trace = run(reading_pipeline, prompt, reward_window=3, num_beams=1, num_candidates=2, **rewards).trace
    words = ["a"] * 3 + ["b"] * 4
    assert image.calls == [(word, frames) for word, frames in zip(words, [9] + [12] * 6, strict=True)]
    windows = [9, 21, 33, 12, 24, 36, 36]
    assert monitor.calls == list(zip(words, windows, strict=True))
    assert video.calls[:7] == monitor.calls and video.calls[7:] == [("a", 33), ("b", 48)]
    assert [chunk.prompt for chunk in trace.chunks] == [chunk.reward_prompt for chunk in trace.chunks] == words


def test_the_last_videos_are_scored_part_by_part_with_the_mean_over_frames(reading_pipeline):
    def first_word(frames, prompt, fps):
        return torch.tensor([float(len(text)) for text in prompt])

    prompt = PromptTimeline({0: "a", 33: "bbb"})
    trace = run(reading_pipeline, prompt, video_reward=first_word, num_beams=2, num_candidates=1).trace
    assert trace.final.scores == pytest.approx([(33 * 1 + 48 * 3) / 81] * 2)


def test_rewards_may_read_a_timeline_of_their_own(toy_pipeline, three):
    video = Reading()
    words = PromptTimeline({0: "a", 57: "b"})
    arguments = {"video_reward": video, "reward_prompt": words, "output_type": "latent", "num_beams": 1}
    trace = run(toy_pipeline, PromptTimeline({0: three[0], 21: three[1]}), **arguments).trace
    assert [word for word, _ in video.calls] == ["a"] * 5 + ["b"] * 2 + ["a", "a", "b"]
    assert [frames for _, frames in video.calls] == [9, 21, 12, 24, 36, 12, 24, 21, 36, 24]
    assert [chunk.prompt for chunk in trace.chunks] == [None] * 7
    assert trace.config["reward_prompt"] == {"prompts": {"0": "a", "57": "b"}, "cuts": []}


def test_of_several_videos_some_may_have_reward_words_of_their_own(reading_pipeline):
    video = Reading()
    arguments = {"video_reward": video, "output_type": "latent", "num_beams": 1, "num_candidates": 1}
    output = reading_pipeline(["a", "b"], reward_prompt=["c", None], num_frames=9, **arguments)
    assert {word for word, _ in video.calls[:2]} == {"c"} and {word for word, _ in video.calls[2:]} == {"b"}
    assert [trace.chunks[0].reward_prompt for trace in output.traces] == ["c", "b"]
    assert [trace.config["reward_prompt"] for trace in output.traces] == ["c", "b"]


class Routing(RewardRoutedSink):
    """Notes how many scores its routes are decided by."""

    seen = []

    def route(self, short_scores, long_scores):
        self.seen.append((len(short_scores), len(long_scores)))
        return super().route(short_scores, long_scores)


def test_a_route_sees_the_scores_since_the_last_change(toy_pipeline, three):
    """The first chunk under a new prompt has nothing to be compared with, and is discarded."""
    Routing.seen.clear()
    policy = Routing(quality_threshold=-1e9, transition_threshold=-1e9)
    prompt = PromptTimeline({0: three[0], 33: three[1]})
    trace = run(toy_pipeline, prompt, memory=policy, **SEARCH, num_beams=1, num_candidates=1).trace
    assert Routing.seen == [(2, 2), (3, 3), (2, 2), (3, 3), (4, 4)]
    routes = [chunk.candidates[0].route for chunk in trace.chunks]
    assert routes == [None, "append", "append", "discard", "append", "append", "append"]


def test_a_trace_with_prompts_is_saved_and_one_without_still_loads(reading_pipeline, tmp_path):
    prompt = PromptTimeline({0: "a", 21: "b"})
    trace = run(reading_pipeline, prompt, transition=2, recache="all", **PLAIN).trace
    trace.save(tmp_path / "trace.json")
    assert SearchTrace.load(tmp_path / "trace.json") == trace
    assert trace.config["prompt"] == prompt.as_config() and trace.config["transition"] == 2
    assert trace.config["recache"] == "all"
    content = json.loads((tmp_path / "trace.json").read_text())
    for chunk in content["chunks"]:
        for name in ("prompt", "reward_prompt", "prompt_weight", "is_cut"):
            del chunk[name]
        del chunk["work"]["recached_chunks"]
    (tmp_path / "older.json").write_text(json.dumps(content))
    older = SearchTrace.load(tmp_path / "older.json")
    assert [chunk.prompt for chunk in older.chunks] == [None] * 7 and older.chunks[3].work.recached_chunks == 0


def own_positions(pipe, prompt, **arguments):
    """The rotary tables of every forward's own tokens."""
    tables = []

    def watch(module, args, kwargs):
        tables.append(kwargs["context"].table)

    handle = pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    run(pipe, prompt, memory=StaticSink(positions="relative"), **PLAIN, **arguments)
    handle.remove()
    return tables


def test_a_scene_cut_is_one_chunk_far_from_its_past(toy_pipeline, embeds):
    """Positions 45, 46, 47 for its noisy and its clean passes; the next chunk is back."""
    tables = own_positions(toy_pipeline, PromptTimeline({0: embeds}, cuts=(57,)))
    positions = [rotary_table(range(first, first + 3), 1, 1, 12) for first in (0, 3, 6, 9, 9, 45, 9)]
    expected = [table for table in positions for _ in range(5)][:-1]
    assert all(map(torch.equal, tables, expected)) and len(tables) == len(expected)


def test_a_scene_cut_is_another_video_and_is_recorded(toy_pipeline, embeds):
    policy = StaticSink(positions="relative")
    plain, cut = (
        run(toy_pipeline, PromptTimeline({0: embeds}, cuts=cuts), memory=policy, **PLAIN) for cuts in ((), (57,))
    )
    assert torch.equal(plain.frames[:, :, :15], cut.frames[:, :, :15])
    assert not torch.equal(plain.frames[:, :, 15:18], cut.frames[:, :, 15:18])
    assert [chunk.is_cut for chunk in cut.trace.chunks] == [False] * 5 + [True, False]


@pytest.mark.parametrize("memory", [StaticSink(), SlidingWindow(), StaticSink(positions="relative")])
@pytest.mark.parametrize("recache", ["window", "all", "none", "flush"])
def test_an_estimate_counts_the_recaches_of_the_run(toy_models, three, memory, recache):
    """What it says of operations and bytes: tests/test_estimate.py."""
    pipe = StreamT1Pipeline(None, None, toy_models[0], None, FewStepFlowMatchScheduler())
    pipe.set_progress_bar_config(disable=True)
    given = PLAIN | {"height": 16, "width": 16, "memory": memory, "recache": recache, "transition": 2}
    given |= {"num_inference_steps": 1, "prompt": PromptTimeline({0: three[0], 21: three[1], 57: three[2]})}
    trace = pipe(num_frames=81, **given).trace
    done = sum(chunk.work.recached_chunks for chunk in trace.chunks)
    assert pipe.estimate(num_frames=81, **given).recached_chunks == done and (done > 0) == (
        recache in ("window", "all")
    )


def test_an_estimate_counts_the_recaches_of_roll_outs(toy_models, three):
    pipe = StreamT1Pipeline(None, None, *toy_models, FewStepFlowMatchScheduler())
    pipe.set_progress_bar_config(disable=True)
    given = {"search": Lookahead(BeamSearch(1, 2), chunks=2, steps=1), "image_reward": brightness, "num_frames": 57}
    given |= {"height": 16, "width": 16, "output_type": "latent", "num_inference_steps": 1, "memory": StaticSink()}
    given |= {"prompt": PromptTimeline({0: three[0], 33: three[1]})}
    done = [chunk.work.recached_chunks for chunk in pipe(**given).trace.chunks]
    assert done == [0, 6, 6, 3, 0] and pipe.estimate(**given).recached_chunks == 15
