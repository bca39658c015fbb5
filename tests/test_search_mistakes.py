"""Searches that cannot be, and choices that are none: told with the search's name before the work they would waste."""

from dataclasses import replace

import pytest
import torch
from conftest import brightness, contrast, nothing_done
from search_toys import KeepTwice

from stream_t1.search import BeamSearch, BestOfN, Choice, EarlyStop, EMASink

REWARDS = {"image_reward": brightness, "video_reward": contrast}


def video(pipe, embeds, **arguments):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt_embeds=embeds, **{"num_frames": 57, "generator": generator, **REWARDS, **arguments})


def gives(choice):
    """A search that gives `choice(candidates)` of two finished ones and a lost one."""

    def own(steps, beams):
        candidates = steps.score(beams, steps.denoise(beams, steps.propose(beams, [3] + [0] * (len(beams) - 1))))
        return choice([*candidates[:2], replace(candidates[2], lost="dark")])

    return own


def unfinished(candidates):
    return [replace(candidate, step=1) for candidate in candidates]


@pytest.mark.parametrize(
    "choice, error, message",
    [
        (lambda c: c, TypeError, "own gave a list; a search gives a `Choice"),
        (lambda c: None, TypeError, "own gave a NoneType"),
        (lambda c: Choice(c, []), ValueError, "own keeps nothing of 3 candidates; keep 1 to 1"),
        (lambda c: Choice([], []), ValueError, "own tried no candidate"),
        (lambda c: Choice(c, [3]), ValueError, "own keeps candidate 3 of 3"),
        (lambda c: Choice(c, [-1]), ValueError, "own keeps candidate -1"),
        (lambda c: Choice(c, [2]), ValueError, "own keeps candidate 2, which was lost: dark"),
        (lambda c: Choice(c, [0, 1]), ValueError, "own keeps 2 candidates, and says that it keeps at most 1"),
        (lambda c: Choice(c, [0.5]), TypeError, "own keeps 0.5"),
        (lambda c: Choice(c, [True]), TypeError, "own keeps True"),
        (lambda c: Choice(c, [0], log_weights=[0.0, 1.0]), ValueError, "own gave 2 `log_weights` for 1 beams"),
        (lambda c: Choice(c, [0], log_weights=[float("nan")]), ValueError, "`log_weights`.*finite"),
        (lambda c: Choice(unfinished(c), [0]), ValueError, "own keeps candidate 0 with 1 of 4 steps done"),
        (lambda c: Choice([replace(c[0], parent=4)], [0]), ValueError, "own keeps candidate 0 of parent 4"),
        (lambda c: Choice([replace(c[0], chunk_index=4)], [0]), ValueError, "own keeps candidate 0 of chunk 4 at"),
        (lambda c: Choice([c[0].without_scores()], [0]), ValueError, "own keeps candidate 0 without a score"),
        (lambda c: Choice([1, 2], [0]), TypeError, "own gave `candidates` that are not all of `Candidate`, in a list"),
    ],
)
def test_an_invalid_choice_is_refused_before_the_clean_pass(toy_pipeline, embeds, choice, error, message):
    passes = []

    def note(module, args, kwargs):
        passes.append(float(kwargs["timestep"][0]))

    handle = toy_pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with pytest.raises(error, match=message):
            video(toy_pipeline, embeds, search=gives(choice))
    finally:
        handle.remove()
    assert passes and 0.0 not in passes


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"search": BeamSearch}, TypeError, r"`search` is the class BeamSearch; give an object.*BeamSearch\(\)"),
        ({"search": 3}, TypeError, "`search` is a int; it must be a callable"),
        ({"search": "beam"}, TypeError, "`search` is a str"),
        ({"search": BeamSearch(2, 2), "num_beams": 2}, ValueError, "`num_beams` is 2, and `search` is BeamSearch"),
        ({"search": BestOfN(2), "num_candidates": 1}, ValueError, "`num_candidates` is 1, and `search` is BestOfN"),
        ({"search": BestOfN(2), "num_videos_per_prompt": 3}, ValueError, "`num_videos_per_prompt` is 3.*2, are kept"),
        ({"search": BestOfN(2), "candidate_seeds": "reference"}, ValueError, "videos of BestOfN alike"),
        (
            {"search": BestOfN(2), "score_normalization": "rank"},
            ValueError,
            "`score_normalization` is 'rank'.*BestOfN",
        ),
        ({"search": KeepTwice(num_beams=0)}, ValueError, "`num_beams` of KeepTwice is 0; it must be"),
        ({"search": KeepTwice(num_beams=1.5)}, TypeError, "`num_beams` of KeepTwice is 1.5"),
        ({"search": BeamSearch(2, 2), "image_reward": False, "video_reward": False}, ValueError, "BeamSearch.*drops"),
        (
            {"num_candidates": 2, "image_reward": False, "video_reward": False},
            ValueError,
            "2 candidates per beam, drops candidates.*no reward",
        ),
    ],
)
def test_a_search_that_cannot_be_is_told_before_any_work(toy_pipeline, embeds, arguments, error, message):
    with nothing_done(toy_pipeline), pytest.raises(error, match=message):
        video(toy_pipeline, embeds, **arguments)


