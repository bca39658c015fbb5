"""A past that is given: a run that begins with another run's chunks goes on as that run did."""

import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import brightness, contrast, toy_transformer, toy_vae
from lossless_vae import lossless_vae

from stream_t1 import FewStepFlowMatchScheduler, PromptTimeline, StreamT1Pipeline
from stream_t1.models.streaming_encoder import StreamingWanEncoder
from stream_t1.search import (
    Backtracking,
    BeamSearch,
    BestOfN,
    EarlyPruning,
    EMASink,
    Lookahead,
    ParticleSearch,
    RewardRoutedSink,
)

PLAIN = {"num_beams": 1, "num_candidates": 1}
NOISE = torch.randn(1, 4, 18, 2, 2, generator=torch.Generator().manual_seed(7))
ROUTES = RewardRoutedSink(quality_threshold=0.0, transition_threshold=0.0)
SEARCHES = {
    "beam": {"num_beams": 1, "num_candidates": 3},
    "early pruning": {"search": EarlyPruning(3, keep=2, after_step=2)},
}


def toy(vae=None, **config):
    vae = toy_vae(z_dim=4) if vae is None else vae
    sizes = {"default_height": 16, "default_width": 16, "window_frames": 9}
    pipe = StreamT1Pipeline(None, None, toy_transformer(), vae, FewStepFlowMatchScheduler(), **{**sizes, **config})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return toy()


@pytest.fixture
def made(pipe, embeds):
    """Makes a video of six chunks, or of another length, from a fixed seed."""

    def make(pipe=pipe, **arguments):
        defaults = {"num_frames": 69, "generator": torch.Generator().manual_seed(4), "noise_correlation": 0.0}
        rewards = {"image_reward": brightness, "video_reward": contrast, "output_type": "latent"}
        return pipe(prompt_embeds=embeds, **{**defaults, **rewards, **arguments})

    return make


def record(trace, num_given=0):
    """What was scored, remembered and, after the given chunks, drawn for each chunk."""
    return [
        [[(c.short, c.long, c.score, c.route, c.kept) for c in chunk.candidates], chunk.evicted, chunk.sinks]
        + [[c.seed for c in chunk.candidates if index >= num_given]]
        for index, chunk in enumerate(trace.chunks)
    ]


@pytest.mark.parametrize("num_given", [1, 2, 4, 5])
def test_a_run_that_is_given_another_ones_first_chunks_and_noise_is_that_run_bit_for_bit(made, num_given):
    whole = made(**PLAIN, latents=NOISE, memory=ROUTES)
    again = made(**PLAIN, latents=NOISE, memory=ROUTES, video_latents=whole.frames[:, :, : 3 * num_given])
    assert torch.equal(again.frames, whole.frames)
    assert record(again.trace, num_given) == record(whole.trace, num_given)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_goes_on_from_a_given_past_as_it_did_from_its_own(made, search):
    whole = made(**SEARCHES[search], memory=ROUTES)
    again = made(**SEARCHES[search], memory=ROUTES, video_latents=whole.frames[:, :, :6])
    assert torch.equal(again.frames, whole.frames)
    made_later = [
        [[(c.seed, c.route, c.kept) for c in chunk.candidates] for chunk in run.trace.chunks[2:]]
        for run in (again, whole)
    ]
    assert made_later[0] == made_later[1]
    scores = [[c.score for chunk in run.trace.chunks[2:] for c in chunk.candidates] for run in (again, whole)]
    # A given chunk is decoded alone, and a candidate's beside others: the decodes differ in their last bits.
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("form", ["pt", "np", "pil"])
def test_a_run_that_is_given_its_own_frames_through_a_lossless_vae_is_that_run_bit_for_bit(made, form):
    exact = toy(lossless_vae())
    whole = made(exact, **PLAIN, latents=NOISE, output_type=form)
    video = list(whole.frames[0][:21]) if form == "pil" else whole.frames[0][:21]
    again = made(exact, **PLAIN, latents=NOISE, video=video, output_type=form)
    assert record(again.trace, 2) == record(whole.trace, 2)
    same = torch.equal if form == "pt" else np.array_equal
    assert same(again.frames, whole.frames) if form != "pil" else again.frames == whole.frames


