"""The shipped model through the pipeline, the command line and the examples."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from PIL import Image
from tiny_rewards import save_reward, videoalign_reward
from transformers import UMT5EncoderModel

from stream_t1.__main__ import main
from stream_t1.commands.video import write_video
from stream_t1.demo import CHECKPOINT, load_pipeline, vocabulary_note
from stream_t1.demo.checker import check
from stream_t1.demo.clips import parse_caption, render_clip
from stream_t1.search import SearchTrace

PROMPT = "a red circle moving left on a white background"
EXAMPLES = Path(__file__).parent.parent / "examples"
LARGEST_JUMP = 5.0  # pixels between frames; 1.7 was measured, and 14 and more if another sample follows the clip


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_model_is_small_and_made_of_stock_classes(pipe):
    num_bytes = sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file())
    assert num_bytes <= 15e6
    assert isinstance(pipe.vae, AutoencoderKLWan) and isinstance(pipe.text_encoder, UMT5EncoderModel)
    index = json.loads((CHECKPOINT / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]


def test_no_path_of_the_machine_that_trained_it_is_in_the_folder():
    texts = [path.read_text(encoding="utf-8") for path in CHECKPOINT.rglob("*.json")]
    assert len(texts) > 5 and not [text for text in texts if re.search(r'"(/|[A-Z]:)[^"]*[/\\\\]', text)]


def test_default_size_is_that_of_its_training(pipe):
    frames = pipe(PROMPT, num_frames=9, generator=generator()).frames
    assert frames.shape == (1, 9, 64, 64, 3)


def test_the_default_search_makes_81_frames_with_112_forwards_and_12_clean_passes(pipe):
    """Of a chunk of 3 latent frames: 4 steps of 4 candidates in each of 7, and a clean pass of both beams in 6."""
    output = pipe(PROMPT, generator=generator())
    work = [chunk.work for chunk in output.trace.chunks]
    assert output.frames.shape == (1, 81, 64, 64, 3) and len(work) == 7
    assert sum(each.forwards for each in work) == 7 * 16 and sum(each.clean_passes for each in work) == 6 * 2
    assert sum(each.latents_decoded for each in work) == 7 * 12


def test_rewards_of_the_demo_record_their_parts(pipe):
    trace = pipe(PROMPT, num_frames=21, generator=generator()).trace
    parts = trace.chunks[1].candidates[0].parts
    assert {"image.color", "image.background", "video.motion"} <= parts.keys()


@pytest.fixture
def stock(pipe):
    """diffusers' own pipeline around the same components."""
    names = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")
    return WanPipeline(**{name: getattr(pipe, name) for name in names})


def test_stock_pipeline_still_takes_the_transformer(stock):
    embeds, _ = stock.encode_prompt(PROMPT)
    velocity = stock.transformer(torch.randn(1, 8, 3, 8, 8), torch.tensor([1000.0]), embeds).sample
    assert velocity.shape == (1, 8, 3, 8, 8) and torch.isfinite(velocity).all()


def test_prompts_are_encoded_as_the_stock_pipeline_does(pipe, stock):
    texts = [PROMPT, "a blue  cross"]
    expected, _ = stock.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=512)
    assert torch.equal(pipe.encode_prompt(texts)[0], expected)


def run_command(*arguments, cwd):
    command = [sys.executable, "-m", "stream_t1", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_the_command_writes_a_video_and_its_trace(tmp_path):
    import imageio_ffmpeg

    done = run_command(PROMPT, "-o", "out.mp4", "--num-frames", "21", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "21 frames, the best of 8 candidates" in done.stdout
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "out.mp4"))
    about, frames = next(reader), list(reader)
    assert about["size"] == (64, 64) and about["fps"] == 16 and len(frames) == 21
    trace = SearchTrace.load(tmp_path / "out.json")
    assert trace.config["prompt"] == PROMPT and len(trace.chunks) == 2


def test_the_command_continues_a_video_and_begins_with_a_picture(tmp_path, capsys):
    clip = render_clip(parse_caption(PROMPT), 9, seed=3).permute(0, 2, 3, 1).numpy()
    write_video(clip, tmp_path / "clip.mp4", 16, ".mp4")
    PIL.Image.fromarray(clip[0]).resize((100, 80)).save(tmp_path / "first.png")
    for given, tried, num_given in (
        (["--video", "clip.mp4"], 4, 1),
        (["--image", "first.png", "--resize=crop"], 8, 0),
    ):
        given[1] = str(tmp_path / given[1])
        assert main([PROMPT, *given, "--num-frames", "21", "-o", str(tmp_path / f"{num_given}.mp4")]) == 0
        assert f"21 frames, the best of {tried} candidates" in capsys.readouterr().out
        assert SearchTrace.load(tmp_path / f"{num_given}.json").config["num_given_chunks"] == num_given


