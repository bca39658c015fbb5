"""The steps of a chunk: values in, values out."""

from dataclasses import fields, replace

import pytest
import torch
from conftest import brightness, contrast

from stream_t1.search import BeamSearch, StaticSink, rank
from stream_t1.search.beam import RELEASED

REWARDS = {"image_reward": brightness, "video_reward": contrast}
NOBODY = {"image_reward": False, "video_reward": False}


def begin(pipe, embeds, **arguments):
    seeded = torch.Generator().manual_seed(3)
    return pipe.steps(prompt_embeds=embeds, **{"num_frames": 57, "generator": seeded, **REWARDS, **arguments})


def after(steps, beams, num_chunks, counts=2, num_beams=2):
    """The steps and beams after so many chunks of beam search."""
    for _ in range(num_chunks):
        candidates = steps.score(beams, steps.denoise(beams, steps.propose(beams, counts)))
        beams = steps.commit(beams, [candidates[index] for index in rank(candidates)[:num_beams]])
        steps = steps.ahead()
    return steps, beams


def contents(value):
    """A beam's or a candidate's fields, by identity, which tell whether anything was replaced in it."""
    return [getattr(value, field.name) for field in fields(value)]


def test_a_loop_of_the_steps_is_the_pipelines_own(toy_pipeline, embeds):
    seeded = torch.Generator().manual_seed(3)
    called = toy_pipeline(
        prompt_embeds=embeds, num_frames=57, generator=seeded, num_videos_per_prompt=2, output_type="pt", **REWARDS
    )
    steps, beams = begin(toy_pipeline, embeds)
    while True:
        candidates = steps.denoise(beams, steps.propose(beams, [4] if steps.chunk_index == 0 else [2, 2]))
        candidates = steps.score(beams, candidates)
        beams = steps.commit(beams, [candidates[index] for index in rank(candidates)[:2]])
        if steps.is_last:
            break
        steps = steps.ahead()
    videos = [torch.cat(beams[index].frames).float() / 255 for index in called.trace.final.order]
    assert torch.equal(torch.stack(videos), called.frames)
    work = [chunk.work for chunk in called.trace.chunks]
    assert steps.work.chunk_forwards == sum(chunk.chunk_forwards for chunk in work)
    assert steps.work.frames_scored == sum(chunk.frames_scored for chunk in work)


def test_no_step_writes_into_beams_or_candidates(toy_pipeline, embeds):
    steps, beams = after(*begin(toy_pipeline, embeds), num_chunks=4)
    given = list(beams)
    tensors = [t for beam in beams for chunk in (*beam.memory.sinks, *beam.memory.window) for t in (chunk.key,)]
    before = [contents(beam) for beam in beams], [tensor.clone() for tensor in tensors]
    stages = [steps.propose(beams, 2)]
    for step in (lambda c: steps.denoise(beams, c, until=2), lambda c: steps.decode(beams, c)):
        stages.append(step(stages[-1]))
    stages.append(steps.denoise(beams, stages[-1]))
    stages.append(steps.score(beams, stages[-1]))
    seen = [[contents(candidate) for candidate in stage] for stage in stages]
    steps.commit(beams, stages[-1][:2])
    assert beams == given
    for beam, kept in zip(beams, before[0], strict=True):
        assert all(a is b for a, b in zip(contents(beam), kept, strict=True))
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(tensors, before[1], strict=True))
    for stage, kept in zip(stages, seen, strict=True):
        for candidate, values in zip(stage, kept, strict=True):
            assert all(a is b for a, b in zip(contents(candidate), values, strict=True))


@pytest.mark.parametrize("stops", [(1,), (2,), (3,), (1, 2, 3), (4,)])
def test_denoising_in_parts_is_denoising_at_once(toy_pipeline, embeds, stops):
    steps, beams = after(*begin(toy_pipeline, embeds), num_chunks=2)
    whole = steps.denoise(beams, steps.propose(beams, 3))
    parts = steps.propose(beams, 3)
    for stop in stops:
        parts = steps.denoise(beams, parts, until=stop)
        assert all(c.step == stop and c.is_finished == (stop == 4) for c in parts)
    parts = steps.denoise(beams, parts)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.latents, other.latents)


