"""Cost of the paper's reward models per chunk: seconds and memory, at their real size with random weights.

    python benchmarks/reward_cost.py                 both models in bfloat16, 480x832, on a GPU
    python benchmarks/reward_cost.py --size tiny     the same code with tiny models, on any machine

A chunk has `--num-candidates` clips (K * M of them). The image reward reads the 12 new frames of each, the video
reward the window of `--window-frames`. Frames are 8-bit and on the device, as a search has them.
"""

import argparse
import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from metering import check_output, commit, machine, peak_bytes
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig

from stream_t1.rewards import HPSv3Reward, Qwen2VLRewardModel, Reward, VideoAlignReward, hpsv3, videoalign
from stream_t1.rewards.chat import CHAT_TOKENS, PLACEHOLDERS, RewardChat
from stream_t1.rewards.loading import Template
from stream_t1.rewards.qwen2_vl import head_for
from stream_t1.search.files import new_file

GIB = 2**30
NEW_FRAMES = 12  # of a chunk
PROMPT_WORDS = 60


@dataclass(frozen=True)
class ModelSize:
    """Sizes that a forward's cost depends on."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    num_layers: int
    vision_width: int
    vision_layers: int
    template_words: int  # one token each; about a quarter of the letters of the original's template


SIZES = {
    "real": {
        "hpsv3": ModelSize(3584, 18944, 28, 4, 28, 1280, 32, 600),  # Qwen2-VL-7B
        "videoalign": ModelSize(1536, 8960, 12, 2, 28, 1280, 32, 950),  # Qwen2-VL-2B
    },
    "tiny": {kind: ModelSize(64, 128, 4, 2, 2, 32, 1, 20) for kind in ("hpsv3", "videoalign")},
}
VOCABULARY = 151660  # token embeddings; they are looked up and multiply nothing
FRAME_SIZES = {"real": (480, 832), "tiny": (64, 96)}


def random_reward(kind: str, size: ModelSize, device: torch.device) -> Reward:
    """A reward of random weights in bfloat16, on its device."""
    tokens = hpsv3.REWARD_TOKENS if kind == "hpsv3" else videoalign.REWARD_TOKENS
    modality = "image" if kind == "hpsv3" else "video"
    words = "word " * size.template_words
    template = Template(words, " " + " ".join(tokens))
    chat = RewardChat(word_tokenizer((*CHAT_TOKENS, *PLACEHOLDERS.values(), *tokens)), template, tokens, modality)
    with torch.device("meta"):
        model = Qwen2VLRewardModel(model_config(size, chat), chat.reward_token_ids, modality, head(kind, size))
    model = model.to(torch.bfloat16).to_empty(device=device)
    for weight in model.parameters():
        weight.data.normal_(std=0.02)
    if kind == "hpsv3":
        return HPSv3Reward(model, chat)
    return VideoAlignReward(model, chat, normalization={name: (0.0, 1.0) for name in videoalign.DIMENSIONS})


def model_config(size: ModelSize, chat: RewardChat) -> Qwen2VLConfig:
    vocabulary = chat.tokenizer.get_vocab()
    section = size.hidden_size // size.num_heads // 2
    return Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": size.hidden_size,
            "intermediate_size": size.intermediate_size,
            "num_hidden_layers": size.num_layers,
            "num_attention_heads": size.num_heads,
            "num_key_value_heads": size.num_key_value_heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [section - 2 * (3 * section // 8), 3 * section // 8, 3 * section // 8],
            },
        },
        vision_config={
            "depth": size.vision_layers,
            "embed_dim": size.vision_width,
            "hidden_size": size.hidden_size,
            "num_heads": max(1, size.vision_width // 80),
        },
        image_token_id=vocabulary[PLACEHOLDERS["image"]],
        video_token_id=vocabulary[PLACEHOLDERS["video"]],
    )


def head(kind: str, size: ModelSize) -> torch.nn.Module:
    if kind == "videoalign":
        return head_for({"rm_head.weight": (1, size.hidden_size)})
    layers = {0: (1024, size.hidden_size), 3: (16, 1024), 5: (2, 16)}
    shapes = {f"rm_head.{index}.weight": shape for index, shape in layers.items()}
    return head_for(shapes | {f"rm_head.{index}.bias": shape[:1] for index, shape in layers.items()})


def word_tokenizer(special_tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: only the number of tokens matters for the cost."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "word": 1}, unk_token="word"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special_tokens))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def measure(reward: Reward, clips: torch.Tensor, num_runs: int) -> dict[str, object]:
    """Seconds of every run and the most memory of any, after one that is not counted."""
    sizes = []
    hook = reward.model.register_forward_pre_hook(lambda module, args: sizes.append(list(args[0].shape)))
    prompt, seconds = ["word " * PROMPT_WORDS] * len(clips), []
    for run in range(num_runs + 1):
        if run == 1 and clips.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(clips.device)
        begin = time.perf_counter()
        with torch.inference_mode():
            reward(clips, prompt, 16.0).score.tolist()  # waits for the device
        seconds.append(time.perf_counter() - begin)
    hook.remove()
    return {
        "clips": list(clips.shape),
        "forwards": sizes[: len(sizes) // (num_runs + 1)],  # sequences and tokens of each
        "seconds": seconds[1:],
        "peak_bytes": peak_bytes(clips.device),
        "weights_bytes": sum(weight.nbytes for weight in reward.parameters()),
    }


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="real", help="default: %(default)s")
    parser.add_argument("--num-candidates", type=int, default=4, help="K * M; default: %(default)s")
    parser.add_argument("--window-frames", type=int, default=120, help="of the video reward; default: %(default)s")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="a JSON file; by convention in benchmarks/results")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse_arguments(argv)
    check_output(options.output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.size == "real" and device.type == "cpu":
        raise SystemExit("The real size needs a GPU, by estimate one with 24 GiB; `--size tiny` runs anywhere.")
    results = {
        "machine": machine(device),
        "versions": {name: version(name) for name in ("torch", "transformers", "stream-t1")},
        "commit": commit(),
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        "dtype": "bfloat16",
        "rewards": {},
    }
    for kind, num_frames in (("hpsv3", NEW_FRAMES), ("videoalign", options.window_frames)):
        torch.manual_seed(0)
        reward = random_reward(kind, SIZES[options.size][kind], device)
        shape = (options.num_candidates, num_frames, 3, *FRAME_SIZES[options.size])
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        cost = measure(reward, clips, options.runs)
        results["rewards"][kind] = cost
        print(
            f"{kind}: {min(cost['seconds']):.3f} s a chunk, the best of {options.runs}, in {len(cost['forwards'])} "
            f"forwards; {cost['weights_bytes'] / GIB:.2f} GiB of weights, peak {cost['peak_bytes'] / GIB:.2f} GiB"
        )
        del reward, clips  # before the next one needs the room
    if options.output is not None:
        with new_file(options.output) as file:
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