def test_the_first_frames_are_the_decode_of_what_was_given_and_not_the_pixels(pipe, made):
    pixels = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    latents = StreamingWanEncoder(pipe.vae).encode(pixels, (16, 16))[None]
    of_pixels = made(**PLAIN, video=pixels, output_type="pt").frames
    assert torch.equal(of_pixels, made(**PLAIN, video_latents=latents, output_type="pt").frames)
    assert torch.equal(made(**PLAIN, video=pixels).frames[:, :, :3], latents)
    assert not torch.allclose(of_pixels[0, :9], pixels, atol=0.01)


def test_noise_after_a_given_chunk_is_fresh(made):
    given = made(**PLAIN).frames[:, :, :3]
    runs = [made(**PLAIN, video_latents=given, num_frames=21, noise_correlation=beta) for beta in (0.0, 0.9)]
    assert torch.equal(runs[0].frames, runs[1].frames)


def test_given_chunks_are_scored_once_and_cost_one_clean_pass_and_no_forward(made):
    trace = made(num_beams=2, num_candidates=2, video=torch.zeros(21, 3, 16, 16), num_frames=45).trace
    work = [chunk.work for chunk in trace.chunks]
    assert [each.forwards for each in work] == [0, 0, 16, 16]
    assert [each.clean_passes for each in work] == [1, 1, 2, 0]
    assert [each.latents_decoded for each in work] == [3, 3, 12, 12]
    assert [each.frames_scored for each in work] == [18, 12 + 21, 4 * (12 + 33), 4 * (12 + 45)]
    assert [each.latents_encoded for each in work] == [6, 0, 0, 0]
    (given,) = trace.chunks[1].candidates
    assert (given.own, given.step, given.seed, given.kept_as, given.parent) == (["given"], 0, trace.seed, [0], 0)
    assert given.short is not None and given.long is not None and given.route is not None
    assert trace.config["given"] == "video" and trace.config["num_given_chunks"] == 2


def test_several_prompts_share_the_given_past_which_is_encoded_once(pipe):
    embeds = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3))
    output = pipe(prompt_embeds=embeds, num_frames=21, video=torch.zeros(9, 3, 16, 16), output_type="latent", **PLAIN)
    assert torch.equal(output.frames[0, :, :3], output.frames[1, :, :3])
    assert not torch.equal(output.frames[0, :, 3:], output.frames[1, :, 3:])
    assert [trace.chunks[0].work.latents_encoded for trace in output.traces] == [3, 0]


def test_a_stream_gives_the_given_chunks_first_and_is_the_call(pipe, made, embeds):
    given = made(**PLAIN).frames[:, :, :6]
    arguments = {"prompt_embeds": embeds, "image_reward": brightness, "video_reward": contrast, "num_frames": 45}
    arguments |= {"video_latents": given, "output_type": "latent", "num_beams": 2, "num_candidates": 2}
    forwards = []
    pipe.transformer.register_forward_pre_hook(lambda *_: forwards.append(1))
    stream = pipe.stream(generator=torch.Generator().manual_seed(4), **arguments)
    first = [next(stream).frames for _ in range(2)]
    assert torch.equal(torch.cat(first, dim=1), given[0]) and len(forwards) == 2
    rest = [chunk.frames for chunk in stream]
    whole = pipe(generator=torch.Generator().manual_seed(4), **arguments).frames[0]
    assert torch.equal(torch.cat([*first, *rest], dim=1), whole)


def test_an_endless_stream_begins_with_what_is_given(pipe, made, embeds):
    given = made(**PLAIN).frames[:, :, :6]
    arguments = {"num_frames": None, "horizon": 3, "memory": EMASink(), "output_type": "latent", **PLAIN}
    stream = pipe.stream(prompt_embeds=embeds, video_latents=given, **arguments)
    chunks = [chunk.frames for chunk in itertools.islice(stream, 5)]
    stream.close()
    assert torch.equal(torch.cat(chunks[:2], dim=1), given[0])


def test_steps_of_ones_own_begin_after_the_given_chunks(pipe, made, embeds):
    given = made(**PLAIN).frames[:, :, :6]
    arguments = {"prompt_embeds": embeds, "video_latents": given, "output_type": "latent", **PLAIN}
    steps, beams = pipe.steps(num_frames=45, **arguments)
    assert steps.chunk_index == 2 and torch.equal(torch.cat(beams[0].latents, dim=1), given[0])
    assert steps.commit(beams, steps.denoise(beams, steps.propose(beams, 1)))[0].depth == 3


