"""LoRAs in PEFT's keys: merged, or kept apart for diffusers."""

import peft
import pytest
import torch
from checkpoint_files import linear_names, original, prefixed, random_lora, save_base
from safetensors.torch import load_file

from stream_t1 import CausalWanTransformer3DModel, StreamT1Pipeline
from stream_t1.checkpoints import convert_longlive, convert_wan_transformer
from stream_t1.checkpoints.lora import merge_lora

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory, reference_transformer):
    return save_base(tmp_path_factory.mktemp("wan") / "base", reference_transformer)


@pytest.fixture
def files(tmp_path):
    """The generator's file, and a function that saves a LoRA's."""
    torch.save({"generator": prefixed("model.")}, tmp_path / "base.pt")

    def save_lora(state):
        torch.save(state, tmp_path / "lora.pt")
        return tmp_path / "lora.pt"

    return tmp_path / "base.pt", save_lora


@pytest.fixture(scope="module")
def peft_model(reference_transformer):
    """Adds a LoRA to the reference transformer the way PEFT itself does, and does not merge it."""

    def build(state: dict[str, torch.Tensor], alpha: float, rank: int = 8) -> torch.nn.Module:
        modules = {key.split(".lora_")[0].removeprefix("base_model.model.") for key in state}
        names = {module: convert_wan_transformer({f"{module}.weight": 0}) for module in modules}
        names = {module: next(iter(keys)).removesuffix(".weight") for module, keys in names.items()}
        model = CausalWanTransformer3DModel.from_config(reference_transformer.config)
        model.load_state_dict(convert_wan_transformer(original()))
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names.values()))
        model = peft.get_peft_model(model.eval(), config)
        renamed = {}
        for key, tensor in state.items():
            module, matrix = key.removeprefix("base_model.model.").split(".lora_")
            renamed[f"base_model.model.{names[module]}.lora_{matrix}"] = tensor
        result = peft.set_peft_model_state_dict(model, renamed)
        assert not result.unexpected_keys
        return model

    return build


def velocity(transformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 16, 3, 4, 6, generator=generator)
    text = torch.randn(1, 24, 32, generator=generator)
    with torch.no_grad():
        return transformer(latents, torch.tensor([750.0]), text, return_dict=False)[0]


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("alpha", [None, 8.0, 20.0])
def test_a_merged_lora_is_pefts_unmerged_forward(base, files, peft_model, tmp_path, alpha):
    state = random_lora(rank=8)
    convert_longlive(tmp_path / "out", files[0], lora=files[1]({"generator_lora": state}), lora_alpha=alpha, base=base)
    merged = StreamT1Pipeline.from_pretrained(tmp_path / "out").transformer
    expected = velocity(peft_model(state, alpha=8 if alpha is None else alpha))
    assert relative_error(velocity(merged), expected) < TOLERANCE
    assert relative_error(velocity(peft_model(state, alpha=0)), expected) > 0.01  # the LoRA does something


@pytest.mark.parametrize("alpha", [None, 20.0])
def test_a_lora_kept_apart_is_loaded_by_diffusers(base, files, peft_model, tmp_path, alpha):
    state = random_lora(rank=8)
    options = {"lora": files[1](state), "lora_alpha": alpha, "base": base, "merge_lora": False}
    convert_longlive(tmp_path / "out", files[0], **options)
    pipe = StreamT1Pipeline.from_pretrained(tmp_path / "out")
    plain = velocity(pipe.transformer)
    assert relative_error(plain, velocity(peft_model(state, alpha=0))) < TOLERANCE
    pipe.load_lora_weights(tmp_path / "out")
    expected = velocity(peft_model(state, alpha=8 if alpha is None else alpha))
    assert relative_error(velocity(pipe.transformer), expected) < TOLERANCE
    pipe.unload_lora_weights()
    assert torch.equal(velocity(pipe.transformer), plain)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace("base_model.model.", "base_model.model._fsdp_wrapped_module."),
        lambda key: key.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."),
    ],
)
def test_keys_of_other_savers_are_the_same_lora(base, files, tmp_path, rename):
    written = []
    for number, state in enumerate((random_lora(), {rename(key): tensor for key, tensor in random_lora().items()})):
        convert_longlive(tmp_path / f"out{number}", files[0], lora=files[1](state), base=base)
        written.append(load_file(tmp_path / f"out{number}/transformer/diffusion_pytorch_model.safetensors"))
    torch.testing.assert_close(written[0], written[1], rtol=0, atol=0)


