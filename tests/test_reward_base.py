"""The base of the shipped rewards: what they refuse, micro-batches, offload."""

import numpy as np
import pytest
import torch

from stream_t1.rewards import PictureReward, Reward, RewardOutput, SharpnessReward, VideoAlignReward
from stream_t1.rewards.base import RewardFormatError
from stream_t1.rewards.checks import check_clips

CLIPS = torch.rand(5, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
WORDS = ["a", "b", "c", "d", "e"]


class Counted(Reward):
    """Mean brightness, from one weight; records its batches, and runs out of memory above a size."""

    def __init__(self, fits=100, **options):
        super().__init__(**options)
        self.weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.fits, self.batches = fits, []

    def forward(self, frames, prompt, fps):
        self.batches.append((len(frames), prompt, frames.dtype, frames.device.type))
        if len(frames) > self.fits:
            raise torch.OutOfMemoryError("not enough")
        mean = frames.mean(dim=(1, 2, 3, 4)) * self.weight
        return RewardOutput(mean, {"twice": 2 * mean})


def test_clips_are_cut_into_micro_batches_with_their_prompts():
    reward = Counted(micro_batch_size=2)
    output = reward(CLIPS, WORDS, 16.0)
    assert [prompt for _, prompt, _, _ in reward.batches] == [["a", "b"], ["c", "d"], ["e"]]
    assert torch.equal(output.score, CLIPS.mean(dim=(1, 2, 3, 4)))
    assert torch.equal(output.parts["twice"], 2 * output.score)


def test_bytes_become_floats_of_a_micro_batch():
    reward = Counted(micro_batch_size=4)
    score = reward((CLIPS * 255).byte(), WORDS, 16.0).score
    assert [dtype for _, _, dtype, _ in reward.batches] == [torch.float32] * 2
    assert torch.allclose(score, (CLIPS * 255).byte().float().div(255).mean(dim=(1, 2, 3, 4)))


def test_out_of_memory_halves_the_micro_batch_for_good_with_one_warning(caplog):
    reward = Counted(fits=1)
    assert torch.equal(reward(CLIPS, WORDS, 16.0).score, CLIPS.mean(dim=(1, 2, 3, 4)))
    assert [size for size, *_ in reward.batches] == [5, 2, 1, 1, 1, 1, 1]
    reward(CLIPS, WORDS, 16.0)
    assert [size for size, *_ in reward.batches[7:]] == [1] * 5 and reward.micro_batch_size == 1
    assert len(caplog.records) == 1 and "`micro_batch_size` is 1" in caplog.text


def test_out_of_memory_with_a_single_clip_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        Counted(fits=0)(CLIPS[:1], ["a"], 16.0)


def test_an_offloaded_reward_is_on_its_device_for_the_call_and_on_the_cpu_after_it():
    reward = Counted()
    seen = []
    reward.register_forward_pre_hook(lambda module, args: seen.append((module.device.type, args[0].device.type)))
    moved = []
    reward.to = lambda device: moved.append(str(device)) or reward
    reward.offload("meta")
    with torch.inference_mode():
        reward(CLIPS, WORDS, 16.0)
    assert moved == ["cpu", "meta", "cpu"] and seen == [("cpu", "cpu")]


def test_an_offloaded_reward_comes_back_when_it_raises():
    reward = Counted(fits=0).offload()
    moved = []
    reward.to = lambda device: moved.append(str(device)) or reward
    with pytest.raises(torch.OutOfMemoryError):
        reward(CLIPS, WORDS, 16.0)
    assert moved == ["cpu", "cpu"]


def test_picture_rewards_average_over_frames_whatever_the_micro_batch():
    class Brightness(PictureReward):
        def forward(self, frames, prompt, fps):
            assert frames.shape[1] == 1
            return frames.mean(dim=(1, 2, 3, 4))

    mean = CLIPS.mean(dim=(1, 2, 3, 4))
    assert torch.allclose(Brightness()(CLIPS, WORDS, 16.0).score, mean)
    assert torch.allclose(Brightness(micro_batch_size=3)(CLIPS, WORDS, 16.0).score, mean)
    assert torch.allclose(Brightness(frame_stride=2)(CLIPS, WORDS, 16.0).score, CLIPS[:, 0].mean(dim=(1, 2, 3)))


class Choosy(Reward):
    """Loses clips of a prompt, gates those of another."""

    def forward(self, frames, prompt, fps):
        lost = tuple("unreadable" if text == "b" else None for text in prompt) if "b" in prompt else None
        gated = tuple("dull" if text == "e" else None for text in prompt)
        return RewardOutput(frames.mean(dim=(1, 2, 3, 4)), None, lost, gated)


@pytest.mark.parametrize("size", [1, 2, None])
def test_reasons_why_clips_have_no_score_outlive_micro_batches(size):
    output = Choosy(micro_batch_size=size)(CLIPS, WORDS, 16.0)
    assert output.lost == (None, "unreadable", None, None, None) and output.gated == (None, None, None, None, "dull")
    assert Choosy(micro_batch_size=size)(CLIPS[:1], ["a"], 16.0).lost is None


def test_a_clip_is_lost_or_gated_with_one_of_its_pictures():
    class DarkIsLost(PictureReward):
        def forward(self, frames, prompt, fps):
            mean = frames.mean(dim=(1, 2, 3, 4))
            reasons = tuple("too dark" if value < 0.1 else None for value in mean)
            return RewardOutput(mean, None, reasons, reasons)

    frames = torch.full((3, 2, 3, 4, 4), 0.5)
    frames[1, 1] = 0.0
    for size in (1, None):
        output = DarkIsLost(micro_batch_size=size)(frames, WORDS[:3], 16.0)
        assert output.lost == output.gated == (None, "too dark", None)


@pytest.mark.parametrize("base", [Reward, PictureReward])
def test_a_reward_that_gives_no_tensor_is_refused_whatever_the_micro_batch(base):
    class Listed(base):
        def forward(self, frames, prompt, fps):
            return [1.0] * len(frames)

    for size in (2, None):
        with pytest.raises(RewardFormatError, match="`Listed` gave a list; it must give a float tensor"):
            Listed(micro_batch_size=size)(CLIPS, WORDS, 16.0)


@pytest.mark.parametrize(
    "frames, message",
    [
        (CLIPS[:0], "nothing to score"),
        (CLIPS[:, :0], "nothing to score"),
        (CLIPS * 2, r"values from .* to 1\.99.*divided by 255"),
        (CLIPS * 2 - 1, r"values from -0\.99.*`\(frames \+ 1\) / 2`"),
        (CLIPS.clone().fill_(torch.nan), "NaN comes from the decoder"),
        (CLIPS.permute(0, 1, 3, 4, 2), r"Channels are last.*permute\(0, 1, 4, 2, 3\)"),
        (CLIPS.repeat(1, 2, 1, 1, 1).transpose(1, 2), r"Channels are before frames.*transpose\(1, 2\)"),
        (CLIPS[0], r"`frames\[None\]`"),
        (CLIPS[:, :, :2], r"must be \(B, F, 3, H, W\)"),
    ],
)
def test_frames_that_cannot_be_scored_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        check_clips(frames, WORDS, 16.0)


def test_frames_of_another_type_are_refused():
    with pytest.raises(TypeError, match="torch.int64; it must be float"):
        check_clips(CLIPS.long(), WORDS, 16.0)
    with pytest.raises(TypeError, match="`frames` is a ndarray"):
        check_clips(CLIPS.numpy(), WORDS, 16.0)


def test_more_or_fewer_prompts_than_clips_are_refused():
    for words in (WORDS[:4], [*WORDS, "f"]):
        with pytest.raises(ValueError, match=f"has {len(words)} texts for 5 clips"):
            SharpnessReward()(CLIPS, words, 16.0)
    for words in ("abcde", None, [None] * 5):
        with pytest.raises(TypeError, match=r"`prompt` is .* list of strings"):
            SharpnessReward()(CLIPS, words, 16.0)


@pytest.mark.parametrize("fps", [None, 0, -16.0, float("nan"), "16", True])
def test_a_reward_that_needs_the_frame_rate_refuses_calls_without_one(fps):
    with pytest.raises(ValueError, match="`fps` is .* above 0"):
        check_clips(CLIPS, WORDS, fps, needs_fps=VideoAlignReward.reads_fps)


@pytest.mark.parametrize("fps", [16, 16.0, np.float32(16), np.int64(16)])
def test_a_frame_rate_is_any_real_number(fps):
    check_clips(CLIPS, WORDS, fps)


def test_a_reward_that_does_not_need_the_frame_rate_does_without():
    assert SharpnessReward()(CLIPS, WORDS).score.shape == (5,)


def test_sizes_of_micro_batches_and_strides_are_checked():
    with pytest.raises(ValueError, match="`micro_batch_size` is 0; it must be a whole number, 1 or more"):
        Reward(micro_batch_size=0)
    with pytest.raises(TypeError, match="`frame_stride` is 1.5"):
        PictureReward(frame_stride=1.5)
