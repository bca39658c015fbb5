"""Toy models of the real classes, and the reference cases."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from stream_t1 import CausalWanTransformer3DModel, FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.checkpoints import convert_wan_transformer

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


class Case:
    """One reference case: golden numbers and tensors."""

    def __init__(self, name: str) -> None:
        self.golden = json.loads((REFERENCE / name / "golden.json").read_text())
        self.config = self.golden["config"]
        self.tensors = load_file(REFERENCE / name / "tensors.safetensors")

    @property
    def prompt_embeds(self) -> torch.Tensor:
        """(1, text_len, text dim): zero-padded, as the originals do."""
        embeds = self.tensors["prompt_embeds"]
        padding = self.config["model"]["text_len"] - embeds.shape[1]
        return torch.nn.functional.pad(embeds, (0, 0, 0, padding))

    @property
    def latents(self) -> torch.Tensor:
        """(K, C, frames, h, w) of the last beams, best first."""
        return self.tensors["latents"].transpose(1, 2)

    @property
    def num_chunks(self) -> int:
        return self.config["num_latent_frames"] // 3


@pytest.fixture(scope="session")
def reference_transformer():
    """The transformer of all rollouts and policies, from its original keys."""
    model = CausalWanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=64,
        ffn_dim=160,
        num_layers=3,
    )
    model.load_state_dict(convert_wan_transformer(load_file(REFERENCE / "wan_original.safetensors")), strict=True)
    return model.eval()


def toy_vae(z_dim: int = 16, **overrides) -> AutoencoderKLWan:
    torch.manual_seed(0)
    config = {"base_dim": 4, "z_dim": z_dim, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    config |= {"temperal_downsample": [False, True, True]}
    config |= {"latents_mean": [0.1] * z_dim, "latents_std": [1.5] * z_dim}
    return AutoencoderKLWan(**(config | overrides)).eval()


@pytest.fixture(scope="session")
def reference_pipeline(reference_transformer):
    """Builds a pipeline of the reference transformer with a case's window and sink."""

    def build(config: dict) -> StreamT1Pipeline:
        pipe = StreamT1Pipeline(
            tokenizer=None,
            text_encoder=None,
            transformer=reference_transformer,
            vae=toy_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=config["shift"]),
            window_frames=config["local_attn_size"],
            sink_frames=config["sink_size"],
            denoising_steps=config["denoising_steps"],
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


def toy_transformer(**overrides) -> CausalWanTransformer3DModel:
    torch.manual_seed(1)
    config = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
    config |= {"text_dim": 8, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2}
    return CausalWanTransformer3DModel(**(config | overrides)).eval()


@pytest.fixture(scope="session")
def toy_models():
    return toy_transformer(), toy_vae(z_dim=4)


@pytest.fixture
def toy_pipeline(toy_models):
    """A pipeline of random toy models, 16 px, with prompts given as embeddings."""
    transformer, vae = toy_models
    pipe = StreamT1Pipeline(
        None, None, transformer, vae, FewStepFlowMatchScheduler(), default_height=16, default_width=16
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def embeds():
    """One prompt's embedding for the toy models."""
    return torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))


def brightness(frames: torch.Tensor, prompt: list[str], fps: float) -> torch.Tensor:
    """A reward for the tests: mean brightness of each clip."""
    return frames.mean(dim=(1, 2, 3, 4))


def contrast(frames: torch.Tensor, prompt: list[str], fps: float) -> torch.Tensor:
    """Another one: standard deviation of each clip."""
    return frames.flatten(1).std(dim=1)
