"""Adapter files in all layouts that trainers write, merged by the converter and loaded by a pipeline.

Both are compared with a merge by hand: `W + alpha / rank * B A` for pairs, `+ difference` for whole differences. The
file is long because every layout and every fault of one has its case.
"""

import json
import zipfile

import pytest
import torch
from checkpoint_files import original, prefixed, save_base
from safetensors.torch import load_file, save_file

from stream_t1 import StreamT1Pipeline
from stream_t1.checkpoints import convert_self_forcing, convert_wan_transformer

MODULES = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.2.ffn.0", "blocks.1.ffn.2")
OUTSIDE_BLOCKS = ("time_embedding.0", "text_embedding.2", "time_projection.1", "head.head")
RANK = 4


def noise(*shape: int) -> torch.Tensor:
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pairs(modules: tuple[str, ...] = MODULES) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B by original module."""
    shapes = {module: original()[f"{module}.weight"].shape for module in modules}
    return {module: (noise(RANK, size[1]), noise(size[0], RANK)) for module, size in shapes.items()}


def named(prefix: str, down: str, up: str, modules: tuple[str, ...] = MODULES, alpha: float | None = None):
    """A state dict of pairs, their keys as a trainer names them."""
    state = {}
    for module, (a, b) in pairs(modules).items():
        state |= {f"{prefix}{module}.{down}.weight": a, f"{prefix}{module}.{up}.weight": b}
        if alpha is not None:
            state[f"{prefix}{module}.alpha"] = torch.tensor(alpha)
    return state


def in_diffusers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, tensor in state.items():
        module, kind = key.split(".lora_")
        name = next(iter(convert_wan_transformer({f"{module}.weight": 0}))).removesuffix(".weight")
        renamed[f"transformer.{name}.lora_{kind}"] = tensor
    return renamed


def as_kohya(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    split = {key: key.partition(".lora_" if ".lora_" in key else ".alpha") for key in state}
    return {"lora_unet_" + m.replace(".", "_") + dot + kind: state[key] for key, (m, dot, kind) in split.items()}


def by_hand(scale: float, modules: tuple[str, ...] = MODULES) -> dict[str, torch.Tensor]:
    """The model's state dict under diffusers' names, merged."""
    state = original()
    for module, (a, b) in pairs(modules).items():
        state[f"{module}.weight"] = state[f"{module}.weight"] + scale * b @ a
    return convert_wan_transformer(state)


LAYOUTS = {  # state dict, and the scale of its pairs
    "PEFT": (lambda: named("base_model.model.", "lora_A", "lora_B"), 1.0),
    "PEFT, named": (lambda: named("base_model.model.", "lora_A.default", "lora_B.default"), 1.0),
    "bare": (lambda: named("", "lora_A", "lora_B"), 1.0),
    "bare, alpha": (lambda: named("", "lora_down", "lora_up", alpha=2.0), 0.5),
    "ComfyUI": (lambda: named("diffusion_model.", "lora_A", "lora_B"), 1.0),
    "ComfyUI, alpha": (lambda: named("diffusion_model.", "lora_down", "lora_up", alpha=2.0), 0.5),
    "ComfyUI, alpha, A and B": (lambda: named("diffusion_model.", "lora_A", "lora_B", alpha=16.0), 4.0),
    "kohya": (lambda: as_kohya(named("", "lora_down", "lora_up", alpha=1.0)), 0.25),
    "kohya, no alpha": (lambda: as_kohya(named("", "lora_down", "lora_up")), 1.0),
    "diffusers": (lambda: in_diffusers_names(named("", "lora_A", "lora_B")), 1.0),
    "diffusers, alpha": (lambda: named("transformer.", "lora_A", "lora_B", alpha=2.0), 0.5),
    "diffusers, old": (lambda: named("transformer.", "lora.down", "lora.up"), 1.0),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, reference_transformer):
    return save_base(tmp_path_factory.mktemp("wan") / "base", reference_transformer)


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    path = tmp_path_factory.mktemp("generator") / "base.pt"
    torch.save({"generator_ema": prefixed("model.")}, path)
    return path


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory, base, generator):
    """The converted model without a LoRA."""
    folder = tmp_path_factory.mktemp("plain") / "out"
    convert_self_forcing(folder, generator, base=base)
    return folder


@pytest.fixture
def merge(tmp_path, base, generator):
    """Merges an adapter's state dict, or its file, with the converter; gives the written weights."""

    def merged(state, **options) -> dict[str, torch.Tensor]:
        if isinstance(state, dict):
            state = saved(state, tmp_path / "lora.safetensors")
        convert_self_forcing(tmp_path / "out", generator, base=base, lora=state, **options)
        return load_file(tmp_path / "out/transformer/diffusion_pytorch_model.safetensors")

    return merged