def test_what_is_there_already_is_not_run_again(toy_pipeline, embeds):
    steps, beams = begin(toy_pipeline, embeds)
    first, *rest = steps.denoise(beams, steps.propose(beams, 3), until=2)
    done = steps.denoise(beams, [first])
    assert steps.work.forwards == 3 * 2 + 2
    mixed = steps.denoise(beams, [*done, *rest])
    assert mixed[0] is done[0] and steps.work.forwards == 3 * 2 + 2 + 2 * 2
    assert steps.denoise(beams, mixed) == mixed and steps.work.forwards == 12


def test_a_prediction_is_decoded_scored_and_continued(toy_pipeline, embeds):
    steps, beams = after(*begin(toy_pipeline, embeds), num_chunks=1)
    early = steps.score(beams, steps.denoise(beams, steps.propose(beams, 2), until=1))
    assert all(c.latents is None and c.frames is not None and c.score is not None for c in early)
    late = steps.denoise(beams, early)
    assert all(c.frames is c.score is c.route is c.decoder_state is None and c.parts == {} for c in late)
    scored = steps.score(beams, late)
    straight = steps.score(beams, steps.denoise(beams, steps.propose(beams, 2)))
    assert [c.score for c in scored] == [c.score for c in straight] != [c.score for c in early]


def test_nothing_is_decoded_or_scored_twice(toy_pipeline, embeds):
    steps, beams = begin(toy_pipeline, embeds)
    scored = steps.score(beams, steps.denoise(beams, steps.propose(beams, 3)))
    counted = steps.work.latents_decoded, steps.work.frames_scored
    again = steps.score(beams, steps.decode(beams, scored))
    assert all(one is other for one, other in zip(again, scored, strict=True))
    assert (steps.work.latents_decoded, steps.work.frames_scored) == counted


def test_other_rewards_and_words_score_again(toy_pipeline, embeds):
    read = []

    def reader(frames, prompt, fps):
        read.extend(prompt)
        return torch.full((len(frames),), 7.0)

    steps, beams = begin(toy_pipeline, embeds, reward_prompt="a dog")
    scored = steps.score(beams, steps.denoise(beams, steps.propose(beams, 2)))
    other = steps.score(beams, scored, image_reward=reader, video_reward=False, prompt="a cat")
    assert [(c.short, c.long, c.score) for c in other] == [(7.0, None, 7.0)] * 2
    assert read == ["a cat"] * 2 and all(c.frames is s.frames for c, s in zip(other, scored, strict=True))


@pytest.mark.parametrize("run, own", [("image_reward", "video_reward"), ("video_reward", "image_reward")])
def test_rewards_of_a_step_are_fused_by_what_they_are(toy_pipeline, embeds, run, own):
    """Chunk 1 of 5: the short score weighs a quarter where both rewards score, and all or nothing where one does."""
    steps, beams = begin(toy_pipeline, embeds, **{run: brightness, own: False})
    steps, beams = after(steps, beams, num_chunks=1)
    scored = steps.score(beams, steps.denoise(beams, steps.propose(beams, 2)), **{own: contrast})
    for candidate in scored:
        assert candidate.score == pytest.approx(0.25 * candidate.short + 0.75 * candidate.long)


def test_a_step_takes_rewards_and_no_names_of_them(toy_pipeline, embeds):
    steps, beams = begin(toy_pipeline, embeds)
    with pytest.raises(TypeError, match="`image_reward` of a step is 'org/name'; load it first"):
        steps.score(beams, steps.denoise(beams, steps.propose(beams, 1)), image_reward="org/name")


def test_nothing_is_decoded_after_a_chunk_that_was_not(toy_pipeline, embeds):
    steps, beams = begin(toy_pipeline, embeds)
    beams = steps.commit(beams, steps.denoise(beams, steps.propose(beams, 1)))
    later = steps.ahead()
    with pytest.raises(ValueError, match="its last chunk was never decoded"):
        later.score(beams, later.denoise(beams, later.propose(beams, 1)))


