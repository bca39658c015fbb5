"""Methods: what a budget pays for, which video wins, and what is measured of it."""

import pytest
import torch
from conftest import brightness, contrast
from tiny_rewards import save_reward, videoalign_reward

from stream_t1.demo import load_pipeline
from stream_t1.demo.clips import Caption, render_clip
from stream_t1.demo.judge import load_judge
from stream_t1.demo.verdicts import JudgeMetric, checker_metric
from stream_t1.evaluation.budgets import allowed_forwards, search_forwards, search_within
from stream_t1.evaluation.methods import METHODS, candidates_per_chunk, check_budget, find_method, make_video
from stream_t1.evaluation.metrics import RewardMetric, load_metrics, measure
from stream_t1.rewards import SharpnessReward

PROMPT = "a red circle moving left on a white background"


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make(pipe, name, budget, num_frames=21, seed=0):
    return make_video(pipe, find_method(name), budget=budget, prompt=PROMPT, seed=seed, num_frames=num_frames)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_spends_its_budget_in_every_chunk(pipe, name):
    budget = 4 if METHODS[name].competition == "none" else 16
    video = make(pipe, name, budget)
    assert video.frames.shape == (21, 3, 64, 64) and video.frames.dtype == torch.uint8
    assert video.cost["forwards"] == 2 * budget and video.cost["latents_decoded"] == 2 * 3 * budget // 4
    assert (video.cost["frames_scored"] > 0) == METHODS[name].has_rewards


def test_the_baseline_is_the_plain_sample_of_its_seed(pipe):
    plain = pipe(
        PROMPT,
        num_frames=21,
        num_beams=1,
        num_candidates=1,
        noise_correlation=0.0,
        image_reward=False,
        video_reward=False,
        generator=torch.Generator().manual_seed(5),
    ).frames[0]
    expected = torch.from_numpy(plain * 255).round().to(torch.uint8).permute(0, 3, 1, 2)
    assert torch.equal(make(pipe, "single", 4, seed=5).frames, expected)


@pytest.mark.parametrize("name", ["best-of-videos", "best-of-chunks", "full"])
def test_searches_have_the_plain_samples_first_chunk_among_their_candidates(pipe, name, monkeypatch):
    monkeypatch.setattr(pipe, "image_reward", None)
    equal = lambda frames, prompt, fps: torch.zeros(len(frames))  # noqa: E731 - the first stays first
    monkeypatch.setattr(pipe, "video_reward", equal)
    single, searched = make(pipe, "single", 4), make(pipe, name, 8)
    apart = (searched.frames[:9].int() - single.frames[:9].int()).abs().max()
    assert apart <= 1  # of 255: a batch of candidates rounds otherwise


def test_the_best_of_whole_videos_is_the_one_with_the_best_fused_scores(pipe, monkeypatch):
    seen = []

    def record(frames, prompt, fps):
        seen.append(frames)
        return contrast(frames, prompt, fps)

    monkeypatch.setattr(pipe, "image_reward", brightness)
    monkeypatch.setattr(pipe, "video_reward", record)
    video = make(pipe, "best-of-videos", 12)
    fused = [0.4 * brightness(f, [PROMPT], 16.0) + 0.6 * contrast(f, [PROMPT], 16.0) for f in seen]
    best = seen[max(range(3), key=lambda index: fused[index])]
    assert torch.equal(video.frames, (best[0] * 255).round().to(torch.uint8))
    assert video.cost["frames_scored"] == 3 * 2 * 21


def test_a_budget_that_a_method_cannot_spend_is_refused():
    for name, budget, message in (
        ("single", 8, "it must be 4"),
        ("best-of-chunks", 10, "a multiple of 4, 8 or more"),
        ("full", 12, "an even multiple of 4"),
        ("beam", 4, "an even multiple"),
    ):
        with pytest.raises(ValueError, match=message):
            candidates_per_chunk(find_method(name), budget, 4)
    assert candidates_per_chunk(find_method("full"), 32, 4) == 8


def test_a_method_may_be_named_with_another_correlation():
    method = find_method("beam+noise@-0.5")
    assert method.noise_correlation == -0.5 and method.memory == METHODS["beam"].memory
    assert find_method("best-of-n@-0.5").noise_correlation == -0.5
    assert find_method("particles:threshold=1,strength=4.0@0.50").name == "particles:strength=4,threshold=1@0.5"
    for name in ("annealing", "full@much", "full@1", "full@nan", "full@", "annealing:speed=1"):
        with pytest.raises(ValueError, match="There is no method"):
            find_method(name)


