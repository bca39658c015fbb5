"""Original key names to diffusers'."""

import pytest
import torch
from conftest import REFERENCE
from safetensors.torch import load_file

from stream_t1.checkpoints import convert_wan_transformer


@pytest.fixture(scope="module")
def original():
    return load_file(REFERENCE / "wan_original.safetensors")


def test_every_key_has_a_place_in_the_transformer(original, reference_transformer):
    converted = convert_wan_transformer(original)
    expected = reference_transformer.state_dict()
    assert {key: tensor.shape for key, tensor in converted.items()} == {k: t.shape for k, t in expected.items()}


@pytest.mark.parametrize("prefix", ["model.", "module.", "generator.model.", "model._fsdp_wrapped_module."])
def test_prefixes_of_trainers_are_taken_off(original, prefix):
    prefixed = convert_wan_transformer({prefix + key: tensor for key, tensor in original.items()})
    assert prefixed.keys() == convert_wan_transformer(original).keys()


def test_wrapper_names_inside_a_key_are_taken_out(original):
    wrapped = {key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): tensor for key, tensor in original.items()}
    assert convert_wan_transformer(wrapped).keys() == convert_wan_transformer(original).keys()


def test_tensors_are_not_copied(original):
    converted = convert_wan_transformer(original)
    assert converted["proj_out.weight"] is original["head.head.weight"]


def test_two_models_in_one_dict_are_refused():
    tensors = {"model.head.modulation": torch.zeros(1), "generator.head.modulation": torch.zeros(1)}
    with pytest.raises(ValueError, match="twice.*one model at a time"):
        convert_wan_transformer(tensors)