def test_steps_of_another_chunk_are_noticed(toy_pipeline, embeds):
    steps, beams = begin(toy_pipeline, embeds)
    candidates = steps.score(beams, steps.denoise(beams, steps.propose(beams, 1)))
    grown = steps.commit(beams, candidates)
    for step in (lambda: steps.propose(grown, 1), lambda: steps.commit(grown, candidates)):
        with pytest.raises(ValueError, match="steps of chunk 0, and a beam has 1 chunks.*ahead"):
            step()
    with pytest.raises(ValueError, match="is of no beam here: these are the steps of chunk 1"):
        steps.ahead().commit(grown, candidates)
    with pytest.raises(ValueError, match="parent=3.*is of no beam here"):
        steps.commit(beams, [replace(candidates[0], parent=3)])


def test_a_later_round_draws_what_more_candidates_would_have_drawn(toy_pipeline, embeds):
    steps, beams = after(*begin(toy_pipeline, embeds), num_chunks=1)
    many = steps.propose(beams, [4, 4])
    first, second = steps.propose(beams, [2, 2]), steps.propose(beams, [2, 2], first=2)
    assert [c.seed for c in (*first[:2], *second[:2])] == [c.seed for c in many[:4]]
    assert torch.equal(second[0].noise, many[2].noise) and torch.equal(second[0].renoise[1], many[2].renoise[1])


def test_noise_of_a_searchs_own_is_taken(toy_pipeline, embeds):
    steps, beams = begin(toy_pipeline, embeds)
    one, other = steps.propose(beams, 2)
    twin = replace(other, noise=one.noise, renoise=one.renoise)
    same, expected = (steps.denoise(beams, [candidate])[0].latents for candidate in (twin, one))
    assert torch.equal(same, expected)


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_draw_acts_from_its_own_step_on(toy_pipeline, embeds, changed):
    """Draw n is added after step n, so that it changes what step n + 1 predicts, also in a candidate that is there."""
    steps, beams = begin(toy_pipeline, embeds)
    one, other = steps.propose(beams, 2)
    mixed = list(one.renoise)
    mixed[changed] = other.renoise[changed]
    (there,) = steps.denoise(beams, [one], until=changed + 1)
    (mutated,) = steps.denoise(beams, [replace(one, renoise=tuple(mixed))], until=changed + 1)
    assert torch.equal(there.prediction, mutated.prediction)
    (went_on,) = steps.denoise(beams, [replace(there, renoise=tuple(mixed))])
    (at_once,) = steps.denoise(beams, [replace(one, renoise=tuple(mixed))])
    assert torch.equal(went_on.latents, at_once.latents)
    assert not torch.equal(went_on.latents, steps.denoise(beams, [one])[0].latents)


def test_a_memory_of_a_searchs_own_is_read_and_grown(toy_pipeline, embeds):
    steps, beams = after(*begin(toy_pipeline, embeds, num_frames=69, memory=StaticSink()), num_chunks=4)
    drawn = steps.propose(beams, [1, 0])[0]
    forgetful = replace(beams[0].memory, window=beams[0].memory.window[-1:])
    own, as_usual = steps.denoise(beams, [replace(drawn, memory=forgetful), drawn])
    assert not torch.allclose(own.latents, as_usual.latents, atol=1e-4)
    grown = steps.commit(beams, steps.decode(beams, [own, as_usual]))
    assert [chunk.index for chunk in grown[0].memory.window] == [3, 4]
    assert grown[0].memory.window[0] is forgetful.window[0]
    assert [chunk.index for chunk in grown[1].memory.window] == [3, 4] and grown[1].evicted[0][0] == 2
    assert steps.work.clean_passes == 4 * 2 + 2


def test_an_empty_decoder_state_is_not_one_that_was_let_go(toy_pipeline, embeds):
    steps, beams = begin(toy_pipeline, embeds)
    assert beams[0].decoder_state is None
    candidates = steps.denoise(beams, steps.propose(beams, 1))
    assert steps.decode(beams, candidates)[0].frames.shape == (9, 3, 16, 16)
    with pytest.raises(ValueError, match="decoder state of beam 0 was let go"):
        steps.decode([replace(beams[0], decoder_state=RELEASED)], candidates)


def test_a_memory_that_was_let_go_is_not_an_empty_one(toy_pipeline, embeds):
    steps, beams = begin(toy_pipeline, embeds)
    gone = [replace(beams[0], memory=RELEASED)]
    with pytest.raises(ValueError, match="memory of beam 0 was let go"):
        steps.denoise(gone, steps.propose(gone, 1))
    finished = steps.denoise(beams, steps.propose(beams, 1))
    with pytest.raises(ValueError, match="memory of beam 0 was let go"):
        steps.commit(gone, finished)