def test_an_interrupted_video_is_no_video(pipe, monkeypatch):
    def interrupt(frames, prompt, fps):
        if frames.shape[1] > 9:
            raise KeyboardInterrupt
        return brightness(frames, prompt, fps)

    monkeypatch.setattr(pipe, "video_reward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(pipe, "best-of-chunks", 8)


SPENT = {  # at a budget of 16, for two chunks: 36 chunk forwards are allowed
    "best-of-n": 4 * 9,
    "beam:num_beams=1": 2 * 16 + 1,
    "beam:budget=2x3/1x2": 24 + 2 + 8,
    "early-pruning:keep=1,after_step=2": 2 * (7 * 2 + 2) + 1,
    "evolution:generations=2,elites=1,mutation=0.5,at_step=1": 2 * (8 + 3) + 1,
    "early-stop:inner=beam(num_beams=1,num_candidates=1),patience=2,max_rounds=2": 2 * 2 * 4 + 1,
}


@pytest.mark.parametrize("text", SPENT)
def test_a_search_gets_the_largest_number_that_its_budget_pays_for_and_spends_no_more(pipe, text):
    method = find_method(text)
    assert (method.name, method.memory, method.noise_correlation) == (text, METHODS["beam"].memory, 0.0)
    video = make(pipe, text, 16)
    assert video.cost["chunk_forwards"] == SPENT[text] <= allowed_forwards(16, 4, 2) == 36
    assert video.cost["chunk_forwards"] == video.cost["forwards"] + video.cost["clean_passes"]


def test_the_best_of_n_is_made_of_the_seeds_that_the_first_video_of_the_rival_has(pipe):
    """And its first video is the plain sample, so that all methods of a seed have that among their candidates."""
    single, text = make(pipe, "single", 4, seed=3), make(pipe, "best-of-n:num_videos=1", 4, seed=3)
    assert torch.equal(single.frames, text.frames)


def test_a_plain_beam_with_its_numbers_makes_the_video_of_the_method(pipe):
    method, text = make(pipe, "beam", 16), make(pipe, "beam:num_beams=2,num_candidates=2", 16)
    assert torch.equal(method.frames, text.frames) and method.trace.chunks[0].work.forwards == 16


def test_a_search_of_random_cost_is_bounded_by_the_budget_only_where_its_number_is_left_to_it():
    eager, open_ = "particles:num_particles=4,strength=4", "particles:strength=4"
    assert search_within(find_method(open_).search, 16, 4, 7) == search_within(find_method(eager).search, 16, 4, 7)
    assert search_forwards(search_within(find_method(open_).search, 16, 4, 7), 4, 7) == (118, 136)
    stop = find_method("early-stop:num_beams=1,num_candidates=2,patience=2,max_rounds=4").search
    assert search_forwards(search_within(stop, 16, 4, 7), 4, 7) == (62, 230)


@pytest.mark.parametrize(
    "text, budget, message",
    [
        (
            "particles:strength=4,num_particles=8",
            16,
            "'particles:num_particles=8,strength=4' takes 230 chunk forwards or more for 7 chunks of 4 steps; "
            "a budget of 16 per chunk allows 136. Use num_particles=4 or less, or a budget of 28 or more.",
        ),
        (
            "evolution:generations=2,elites=1,mutation=0.5",
            8,
            "the smallest `population` that it has; .* of 12 or more",
        ),
        ("early-stop:patience=2", 16, "may take 460 chunk forwards, .*a budget of 56 or more"),
        ("beam:num_beams=4,num_candidates=4", 8, "takes 472 .*a budget of 56 or more"),
        ("early-pruning:keep=1,after_step=7", 16, "`after_step` of EarlyPruning is 7"),
        ("particles", 16, "needs `strength`"),
        ("best-of-n", 10, "must be a multiple of 4"),
        ("particles:strenth=4", 16, "has no `strenth`"),
    ],
)
def test_a_search_that_does_not_fit_its_budget_is_refused_with_the_nearest_that_does(text, budget, message):
    with pytest.raises(ValueError, match=message):
        check_budget(find_method(text), budget, 4, 7)


def test_a_search_without_known_work_is_refused():
    with pytest.raises(ValueError, match="<lambda> does not say what it does"):
        search_forwards(lambda steps, beams: None, 4, 7)


def frames_of(num_frames):
    caption = Caption(shape="circle", color="red", background="white", motion="left")
    return render_clip(caption, num_frames, seed=3)


def test_a_verdict_is_also_taken_of_the_last_three_chunks_at_every_chunk():
    lengths = []

    def length(frames, prompt, fps):
        lengths.append(len(frames))
        return {"length": float(len(frames)), "length.first": 0.0}

    for num_frames, num_windows in ((21, 0), (33, 1), (81, 5)):
        both = {"length": length, "other": lambda *_: {"other": 1.0, "other.part": 2.0}}
        measured = measure(both, frames_of(num_frames), PROMPT, 16.0, chunk_lengths=(9, 12), in_windows=("length",))
        assert measured.windows == {"length": [33.0] * num_windows}
        lowest = {"length.lowest": 33.0} if num_windows else {}
        assert measured.scores == {"length": num_frames, "length.first": 0.0, **lowest, "other": 1.0}


def test_a_window_begins_with_a_chunk_also_where_the_first_is_a_single_frame():
    begun = []

    def first(frames, prompt, fps):
        begun.append(int(frames[0, 0, 0, 0]))
        return {"first": float(len(frames))}

    frames = torch.arange(49).expand(3, 2, 2, 49).permute(3, 0, 1, 2)
    measured = measure({"first": first}, frames, PROMPT, 16.0, chunk_lengths=(1, 12), in_windows=("first",))
    assert measured.windows == {"first": [25.0] * 3} and begun == [0, 0, 12, 24]


def test_a_metric_that_fails_is_named_and_the_others_go_on():
    def broken(frames, prompt, fps):
        raise RuntimeError("no eyes")

    metrics = {"broken": broken, "brightness": RewardMetric("brightness", brightness)}
    measured = measure(metrics, frames_of(33), PROMPT, 16.0, chunk_lengths=(9, 12), in_windows=tuple(metrics))
    assert measured.problems == {"broken": "RuntimeError: no eyes"}
    assert measured.windows.keys() == {"brightness"}
    assert measured.scores.keys() == {"brightness", "brightness.lowest"}


def test_both_verdicts_of_the_demo_see_what_a_clip_shows_and_what_it_does_not():
    for metric, name in ((checker_metric, "checker"), (JudgeMetric(load_judge()), "judge")):
        right = metric(frames_of(45), PROMPT, 16.0)
        assert right[name] == 1 and right[f"{name}.motion"] == 1
        wrong = metric(frames_of(45), PROMPT.replace("circle", "cross"), 16.0)
        assert wrong[name] == 0 and wrong[f"{name}.shape"] == 0 and wrong[f"{name}.color"] == 1


def test_a_metric_is_loaded_from_a_folder_or_by_the_name_of_its_class(tmp_path):
    folder, cpu = save_reward(videoalign_reward(), tmp_path / "videoalign"), torch.device("cpu")
    metrics = load_metrics([f"quality={folder}", "flicker=TemporalFlickerReward"], cpu)
    assert all(name in metric(frames_of(33), "words", 16.0) for name, metric in metrics.items())
    known = SharpnessReward()
    assert load_metrics(["sharp=here"], cpu, {"here": known})["sharp"].scorer is known
    for descriptions, message in (
        (["=x"], "NAME=FOLDER"),
        (["a.b=SharpnessReward"], "no dot in the name"),
        (["a=SharpnessReward"] * 2, "two metrics named 'a'"),
        (["a=CLIPScoreReward"], "needs a model"),
        (["a=there"], "there"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            load_metrics(descriptions, cpu)


def test_whole_videos_that_a_reward_fails_on_are_left_out_and_named(pipe, monkeypatch, caplog):
    seen = []

    def fail_once(frames, prompt, fps):
        seen.append(frames)
        if len(seen) == 1:
            raise RuntimeError("no eyes")
        return brightness(frames, prompt, fps)

    monkeypatch.setattr(pipe, "image_reward", None)
    monkeypatch.setattr(pipe, "video_reward", fail_once)
    video = make(pipe, "best-of-videos", 8)
    assert torch.equal(video.frames, (seen[1][0] * 255).round().to(torch.uint8)) and "no eyes" in caplog.text
    assert video.cost["forwards"] == 2 * 8
    monkeypatch.setattr(pipe, "video_reward", lambda *_: torch.full((1,), torch.nan))
    with pytest.raises(ValueError, match="None of 2 videos has a score: .*nan"):
        make(pipe, "best-of-videos", 8)