@pytest.fixture
def fuse(plain_folder):
    """Loads an adapter into a pipeline and fuses it; gives the transformer's weights."""

    def fused(source) -> dict[str, torch.Tensor]:
        pipe = StreamT1Pipeline.from_pretrained(plain_folder)
        pipe.load_lora_weights(source)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        return pipe.transformer.state_dict()

    return fused


def saved(state: dict[str, torch.Tensor], path, metadata: dict[str, str] | None = None):
    path.parent.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata)
    return path


def assert_same_weights(actual, expected):
    assert actual.keys() == expected.keys()
    torch.testing.assert_close(dict(actual), dict(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_converter_merges_what_a_merge_by_hand_gives(layout, merge):
    state, scale = LAYOUTS[layout]
    assert_same_weights(merge(state()), by_hand(scale))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pipeline_loads_what_a_merge_by_hand_gives(layout, fuse):
    state, scale = LAYOUTS[layout]
    given = state()
    before = {key: tensor.clone() for key, tensor in given.items()}
    assert_same_weights(fuse(given), by_hand(scale))
    torch.testing.assert_close(given, before, rtol=0, atol=0)  # the caller's tensors are never scaled


@pytest.mark.parametrize("layout", ["PEFT", "ComfyUI", "kohya, no alpha"])
def test_layers_outside_the_blocks_are_adapted_too(layout, merge, fuse):
    modules = (*MODULES, *OUTSIDE_BLOCKS)
    state = named("", "lora_A", "lora_B", modules)
    if layout == "kohya, no alpha":
        state = as_kohya(state)
    else:
        state = {("diffusion_model." if layout == "ComfyUI" else "base_model.model.") + k: v for k, v in state.items()}
    assert_same_weights(merge(state), by_hand(1.0, modules))
    assert_same_weights(fuse(state), by_hand(1.0, modules))


def test_the_files_that_are_kept_apart_are_merged_by_the_converter(merge, tmp_path, base, generator):
    state = named("diffusion_model.", "lora_down", "lora_up", alpha=2.0)
    state["diffusion_model.blocks.0.self_attn.q.diff_b"] = noise(96)
    convert_self_forcing(
        tmp_path / "apart", generator, base=base, lora=saved(state, tmp_path / "lora.safetensors"), merge_lora=False
    )
    expected = by_hand(0.5)
    expected["blocks.0.attn1.to_q.bias"] = expected["blocks.0.attn1.to_q.bias"] + noise(96)
    assert_same_weights(merge(tmp_path / "apart/pytorch_lora_weights.safetensors"), expected)


@pytest.mark.parametrize(
    "config, scale",
    [
        ({"lora_alpha": 8, "r": RANK}, 2.0),
        ({"lora_alpha": 8, "r": RANK, "use_rslora": True}, 8 / RANK**0.5),
        ({"lora_alpha": 99, "r": RANK, "alpha_pattern": {"q": 8, "o": 8, r"blocks\.\d\.ffn\.\d": 8}}, 2.0),
    ],
)
def test_alpha_is_that_of_the_config_beside_the_file(config, scale, merge, fuse, tmp_path):
    file = saved(named("base_model.model.", "lora_A", "lora_B"), tmp_path / "adapter/adapter_model.safetensors")
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    assert_same_weights(merge(file), by_hand(scale))
    assert_same_weights(fuse(file), by_hand(scale))
    assert_same_weights(fuse(tmp_path / "adapter"), by_hand(scale))


def test_alpha_is_that_of_the_files_header(merge, fuse, tmp_path):
    header = {"transformer.lora_alpha": 8, "transformer.r": RANK, "transformer.target_modules": ["to_q"]}
    state = in_diffusers_names(named("", "lora_A", "lora_B"))
    file = saved(state, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(header), "format": "pt"})
    assert_same_weights(merge(file), by_hand(2.0))
    assert_same_weights(fuse(file), by_hand(2.0))


@pytest.mark.parametrize("header", ["{", "[]", "[" * 100_000])
def test_a_damaged_header_is_refused_by_the_converter(header, merge, tmp_path):
    state = in_diffusers_names(named("", "lora_A", "lora_B"))
    file = saved(state, tmp_path / "lora.safetensors", {"lora_adapter_metadata": header})
    with pytest.raises(ValueError, match="lora.safetensors has a damaged lora_adapter_metadata in its header"):
        merge(file)


def test_an_alpha_of_the_argument_must_not_contradict_the_file(merge):
    state = named("diffusion_model.", "lora_down", "lora_up", alpha=2.0)
    with pytest.raises(ValueError, match="alphas for diffusion_model.*: 2 by its keys, 8 by the argument"):
        merge(state, lora_alpha=8.0)
    assert_same_weights(merge(state, lora_alpha=2.0), by_hand(0.5))


def differences(prefix: str = "diffusion_model.") -> dict[str, torch.Tensor]:
    """Differences of every kind of parameter, by ComfyUI's names."""
    shapes = {key: tuple(tensor.shape) for key, tensor in original().items()}
    kinds = {
        "blocks.0.self_attn.q.diff_b": "blocks.0.self_attn.q.bias",
        "blocks.0.self_attn.norm_q.diff": "blocks.0.self_attn.norm_q.weight",
        "blocks.1.norm3.diff": "blocks.1.norm3.weight",
        "blocks.1.norm3.diff_b": "blocks.1.norm3.bias",
        "blocks.2.diff_m": "blocks.2.modulation",
        "blocks.1.modulation.diff": "blocks.1.modulation",
        "head.diff_m": "head.modulation",
        "head.head.diff": "head.head.weight",
        "head.head.diff_b": "head.head.bias",
        "blocks.0.ffn.2.diff": "blocks.0.ffn.2.weight",
        "patch_embedding.diff": "patch_embedding.weight",
        "patch_embedding.diff_b": "patch_embedding.bias",
    }
    return {f"{prefix}{key}": (name, noise(*shapes[name])) for key, name in kinds.items()}


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
def test_the_converter_adds_every_kind_of_difference(prefix, merge):
    state = named(prefix, "lora_down", "lora_up", alpha=2.0)
    expected, originals = by_hand(0.5), {}
    for key, (name, tensor) in differences(prefix).items():
        state[key] = tensor
        originals[name] = originals.get(name, 0) + tensor
    for name, tensor in convert_wan_transformer(originals).items():
        expected[name] = expected[name] + tensor
    assert_same_weights(merge(state), expected)


def test_a_pipeline_applies_differences_of_linear_layers(fuse):
    state, expected = named("diffusion_model.", "lora_down", "lora_up", alpha=2.0), by_hand(0.5)
    for key, (name, tensor) in differences().items():
        if name.endswith(("q.bias", "head.head.weight", "head.head.bias", "ffn.2.weight")):
            state[key] = tensor
            new_name = next(iter(convert_wan_transformer({name: 0})))
            expected[new_name] = expected[new_name] + tensor
    assert len(state) == 3 * len(MODULES) + 4
    assert_same_weights(fuse(state), expected)


def test_a_pipeline_refuses_what_it_cannot_apply_by_name_and_count(plain_folder):
    pipe = StreamT1Pipeline.from_pretrained(plain_folder)
    state = named("diffusion_model.", "lora_down", "lora_up") | {key: t for key, (_, t) in differences().items()}
    with pytest.raises(ValueError, match="8 changes that can't be applied .*norm_q.diff.*convert ... --lora"):
        pipe.load_lora_weights(state)
    assert pipe.get_list_adapters() == {} and not getattr(pipe.transformer, "peft_config", None)


def test_differences_that_are_zero_change_nothing_and_are_no_reason_to_refuse(fuse):
    state = named("diffusion_model.", "lora_down", "lora_up")
    state |= {key: torch.zeros_like(tensor) for key, (_, tensor) in differences().items()}
    assert_same_weights(fuse(state), by_hand(1.0))


def test_a_difference_that_cannot_be_kept_apart_is_refused_before_anything_is_written(
    tmp_path, base, generator, merge
):
    state = named("diffusion_model.", "lora_down", "lora_up") | {"diffusion_model.head.diff_m": noise(1, 2, 96)}
    with pytest.raises(ValueError, match="1 changes that can't be applied .*head.diff_m"):
        merge(state, merge_lora=False)
    assert not (tmp_path / "out").exists()


FIRST = "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    "change, message",
    [
        ({f"{FIRST}.lora_up.weight": None}, "half of the pair of 1 of its 4 modules: .*to_q.weight has no lora_B"),
        ({f"{FIRST}.lora_down.weight": None}, "half of the pair of 1 of its 4 modules: .*to_q.weight has no lora_A"),
        ({f"{FIRST}.dora_scale": torch.ones(96, 1)}, "1 keys that are none of a LoRA's: .*dora_scale"),
        ({f"{FIRST}.lora_mid.weight": torch.ones(4, 4)}, "1 keys that are none of a LoRA's: .*lora_mid"),
        ({f"{FIRST}.lora_magnitude_vector": torch.ones(96)}, "1 keys that are none of a LoRA's: .*magnitude"),
        ({"diffusion_model.blocks.0.ffn.2.hada_w1_a": torch.ones(4)}, "1 keys that are none of a LoRA's: .*hada"),
        ({"diffusion_model.blocks.0.ffn.2.alpha": torch.tensor(1.0)}, "1 keys that are none of a LoRA's: .*alpha"),
        ({"blocks.0.self_attn.q.weight": torch.ones(96, 96)}, "1 keys that are none of a LoRA's: blocks"),
        ({"diffusion_model.blocks.9.norm3.diff": torch.ones(96)}, "no module for 1 of this LoRA's.*blocks.9.norm3"),
        ({"diffusion_model.blocks.0.cross_attn.k_img.diff_b": torch.ones(96)}, "no module for 1 .*k_img"),
        ({"lora_te_text_model.lora_up.weight": torch.ones(4, 4)}, "no module for 1 of this LoRA's.*lora_te"),
        ({f"{FIRST}.diff_b": torch.ones(95)}, r"1 changes in its 4 modules do not fit .*to_q.bias is \(96,\)"),
        ({f"{FIRST}.alpha": torch.ones(2)}, "alpha is .*must be one number"),
        ({f"{FIRST}.alpha": torch.tensor(float("nan"))}, "alpha nan for .*finite number"),
        ({f"{FIRST}.alpha": torch.tensor(0.0)}, "alpha 0.0 for .*finite number"),
        ({"lora_unet_blocks_0_self_attn_q.lora_down.weight": noise(4, 96)}, "to_q.weight twice"),
    ],
)
def test_a_file_that_is_not_understood_in_full_is_refused_by_both(change, message, merge, plain_folder, tmp_path):
    state = named("diffusion_model.", "lora_down", "lora_up", alpha=2.0) | change
    state = {key: tensor for key, tensor in state.items() if tensor is not None}
    pipe = StreamT1Pipeline.from_pretrained(plain_folder)
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(state)
    assert not getattr(pipe.transformer, "peft_config", None)
    with pytest.raises(ValueError, match=message):
        merge(state)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config, message",
    [
        ({"use_dora": True}, "1 settings that are unknown here: use_dora"),
        ({"peft_type": "LOHA"}, "peft_type=LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
        ({"lora_alpha": "8"}, "alpha '8' for its config"),
        ({"lora_alpha": 8, "r": 16}, "rank 4 at .*, and a config of rank 16"),
        ({"alpha_pattern": {"(": 8}}, "alpha_pattern '\\('"),
        ({"alpha_pattern": 8}, "alpha_pattern is 8"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_both(config, message, merge, plain_folder, tmp_path):
    file = saved(named("base_model.model.", "lora_A", "lora_B"), tmp_path / "adapter/adapter_model.safetensors")
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        merge(file)
    with pytest.raises(ValueError, match=message):
        StreamT1Pipeline.from_pretrained(plain_folder).load_lora_weights(file)


def test_a_convolutions_pair_is_merged_over_its_kernel(merge, fuse):
    weight = original()["patch_embedding.weight"]
    down, up = noise(RANK, *weight.shape[1:]), noise(weight.shape[0], RANK, 1, 1, 1)
    state = {f"lora_unet_patch_embedding.lora_{side}.weight": t for side, t in (("down", down), ("up", up))}
    expected = convert_wan_transformer(original())
    delta = torch.einsum("or,rikhw->oikhw", up[..., 0, 0, 0], down)
    expected["patch_embedding.weight"] = weight + delta
    assert_same_weights(merge(state), expected)
    assert_same_weights(fuse(state), expected)


def test_a_second_adapter_is_loaded_over_the_first(plain_folder):
    pipe = StreamT1Pipeline.from_pretrained(plain_folder)
    pipe.load_lora_weights(LAYOUTS["kohya"][0](), "first")
    pipe.load_lora_weights(LAYOUTS["ComfyUI, alpha"][0](), "second")
    pipe.set_adapters(["first", "second"])
    pipe.fuse_lora(adapter_names=["first", "second"])
    pipe.unload_lora_weights()
    assert_same_weights(pipe.transformer.state_dict(), by_hand(0.25 + 0.5))


def test_an_adapter_in_bfloat16_is_loaded_with_its_scale(plain_folder):
    """Scaled matrices are float32 both, so that PEFT can multiply them whatever the model's type."""
    pipe = StreamT1Pipeline.from_pretrained(plain_folder, dtype=torch.bfloat16)
    state = {
        key: tensor.bfloat16() for key, tensor in named("diffusion_model.", "lora_down", "lora_up", alpha=3.0).items()
    }
    pipe.load_lora_weights(state)
    layer = pipe.transformer.blocks[0].attn1.to_q
    a, b = (tensor.bfloat16().float() for tensor in pairs()["blocks.0.self_attn.q"])
    x = noise(2, 96).bfloat16()
    expected = layer.base_layer(x).float() + 3.0 / RANK * x.float() @ a.T @ b.T
    torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float8_e4m3fn, torch.float8_e4m3fn)])