def test_a_roll_out_is_counted_where_it_is_made_and_keeps_nothing(toy_pipeline, embeds):
    steps, beams = after(*begin(toy_pipeline, embeds), num_chunks=1)
    done = steps.work.chunk_forwards
    candidates = steps.score(beams, steps.denoise(beams, steps.propose(beams, [1, 1])))
    ahead = steps.ahead(num_steps=2)
    later = steps.commit(beams, candidates)
    seen = ahead.score(later, ahead.denoise(later, ahead.propose(later, [1, 1])))
    assert ahead.num_steps == 2 and all(c.is_finished and c.step == 2 for c in seen)
    assert steps.work is ahead.work and steps.work.chunk_forwards == done + 2 * 4 + 2 + 2 * 2
    assert [beam.depth for beam in (*beams, *later)] == [1, 1, 2, 2]


def test_the_steps_say_where_the_search_is(toy_pipeline, embeds):
    steps, beams = begin(toy_pipeline, embeds, num_inference_steps=3)
    assert (steps.chunk_index, steps.num_chunks, steps.num_steps, steps.prompt) == (0, 5, 3, None)
    last, beams = after(steps, beams, num_chunks=4)
    assert (last.chunk_index, last.is_last, beams[0].depth) == (4, True, 4)
    with pytest.raises(ValueError, match="Chunk 4 is the video's last"):
        last.ahead()


def test_a_search_draws_from_a_stream_of_its_own_that_a_seed_repeats(toy_pipeline, embeds):
    draws = []
    for _ in range(2):
        steps, beams = begin(toy_pipeline, embeds)
        draws.append([torch.rand(3, generator=steps.generator) for _ in range(2)])
        draws[-1].append(torch.rand(3, generator=steps.ahead().generator))
    assert all(torch.equal(one, other) for one, other in zip(*draws, strict=True))
    assert len({float(draw[0]) for draw in draws[0]}) == 3


def test_denoising_continues_from_a_callbacks_latents(toy_pipeline, embeds):
    def halve(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] / 2} if step == 1 else {}

    steps, beams = begin(toy_pipeline, embeds, callback_on_step_end=halve)
    whole = steps.denoise(beams, steps.propose(beams, 2))
    parts = steps.denoise(beams, steps.propose(beams, 2), until=2)
    assert all(candidate.noisy is not None for candidate in parts)
    for one, other in zip(whole, steps.denoise(beams, parts), strict=True):
        assert torch.equal(one.latents, other.latents) and other.noisy is None


def test_a_prompt_that_a_callback_changes_changes_for_all_beams_of_a_chunk_alike(toy_pipeline, embeds):
    asked, read = [], []

    def once(pipe, step, timestep, tensors):
        asked.append(step)
        return {"prompt_embeds": embeds + 1} if len(asked) == 6 else {}

    def note(module, args, kwargs):
        read.append((float(kwargs["timestep"][0]), bool(torch.equal(kwargs["encoder_hidden_states"], embeds))))

    handle = toy_pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    toy_pipeline(
        prompt_embeds=embeds,
        num_frames=33,
        callback_on_step_end=once,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
        **REWARDS,
    )
    handle.remove()
    of_chunk_1 = read[6:16]  # after four steps and two clean passes
    first, second, passes = of_chunk_1[:4], of_chunk_1[4:8], of_chunk_1[8:]
    assert [is_old for _, is_old in first] == [is_old for _, is_old in second] == [True, True, False, False]
    assert passes == [(0.0, False)] * 2 and not any(is_old for _, is_old in read[16:])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda s, b: s.propose(b, [1, 1]), ValueError, "`counts` has 2 numbers for 1 beams"),
        (lambda s, b: s.propose(b, 1.5), TypeError, "`counts` is 1.5"),
        (lambda s, b: s.propose(b, [-1]), ValueError, "`counts` is -1"),
        (lambda s, b: s.propose(b, 1, first=-1), ValueError, "`first` is -1"),
        (lambda s, b: s.denoise(b, s.propose(b, 1), until=5), ValueError, "`until` is 5; it must be 4 or less"),
        (lambda s, b: s.denoise(b, s.propose(b, 1), until=0), ValueError, "`until` is 0"),
        (lambda s, b: s.commit(b, s.propose(b, 1)), ValueError, "Candidate 0 is lost or unfinished"),
        (lambda s, b: s.ahead(num_steps=9), ValueError, "`num_steps` is 9; it must be 8 or less"),
    ],
)
def test_an_invalid_step_is_refused(toy_pipeline, embeds, call, error, message):
    with pytest.raises(error, match=message):
        call(*begin(toy_pipeline, embeds))


