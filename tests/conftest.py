"""Toy models of the real classes, and the reference cases."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from fresh_process import FreshProcesses
from hub import Hub
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from stream_t1 import CausalWanTransformer3DModel, FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.checkpoints import convert_wan_transformer
from stream_t1.demo import CHECKPOINT
from stream_t1.rewards import Reward

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(autouse=True)
def _few_threads():
    # A worker of several has a core for itself.
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory):
    """A Hub that holds what test modules put there, each under its own names."""
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="session")
def processes(hub_server, tmp_path_factory):
    """Fresh processes, by whether they have the package."""
    homes = [tmp_path_factory.mktemp("home") for _ in range(2)]
    with FreshProcesses(hub_server.url, homes[0], package=False) as without:
        with FreshProcesses(hub_server.url, homes[1], package=True) as having:
            yield {False: without, True: having}


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
            chunk_frames=config.get("chunk_frames", 3),
            first_chunk_frames=config.get("first_chunk_frames"),
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


def toy_text_encoder(text_dim: int = 8) -> UMT5EncoderModel:
    """Reads the tokens of `CHECKPOINT / "tokenizer"`."""
    torch.manual_seed(2)
    config = UMT5Config(vocab_size=300, d_model=text_dim, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return UMT5EncoderModel(config).eval()


@pytest.fixture
def reading_pipeline(toy_models):
    """The toy pipeline with a text encoder."""
    tokenizer = T5TokenizerFast.from_pretrained(CHECKPOINT / "tokenizer")
    pipe = StreamT1Pipeline(
        tokenizer,
        toy_text_encoder(),
        *toy_models,
        FewStepFlowMatchScheduler(),
        default_height=16,
        default_width=16,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def nothing_done(pipe: StreamT1Pipeline, *generators: torch.Generator) -> Iterator[None]:
    """Fails when a module computes, a generator is drawn from, or the pipeline, its scheduler or a weight changes."""
    called: list[str] = []

    def note(module: torch.nn.Module, _: tuple) -> None:
        if any(weight.device.type != "meta" for weight in module.parameters()):  # there, it computes nothing
            called.append(type(module).__name__)

    handle = register_module_forward_pre_hook(note)
    before = visible_state(pipe, generators)
    try:
        yield
    finally:
        handle.remove()
    after = visible_state(pipe, generators)
    assert called == []
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()


def visible_state(pipe: StreamT1Pipeline, generators: tuple[torch.Generator, ...]) -> dict[str, object]:
    """Attributes of a pipeline and its scheduler, where its weights lie, and what generators will draw."""
    owners = {"pipeline": pipe, "scheduler": pipe.scheduler}
    seen = {f"{owner}.{name}": value for owner, thing in owners.items() for name, value in vars(thing).items()}
    seen = {name: value.tolist() if torch.is_tensor(value) else repr(value) for name, value in seen.items()}
    models = {name: model for name, model in pipe.components.items() if isinstance(model, torch.nn.Module)}
    for model_name, model in models.items():
        seen |= {f"{model_name}.{name}": weight.data_ptr() for name, weight in model.named_parameters()}
    drawn = {"torch's generator": torch.default_generator, **{f"generator {i}": g for i, g in enumerate(generators)}}
    return seen | {name: generator.get_state().numpy().tobytes() for name, generator in drawn.items()}


@pytest.fixture
def named_reward(tmp_path, monkeypatch):
    """The folder of a converted reward, and a list that grows whenever it is loaded."""
    loads = []

    class Counted(Reward):
        reads_prompt = False

        @classmethod
        def from_folder(cls, folder, **_):
            loads.append(folder.path)
            return cls()

        def forward(self, frames, prompt, fps):
            return brightness(frames, prompt, fps)

    monkeypatch.setitem(Reward._of_kind, "counted", Counted)
    config = {"kind": "counted", "model": {}, "reward_tokens": []}
    (tmp_path / "reward_config.json").write_text(json.dumps(config))
    return str(tmp_path), loads


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