def test_matrices_of_unequal_or_small_types_are_loaded_in_float32(dtypes, fuse):
    state, expected = {}, original()
    for module, matrices in pairs().items():
        a, b = (matrix.to(dtype) for matrix, dtype in zip(matrices, dtypes, strict=True))
        state |= {f"diffusion_model.{module}.lora_A.weight": a, f"diffusion_model.{module}.lora_B.weight": b}
        expected[f"{module}.weight"] = expected[f"{module}.weight"] + b.float() @ a.float()
    assert_same_weights(fuse(state), convert_wan_transformer(expected))


@pytest.mark.parametrize("state", [{}, {"generator.blocks.0.self_attn.q.weight": torch.ones(96, 96)}])
def test_a_state_dict_that_is_no_adapter_is_refused(state, plain_folder):
    with pytest.raises(ValueError, match="This state dict holds no LoRA"):
        StreamT1Pipeline.from_pretrained(plain_folder).load_lora_weights(state)


def test_a_compressed_file_is_refused_before_it_is_unpacked(plain_folder, merge, tmp_path):
    torch.save(named("", "lora_A", "lora_B"), tmp_path / "lora.pt")
    with zipfile.ZipFile(tmp_path / "lora.pt") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "lora.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="lora.pt has compressed records"):
        StreamT1Pipeline.from_pretrained(plain_folder).load_lora_weights(tmp_path / "lora.pt")
    with pytest.raises(ValueError, match="lora.pt .* compressed"):
        merge(tmp_path / "lora.pt")


def test_a_torch_file_is_loaded_and_merged(merge, fuse, tmp_path):
    torch.save(named("diffusion_model.", "lora_down", "lora_up", alpha=2.0), tmp_path / "lora.pt")
    assert_same_weights(merge(tmp_path / "lora.pt"), by_hand(0.5))
    assert_same_weights(fuse(tmp_path / "lora.pt"), by_hand(0.5))


def test_the_generators_adapter_is_taken_from_a_file_of_several_or_none_is(merge, tmp_path):
    state = named("base_model.model.", "lora_A", "lora_B")
    torch.save({"critic_lora": state, "student_lora": state}, tmp_path / "lora.pt")
    with pytest.raises(ValueError, match="holds 2 LoRAs, in the dicts critic_lora, student_lora"):
        merge(tmp_path / "lora.pt")
