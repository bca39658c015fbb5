"""The few-step schedule: levels, steps, and no cursor."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from stream_t1 import FewStepFlowMatchScheduler


def test_four_steps_at_shift_5_are_the_authors_warped_steps():
    scheduler = FewStepFlowMatchScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.levels == pytest.approx((1.0, 0.9375, 5 / 6, 0.625), abs=1e-15)
    assert scheduler.timesteps.tolist() == pytest.approx([1000.0, 937.5, 833.3333, 625.0])
    assert scheduler.timesteps.dtype == torch.float32


@pytest.mark.parametrize("num_steps", range(1, 9))
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_levels_fall_from_one(num_steps, shift):
    scheduler = FewStepFlowMatchScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    expected = [shift * u / (1 + (shift - 1) * u) for u in (1 - i / num_steps for i in range(num_steps))]
    assert scheduler.levels == pytest.approx(expected)
    assert scheduler.sigmas[-1] == 0.0 and len(scheduler.timesteps) == num_steps


def test_given_sigmas_are_before_the_shift():
    scheduler = FewStepFlowMatchScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert scheduler.levels == pytest.approx((1.0, 5 * 0.5 / 3))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_inference_steps": 9}, "1 to 8"),
        ({"num_inference_steps": 0}, "1 to 8"),
        ({"sigmas": [0.5, 0.75]}, "fall"),
        ({"sigmas": [1.5, 0.5]}, "above 0 and at most 1"),
        ({"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "Give one"),
        ({}, "num_inference_steps"),
    ],
)
def test_impossible_steps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FewStepFlowMatchScheduler().set_timesteps(**arguments)


def test_a_perfect_velocity_leads_back_to_the_clean_sample():
    clean, noise = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 4, 3, 4, 4)
    scheduler, sigma = FewStepFlowMatchScheduler(), 0.9375
    noisy = scheduler.add_noise(clean, noise, sigma)
    torch.testing.assert_close(scheduler.step_between(noise - clean, noisy, sigma), clean)
    fresh = torch.randn_like(clean)
    torch.testing.assert_close(
        scheduler.step_between(noise - clean, noisy, sigma, 0.625, fresh), 0.375 * clean + 0.625 * fresh
    )


def test_steps_of_two_candidates_can_be_interleaved():
    scheduler = FewStepFlowMatchScheduler()
    velocities, samples = torch.randn(2, 3), torch.randn(2, 3)
    alone = [scheduler.step_between(v, x, 0.9375, 0.625, x) for v, x in zip(velocities, samples, strict=True)]
    other_order = [scheduler.step_between(velocities[i], samples[i], 0.9375, 0.625, samples[i]) for i in (1, 0)]
    assert torch.equal(torch.stack(alone), torch.stack(other_order[::-1]))


def test_the_diffusers_form_of_a_step_finds_its_levels_from_the_timestep():
    scheduler = FewStepFlowMatchScheduler()
    scheduler.set_timesteps(4)
    velocity, sample = torch.randn(1, 3), torch.randn(1, 3)
    noise = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    stepped = scheduler.step(velocity, scheduler.timesteps[1], sample, generator=torch.Generator().manual_seed(0))
    wanted = scheduler.step_between(velocity, sample, scheduler.levels[1], scheduler.levels[2], noise)
    assert torch.equal(stepped.prev_sample, wanted)
    last = scheduler.step(velocity, scheduler.timesteps[3], sample, return_dict=False)[0]
    assert torch.equal(last, scheduler.clean_sample(velocity, sample, 0.625))


def test_config_is_saved_and_loaded(tmp_path):
    FewStepFlowMatchScheduler(shift=7.0).save_pretrained(tmp_path)
    assert FewStepFlowMatchScheduler.from_pretrained(tmp_path).config.shift == 7.0


def test_the_shift_of_a_stock_flow_match_scheduler_is_kept():
    stock = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert FewStepFlowMatchScheduler.from_config(stock.config).config.shift == 3.0
    assert FewStepFlowMatchScheduler.adopt(stock).config.shift == 3.0


def test_a_scheduler_without_shift_is_replaced_by_the_default_with_a_message(caplog):
    stock = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    assert FewStepFlowMatchScheduler.adopt(stock).config.shift == 5.0
    assert "UniPCMultistepScheduler" in caplog.text


def test_the_clean_sample_is_computed_in_float64_and_rounded_once():
    sigma = 15 / 16  # its products are exact in float64, so that fused and separate operations round alike
    velocity, sample = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)) * 100
    exact = (sample.double() - sigma * velocity.double()).float()
    assert torch.equal(FewStepFlowMatchScheduler.clean_sample(velocity, sample, sigma), exact)
    assert not torch.equal(sample - sigma * velocity, exact)