def test_the_generators_lora_is_taken_and_only_its_layers_change(base, files, tmp_path):
    names = linear_names()[:2]
    state = {"critic_lora": random_lora(rank=4), "generator_lora": random_lora(rank=2, names=names)}
    conversion = convert_longlive(tmp_path / "out", files[0], lora=files[1](state), base=base)
    assert conversion.origins[1].role == "LoRA, merged in float32: rank 2, alpha as large as the rank, 2 linear layers"
    written = load_file(tmp_path / "out/transformer/diffusion_pytorch_model.safetensors")
    plain = convert_wan_transformer(original())
    changed = {key for key in plain if not torch.equal(plain[key], written[key])}
    assert changed == set(convert_wan_transformer({f"{name}.weight": 0 for name in names}))


def test_a_merge_in_bfloat16_rounds_once():
    weight, down, up = torch.tensor([[1.0]]), torch.tensor([[1.0]]), torch.tensor([[2.0**-9]])
    low = merge_lora(weight.bfloat16(), down.bfloat16(), up.bfloat16(), scale=3.0)
    assert low.dtype == torch.float32 and low.item() == 1.0 + 3 * 2.0**-9  # by hand; bfloat16 has 2**-7 at 1


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: s | {"base_model.model.blocks.0.ffn.0.lora_A.weight": torch.zeros(8, 97)},
            r"A and B are \(8, 97\)",
        ),
        (lambda s: s | {"base_model.model.blocks.0.ffn.0.lora_A.weight": torch.zeros(4, 96)}, r"\(160, 8\)"),
        (
            lambda s: {k.replace("blocks.2", "blocks.7"): v for k, v in s.items()},
            "no module for 10 of this LoRA's modules: base_model.model.blocks.7.cross_attn.k",
        ),
        (lambda s: {k: v for k, v in s.items() if "0.ffn.0.lora_A" not in k}, "ffn.net.0.proj.weight has no lora_A"),
        (lambda s: s | {"base_model.model.head.alpha": torch.ones(1)}, "1 keys that are none of a LoRA's: base_model"),
        (
            lambda s: s | {k.replace(".weight", ".other.weight"): v for k, v in s.items()},
            r"several adapters for one module: .*lora_A\.weight",
        ),
        (lambda s: {k: v.long() for k, v in s.items()}, "A and B of torch.int64 and torch.int64, no floats"),
        (lambda s: {"generator": prefixed("model.")}, "holds no LoRA"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused_before_anything_is_written(base, files, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        convert_longlive(tmp_path / "out", files[0], lora=files[1](change(random_lora())), base=base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.pt", "lora.pt"]


@pytest.mark.parametrize("alpha", [0.0, -8.0, float("nan"), float("inf")])
def test_an_invalid_alpha_is_refused(base, files, tmp_path, alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}; it must be a number above 0"):
        convert_longlive(tmp_path / "out", files[0], lora=files[1](random_lora()), lora_alpha=alpha, base=base)


@pytest.mark.parametrize("options", [{"lora_alpha": 8.0}, {"merge_lora": False}])
def test_options_of_a_lora_without_a_lora_are_refused(base, files, tmp_path, options):
    with pytest.raises(ValueError, match="given without a LoRA; name one"):
        convert_longlive(tmp_path / "out", files[0], lora=None, base=base, **options)
