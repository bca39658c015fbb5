"""Tiny reward models of the real classes, and the original layouts that the converters read."""

import json

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

from stream_t1.rewards import HPSv3Reward, Qwen2VLRewardModel, VideoAlignReward
from stream_t1.rewards.chat import RewardChat
from stream_t1.rewards.loading import Template
from stream_t1.rewards.qwen2_vl import head_for

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")
REWARD_TOKENS = {"hpsv3": ("<|Reward|>",), "videoalign": ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")}
TEMPLATES = {
    "hpsv3": Template("Say how good this looks as a picture of: ", "\nThe mark is <|Reward|>.\n"),
    "videoalign": Template("The looks: <|VQ_reward|>\nThe motion: <|MQ_reward|>\nThe words: ", "\n<|TA_reward|>\n"),
}
NORMALIZATION = {"VQ": (3.0, 2.0), "MQ": (1.0, 0.5), "TA": (2.0, 4.0)}


def byte_tokenizer(reward_tokens=()) -> PreTrainedTokenizerFast:
    """Every byte a token, and the special tokens after them: it reads any text, and is made without a download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*CHAT_TOKENS, *PLACEHOLDERS, *reward_tokens])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>")


def qwen_config(tokenizer) -> dict:
    """The config of a tiny Qwen2-VL, nested as in new folders."""
    ids = tokenizer.get_vocab()
    return {
        "model_type": "qwen2_vl",
        "text_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "mrope_section": [2, 3, 3],
            "bos_token_id": None,
            "eos_token_id": None,
        },
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def random_head(kind: str) -> torch.nn.Module:
    if kind == "videoalign":
        return head_for({"rm_head.weight": (1, 32)})
    sizes = {0: (64, 32), 3: (16, 64), 5: (2, 16)}
    weights = {f"rm_head.{index}.weight": size for index, size in sizes.items()}
    return head_for(weights | {f"rm_head.{index}.bias": size[:1] for index, size in sizes.items()})


def random_model(kind: str, tokenizer) -> Qwen2VLRewardModel:
    """Weights large enough that pixels, prompt and positions all show in the score."""
    torch.manual_seed(5)
    ids = [tokenizer.get_vocab()[token] for token in REWARD_TOKENS[kind]]
    modality = "image" if kind == "hpsv3" else "video"
    model = Qwen2VLRewardModel(qwen_config(tokenizer), ids, modality, random_head(kind))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1:
                tensor.normal_(std=1.5 * tensor.flatten(1).shape[1] ** -0.5 if "embed_tokens" not in name else 1.0)
    return model


def hpsv3_reward(**options) -> HPSv3Reward:
    tokenizer = byte_tokenizer(REWARD_TOKENS["hpsv3"])
    chat = RewardChat(tokenizer, TEMPLATES["hpsv3"], REWARD_TOKENS["hpsv3"], "image")
    return HPSv3Reward(random_model("hpsv3", tokenizer), chat, num_pixels=56 * 56, **options)


def videoalign_reward(**options) -> VideoAlignReward:
    tokenizer = byte_tokenizer(REWARD_TOKENS["videoalign"])
    chat = RewardChat(tokenizer, TEMPLATES["videoalign"], REWARD_TOKENS["videoalign"], "video")
    model = random_model("videoalign", tokenizer)
    return VideoAlignReward(
        model, chat, normalization=NORMALIZATION, min_pixels=28 * 28, max_pixels=56 * 56, **options
    )


def save_reward(reward, folder):
    """A converted folder of a tiny reward, without the converter."""
    folder.mkdir()
    kind = reward.kind
    tokens = [reward.chat.tokenizer.convert_ids_to_tokens(i) for i in reward.chat.reward_token_ids]
    constants = {"num_pixels": reward.num_pixels} if kind == "hpsv3" else {"normalization": NORMALIZATION}
    if kind == "videoalign":
        constants |= {name: getattr(reward, name) for name in ("sample_fps", "min_pixels", "max_pixels")}
    config = {"kind": kind, "reward_tokens": tokens, "model": reward.model.config.to_dict(), **constants}
    (folder / "reward_config.json").write_text(json.dumps(config))
    template = TEMPLATES[kind]
    (folder / "template.json").write_text(json.dumps({"before": template.before, "after": template.after}))
    save_file(reward.model.state_dict(), folder / "model.safetensors")
    reward.chat.tokenizer.save_pretrained(folder)
    return folder


def clips(num_clips: int, num_frames: int, height: int = 40, width: int = 48, seed: int = 0) -> torch.Tensor:
    """Smooth random clips (B, F, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_clips * num_frames, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return smooth.mul(255).round().byte().unflatten(0, (num_clips, num_frames))


def reference_case(name: str):
    """Config, original state dict, inputs and the original's head output of a reference case."""
    from conftest import REFERENCE

    folder = REFERENCE / "rewards" / name
    case = load_file(folder / "case.safetensors")
    golden = case.pop("head_output")
    config = json.loads((folder / "config.json").read_text())
    return config, load_file(folder / "original_state_dict.safetensors"), case, golden


def save_tiny_clip(folder, projection_dim: int = 16) -> None:
    """A random CLIP and its tokenizer, as a folder."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    end = tokenizer.get_vocab()["<|endoftext|>"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": end}
    config = CLIPConfig(
        text_config={**shared, **text, "pad_token_id": None, "bos_token_id": None},
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        projection_dim=projection_dim,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_tiny_dino(folder) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)


def save_layers(path, sizes=(16, 8, 1)) -> list[torch.nn.Linear]:
    """Linear layers under LAION's names, which count the dropouts between them."""
    torch.manual_seed(1)
    layers = [torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    named = {f"layers.{2 * i}.{k}": v for i, layer in enumerate(layers) for k, v in layer.state_dict().items()}
    save_file(named, path) if path.suffix == ".safetensors" else torch.save(named, path)
    return layers