def test_a_drawn_clip_is_decoded_again_and_goes_on_where_it_was(pipe):
    caption = parse_caption(PROMPT)
    clip = render_clip(caption, 21, seed=3)
    arguments = {"num_beams": 1, "num_candidates": 1, "output_type": "pt", "generator": generator()}
    frames = pipe(PROMPT, video=clip, num_frames=45, **arguments).frames[0]
    assert (frames[:21] - clip / 255).abs().mean() < 0.01  # 0.0034 was measured
    verdict = check(frames)
    assert verdict.follows(caption, "motion") and verdict.largest_jump < LARGEST_JUMP


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--image", "no.png"], "`--image` is no.png; there is no such file"),
        (["--video", "no.mp4"], "`--video` is no.mp4; there is no such file"),
        (["--resize", "crop"], "`--resize` is crop, and there is no `--image`"),
        (["--num-frames", "50"], "`num_frames` is 50.*Use 45 or 57"),
        (["--num-beams", "0"], "`num_beams` is 0"),
        (["-o", "nowhere/out.mp4"], "`--output`.*no folder nowhere"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([PROMPT, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("stream-t1: ") and re.search(message, error)
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_another_model_and_converted_rewards(tmp_path, capsys):
    load_pipeline().save_pretrained(tmp_path / "model")
    reward = save_reward(videoalign_reward(), tmp_path / "videoalign")
    arguments = ["--model", str(tmp_path / "model"), "--video-reward", str(reward), "-o", str(tmp_path / "out.mp4")]
    assert main([PROMPT, "--num-frames", "21", *arguments]) == 0
    trace = SearchTrace.load(tmp_path / "out.json")
    parts = trace.chunks[0].candidates[0].parts
    assert "video.VQ" in parts and not any(name.startswith("image") for name in parts)  # the folder brings none
    assert main([PROMPT, "--model", str(tmp_path), "-o", str(tmp_path / "other.mp4")]) == 2
    assert "model_index.json" in capsys.readouterr().err


def test_a_prompt_of_unknown_words_gets_the_vocabulary():
    assert vocabulary_note(PROMPT) is None
    assert "circle" in vocabulary_note("a dragon over the sea")


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_of_a_reward_finds_what_it_searches():
    plain, searched = load_example("own_reward").main()
    assert searched > plain


def test_the_example_that_watches_other_rewards_records_every_chunk():
    found = load_example("search_one_watch_others").main()
    assert found.keys() >= {"motion.smooth", "motion.steady_size", "legibility", "sharpness", "seam"}
    assert all(len(scores) == 5 for scores in found.values())
    assert all(len(set(scores)) > 1 or min(scores) > 0.999 for scores in found.values())  # some can't be better
    assert found["searched"] == pytest.approx(found["motion.motion"])  # the reward's own number, not a fused one


def test_the_example_of_a_memory_policy_keeps_sinks():
    sinks = load_example("own_memory_policy").main()
    assert sinks[0] == 0 and len(sinks) > 1 and sinks == sorted(sinks) and all(sink % 3 == 0 for sink in sinks)


def test_the_example_of_what_makes_candidates_differ_finds_the_later_draws():
    found = load_example("what_makes_candidates_differ").main(num_prompts=2)
    assert 0 < found["the initial noise"] < 0.2 * found["everything"]
    assert found["the later draws"] > 0.8 * found["everything"]


def test_the_example_of_a_search_keeps_both_beams_apart_to_the_end():
    shared = load_example("own_search").main()
    assert shared["best of each"] == 0 < shared["best of all"]


def test_the_example_of_a_loop_makes_a_video_without_a_search():
    video, tries = load_example("own_loop").main()
    assert video.shape == (57, 3, 64, 64) and len(tries) == 5
    assert tries[0] == 1 and all(1 <= count <= 4 for count in tries)


def test_the_example_of_changing_prompts_draws_videos_that_follow_them(tmp_path):
    """The colour of the frames just before the change, and of those at the end."""
    videos = load_example("prompt_change").main(tmp_path / "changes.png", num_frames=69)
    colors = [[check(clip).color for clip in (video[24:45], video[48:])] for video in videos]
    assert colors == [["red", "red"], ["red", "blue"], ["green", "yellow"]]
    assert Image.open(tmp_path / "changes.png").width == 20 * 66


def test_the_example_of_early_scores_prints_how_well_each_step_ranks_candidates(capsys):
    example = load_example("early_scores")
    found = example.main(["--num-prompts", "1", "--num-candidates", "3", "--num-frames", "21"])
    assert found.shape == (1, 2, 3) and (abs(found) <= 1.0 + 1e-9).all()
    told = capsys.readouterr().out.splitlines()
    assert told[0].split() == "chunk after step 1 after step 2 after step 3".split() and len(told) == 4
    assert told[1].split() == ["0", *(f"{value:.2f}" for value in found[0, 0])]


def test_the_examples_rank_correlation_is_spearmans():
    rank_correlation = load_example("early_scores").rank_correlation
    values = np.array([0.1, 5.0, 0.3, np.nan, 9.0])
    assert rank_correlation(values, np.exp(values)) == 1.0 and rank_correlation(values, -values) == -1.0
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 x 5).
    assert rank_correlation(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(0.9**0.5)
    assert np.isnan(rank_correlation(np.zeros(3), np.arange(3)))