def test_steps_are_of_one_prompt(toy_pipeline, embeds):
    with pytest.raises(ValueError, match="`steps` is for one video of one prompt; there are 2"):
        begin(toy_pipeline, torch.cat((embeds, embeds)))


# One reward alone, or none


def test_an_image_reward_alone_ranks_every_chunk_chunk_0_too(toy_pipeline, embeds):
    trace = toy_pipeline(
        prompt_embeds=embeds,
        num_frames=57,
        image_reward=brightness,
        video_reward=False,
        num_beams=2,
        num_candidates=4,
        generator=torch.Generator().manual_seed(0),
    ).trace
    for chunk in trace.chunks:
        kept = sorted(c.short for c in chunk.candidates if c.kept)
        assert kept == sorted(c.short for c in chunk.candidates)[-2:]
        assert chunk.fusion_weight == 1.0
        assert all(c.long is None and c.score == c.short for c in chunk.candidates)


def test_an_image_reward_alone_orders_the_last_beams_by_its_mean(toy_pipeline, embeds):
    output = toy_pipeline(
        prompt_embeds=embeds,
        num_frames=57,
        image_reward=contrast,
        video_reward=False,
        num_beams=3,
        num_videos_per_prompt=3,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )
    chunks = [video.split([9, 12, 12, 12, 12]) for video in output.frames]
    means = [sum(float(contrast(chunk[None], [""], 16.0)) for chunk in video) / 5 for video in chunks]
    final = output.trace.final
    assert final.selection == "image_reward" and final.scores == pytest.approx(means)
    assert final.scores == sorted(final.scores, reverse=True)


def test_a_video_reward_alone_is_the_score(toy_pipeline, embeds):
    trace = toy_pipeline(prompt_embeds=embeds, num_frames=33, image_reward=False, video_reward=contrast).trace
    for chunk in trace.chunks:
        assert all(c.short is None and c.score == c.long for c in chunk.candidates) and chunk.fusion_weight == 0.0


def test_an_absent_reward_has_no_say_in_routes(toy_pipeline, embeds):
    seen = []

    class Noting(StaticSink):
        def route(self, short_scores, long_scores):
            seen.append((short_scores, long_scores))
            return super().route(short_scores, long_scores)

    toy_pipeline(prompt_embeds=embeds, num_frames=21, image_reward=brightness, video_reward=False, memory=Noting())
    assert len(seen) == 4
    assert all(long_scores == (0.0, 0.0) and 0.0 not in short_scores for short_scores, long_scores in seen)


def test_without_any_reward_a_call_that_names_no_numbers_is_a_plain_sample(toy_pipeline, embeds, caplog):
    plain = toy_pipeline(prompt_embeds=embeds, num_frames=33, generator=torch.Generator().manual_seed(1))
    named = toy_pipeline(
        prompt_embeds=embeds, num_frames=33, generator=torch.Generator().manual_seed(1), num_beams=1, num_candidates=1
    )
    assert (plain.frames == named.frames).all() and plain.trace.config["num_beams"] == 1
    assert caplog.text == "" and plain.trace.chunks[0].candidates[0].short is None


def test_without_any_reward_beams_that_drop_nothing_are_made(toy_pipeline, embeds):
    output = toy_pipeline(prompt_embeds=embeds, num_frames=21, num_beams=2, num_videos_per_prompt=2, **NOBODY)
    assert output.frames.shape[0] == 2
    assert toy_pipeline(prompt_embeds=embeds, num_frames=9, search=BeamSearch(3, 1)).trace.config["num_beams"] == 3