@pytest.mark.parametrize("search", [BestOfN(3), ParticleSearch(3, strength=0.0)])
def test_videos_that_are_made_side_by_side_are_those_of_single_calls_with_the_same_past(made, search):
    given, generator = made(**PLAIN).frames[:, :, :6], torch.Generator().manual_seed(5)
    arguments = {"video_latents": given, "num_frames": 45, "final_selection": "score", "video_reward": False}
    together = made(search=search, num_videos_per_prompt=3, generator=torch.Generator().manual_seed(5), **arguments)
    single = [made(**PLAIN, generator=generator, **arguments).frames[0] for _ in range(3)]
    found = [together.frames[place] for place in torch.tensor(together.trace.final.order).argsort()]
    assert all(torch.equal(a, b) for a, b in zip(found, single, strict=True))


def test_a_particle_search_goes_on_from_a_given_past(made):
    given = made(**PLAIN).frames[:, :, :6]
    output = made(search=ParticleSearch(3, strength=2.0), video_latents=given, num_frames=45)
    assert torch.equal(output.frames[:, :, :6], given)


def test_a_search_that_goes_back_stays_behind_a_given_past(pipe, made, embeds):
    given = made(**PLAIN).frames[:, :, :6]
    search = Backtracking(BeamSearch(1, 2), bound=1e9, depth=2, retries=1)  # no score is enough
    arguments = {"prompt_embeds": embeds, "video_latents": given, "num_frames": 57, "search": search}
    arguments |= {"image_reward": brightness, "video_reward": False, "output_type": "latent"}
    stream = pipe.stream(generator=torch.Generator().manual_seed(4), **arguments)
    chunks = [chunk.frames for chunk in stream]
    assert torch.equal(torch.cat(chunks[:2], dim=1), given[0]) and len(chunks) == 5
    trace = pipe(generator=torch.Generator().manual_seed(4), **arguments).trace
    assert [len(chunk.candidates) for chunk in trace.chunks[:2]] == [1, 1]
    assert torch.equal(
        torch.cat(chunks, dim=1), pipe(generator=torch.Generator().manual_seed(4), **arguments).frames[0]
    )


def test_a_search_looks_ahead_from_a_held_frame_and_from_a_given_past(made):
    search = Lookahead(BeamSearch(1, 2), chunks=1)
    image = torch.zeros(1, 4, 1, 2, 2)
    assert torch.equal(made(search=search, image_latents=image, num_frames=33).frames[:, :, :1], image)
    given = made(**PLAIN).frames[:, :, :6]
    assert torch.equal(made(search=search, video_latents=given, num_frames=45).frames[:, :, :6], given)


def test_prompts_may_change_in_the_given_past_and_after_it(pipe, embeds):
    other = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(9))
    timeline = PromptTimeline({0: embeds, 9: other, 33: embeds})  # at chunks 1 and 3
    arguments = {"prompt": timeline, "num_frames": 57, "latents": NOISE[:, :, :15], "output_type": "latent", **PLAIN}
    runs = [pipe(generator=torch.Generator().manual_seed(4), **arguments)]
    given = runs[0].frames[:, :, :6]
    runs.append(pipe(generator=torch.Generator().manual_seed(4), video_latents=given, **arguments))
    assert torch.equal(runs[1].frames, runs[0].frames)
    assert [chunk.work.recached_chunks for chunk in runs[1].trace.chunks] == [0, 1, 0, 3, 0]


def test_the_chunks_callback_is_not_asked_about_given_chunks(made):
    given, asked = made(**PLAIN).frames[:, :, :6], []
    made(video_latents=given, num_frames=45, callback_on_chunk_end=lambda _, index, state: asked.append(index))
    assert asked == [2, 3]


def test_output_latent_0_is_the_image_exactly_in_every_candidate(pipe, made):
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    latent = StreamingWanEncoder(pipe.vae).encode(image[None], (16, 16))
    tried = []

    def look(pipe, chunk_index, state):
        tried.extend(candidate.latents for candidate in state["candidates"] if chunk_index == 0)

    output = made(image=image, num_beams=2, num_candidates=2, num_frames=21, callback_on_chunk_end=look)
    assert torch.equal(output.frames[0][:, :1], latent) and output.trace.config["num_given_chunks"] == 0
    assert len(tried) == 4 and all(torch.equal(latents[:, :1], latent) for latents in tried)
    assert [chunk.work.forwards for chunk in output.trace.chunks] == [16, 16]