def test_a_candidate_kept_twice_needs_seeds_of_its_own(toy_pipeline, embeds):
    with pytest.raises(ValueError, match="KeepTwice keeps a candidate twice"):
        video(toy_pipeline, embeds, search=KeepTwice(), candidate_seeds="reference")


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: BeamSearch(0), ValueError, "`num_beams` of BeamSearch is 0; it must be 1 or more"),
        (lambda: BeamSearch(2, 1.5), TypeError, "`num_candidates` of BeamSearch is 1.5"),
        (lambda: BeamSearch(budget=[]), ValueError, r"`budget` of BeamSearch is \[\]"),
        (lambda: BeamSearch(budget=[(2, 2), (0, 2)]), ValueError, r"`num_beams` in `budget\[1\]` of BeamSearch is 0"),
        (lambda: BeamSearch(budget=[(2,)]), ValueError, r"`budget\[0\]` of BeamSearch is \(2,\)"),
        (lambda: BeamSearch(budget="22"), ValueError, "`budget` of BeamSearch is '22'"),
        (lambda: BestOfN(0), ValueError, "`num_videos` of BestOfN is 0"),
        (lambda: EarlyStop(BeamSearch), TypeError, "`inner` is the class BeamSearch"),
        (lambda: EarlyStop(BeamSearch(), margin=float("nan")), ValueError, "`margin` of EarlyStop is nan"),
        (lambda: EarlyStop(BeamSearch(), margin="1"), TypeError, "`margin` of EarlyStop is '1'"),
        (lambda: EarlyStop(BeamSearch(), patience=0), ValueError, "`patience` of EarlyStop is 0"),
    ],
)
def test_numbers_that_fit_no_search_are_refused_with_its_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_beams_of_an_endless_stream_must_be_able_to_agree(toy_pipeline, embeds):
    endless = {"num_frames": None, "horizon": 3, "memory": EMASink()}
    for search in (BestOfN(2), BeamSearch(2, 1)):
        with pytest.raises(ValueError, match="drops no beam, so that those of an endless stream would never agree"):
            toy_pipeline.stream(prompt_embeds=embeds, search=search, **endless, **REWARDS)
    next(toy_pipeline.stream(prompt_embeds=embeds, search=BeamSearch(2, 1), max_lag=1, **endless, **REWARDS))


def test_a_search_without_work_is_named_where_it_is_inside_another(toy_pipeline):
    with pytest.raises(ValueError, match="KeepTwice does not say what it does"):
        toy_pipeline.estimate(search=EarlyStop(KeepTwice()), **REWARDS)


def test_a_budget_of_more_beams_than_promised_is_told_at_its_chunk(toy_pipeline, embeds):
    with pytest.raises(ValueError, match=r"`budget` of BeamSearch gave 3 beams for chunk 1.*BeamSearch\(3"):
        video(toy_pipeline, embeds, search=BeamSearch(2, budget=lambda index, beams: (2 + index, 1)))
