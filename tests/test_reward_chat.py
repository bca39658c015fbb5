"""The text that the Qwen2-VL rewards read."""

import pytest
from tiny_rewards import REWARD_TOKENS, TEMPLATES, byte_tokenizer, clips, hpsv3_reward

from stream_t1.rewards.chat import RewardChat
from stream_t1.rewards.loading import Template


def chat(kind="hpsv3", tokenizer=None, template=None):
    tokenizer = tokenizer or byte_tokenizer(REWARD_TOKENS[kind])
    modality = "image" if kind == "hpsv3" else "video"
    return RewardChat(tokenizer, template or TEMPLATES[kind], REWARD_TOKENS[kind], modality)


def test_the_text_is_one_turn_of_qwens_chat_with_a_placeholder_per_merged_patch():
    reader = chat()
    ids, mask = reader.tokens(["a cat"], num_placeholders=3)
    assert mask.all() and reader.tokenizer.decode(ids[0]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        "<|image_pad|><|image_pad|><|image_pad|><|vision_end|>Say how good this looks as a picture of: a cat"
        "\nThe mark is <|Reward|>.\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_shorter_prompts_are_padded_on_the_right():
    ids, mask = chat("videoalign").tokens(["longer", "x"], num_placeholders=1)
    assert mask.sum(dim=1).tolist() == [ids.shape[1], ids.shape[1] - 5]
    assert mask[1].diff().le(0).all() and (ids[1, -5:] == chat().tokenizer.pad_token_id).all()


def test_a_prompt_is_not_read_as_a_format():
    ids, _ = chat().tokens(["{text_prompt} {0} %s"], num_placeholders=1)
    assert "picture of: {text_prompt} {0} %s\n" in chat().tokenizer.decode(ids[0])


@pytest.mark.parametrize("token", ["<|Reward|>", "<|im_end|>", "<|image_pad|>"])
def test_a_prompt_with_a_token_of_the_models_own_is_refused(token):
    with pytest.raises(ValueError, match=r"`prompt` contains <\|.*reward_prompt"):
        hpsv3_reward()(clips(1, 1), [f"a sign that says {token}"])


def test_a_tokenizer_without_the_reward_tokens_is_refused():
    with pytest.raises(ValueError, match=r"no token <\|Reward\|>.*[Cc]onvert the reward again"):
        chat(tokenizer=byte_tokenizer())


def test_a_template_without_the_reward_tokens_or_in_another_order_is_refused():
    with pytest.raises(ValueError, match=r"<\|Reward\|> once, in this order"):
        chat(template=Template("Mark this: ", "!"))
    swapped = Template("<|MQ_reward|> <|VQ_reward|> ", " <|TA_reward|>")
    with pytest.raises(ValueError, match="in this order"):
        chat("videoalign", template=swapped)