def test_a_held_frame_is_read_at_timestep_0_and_the_others_at_theirs_in_chunk_0_alone(pipe, made):
    seen = []

    def note(module, args, kwargs):
        seen.append((kwargs["timestep"], kwargs["hidden_states"][:, :, 0]))

    image = torch.zeros(1, 4, 1, 2, 2)
    handle = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    made(**PLAIN, image_latents=image, num_frames=21, num_inference_steps=2)
    handle.remove()
    *denoised, clean_pass, later, _ = seen
    assert [timesteps.shape for timesteps, _ in denoised] == [(1, 3), (1, 3)]  # one token a frame
    assert all(timesteps[0].tolist() == [0.0, *timesteps[0, 1:].tolist()] for timesteps, _ in denoised)
    assert all(timesteps[0, 1] == timesteps[0, 2] > 0 for timesteps, _ in denoised)
    assert all(torch.equal(first, image[:, :, 0]) for _, first in denoised)
    assert clean_pass[0].tolist() == [0.0] and later[0].shape == (1,)


def test_a_held_frame_withstands_a_callback_and_a_halt_between_steps(pipe, embeds):
    image = torch.full((1, 4, 1, 2, 2), 0.5)
    arguments = {"prompt_embeds": embeds, "num_frames": 9, "image_latents": image, "output_type": "latent", **PLAIN}
    output = pipe(callback_on_step_end=lambda *given: {"latents": given[3]["latents"] + 1.0}, **arguments)
    assert torch.equal(output.frames[:, :, :1], image)
    steps, beams = pipe.steps(**arguments)
    candidates = steps.propose(beams, 1)
    halted = steps.denoise(beams, steps.denoise(beams, candidates, until=2))
    assert torch.equal(steps.denoise(beams, candidates, until=2)[0].prediction[:, :1], image[0])
    torch.testing.assert_close(halted[0].latents, steps.denoise(beams, candidates)[0].latents)


def test_where_chunks_are_single_frames_an_image_is_the_first_chunk(embeds):
    framewise, image = toy(chunk_frames=1), torch.rand(3, 16, 16)
    latent = StreamingWanEncoder(framewise.vae).encode(image[None], (16, 16))
    output = framewise(prompt_embeds=embeds, image=image, num_frames=13, output_type="latent", **PLAIN)
    assert torch.equal(output.frames[0][:, :1], latent)
    assert [chunk.work.forwards for chunk in output.trace.chunks] == [0, 4, 4, 4]
    assert [chunk.work.clean_passes for chunk in output.trace.chunks] == [1, 1, 1, 0]


@pytest.mark.parametrize("form", ["pil", "array", "tensor", "batch", "path"])
def test_an_image_may_have_any_usual_form(made, form, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(array)
    picture.save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = {"pil": picture, "array": array, "tensor": tensor, "batch": tensor[None] / 255.0}
    image = {**forms, "path": tmp_path / "a.png"}[form]
    expected = made(**PLAIN, image=array.astype(np.float32) / 255.0, num_frames=9).frames
    assert torch.equal(made(**PLAIN, image=image, num_frames=9).frames, expected)


def test_the_video_has_the_size_of_what_is_given(made):
    assert made(**PLAIN, image=np.zeros((32, 48, 3)), num_frames=9).frames.shape == (1, 4, 3, 4, 6)
    assert made(**PLAIN, video_latents=torch.zeros(1, 4, 3, 4, 2), num_frames=21).frames.shape == (1, 4, 6, 4, 2)


def test_a_crop_scales_until_the_size_is_covered_and_takes_the_middle(pipe, made):
    picture = torch.zeros(3, 40, 90)
    picture[:, :, 25:65] = 1.0  # the middle square, black beside it
    output = made(**PLAIN, image=picture, resize="crop", num_frames=9, height=16, width=16)
    white = StreamingWanEncoder(pipe.vae).encode(torch.ones(1, 3, 16, 16), (16, 16))
    torch.testing.assert_close(output.frames[0][:, :1], white, atol=2e-2, rtol=0)  # the edges are smoothed


def test_a_crop_of_what_fits_no_model_takes_the_models_own_size(made):
    assert made(**PLAIN, image=np.zeros((33, 50, 3)), resize="crop", num_frames=9).frames.shape == (1, 4, 3, 2, 2)
    assert made(**PLAIN, image=np.zeros((32, 48, 3)), resize="crop", num_frames=9).frames.shape == (1, 4, 3, 4, 6)
