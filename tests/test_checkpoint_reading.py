"""Opening the checkpoint files of others."""

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from stream_t1.checkpoints.reading import TensorInfo, check_keys, open_checkpoint, read_json
from stream_t1.checkpoints.writing import write_shards


def tensors():
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


class Code:
    """What a pickle can do to who loads it: here, to leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save, name", [(save_file, "x.safetensors"), (torch.save, "x.pt")])
def test_shapes_and_dtypes_are_known_and_tensors_come_back(tmp_path, save, name):
    save(tensors(), tmp_path / name)
    checkpoint = open_checkpoint(tmp_path / name)
    assert checkpoint.dicts[""] == {
        "a": TensorInfo((2, 3), torch.float32),
        "b": TensorInfo((4,), torch.bfloat16),
    }
    assert checkpoint.read(["a"]).keys() == {"a"}
    torch.testing.assert_close(checkpoint.read(["b", "a"]), tensors(), rtol=0, atol=0)


def test_nested_dicts_have_their_path_as_name_and_what_has_no_name_is_left_out(tmp_path):
    state = {"generator": {"model": tensors()}, "step": 3, "optimizer": {"state": {0: {"average": torch.ones(1)}}}}
    torch.save(state, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert set(checkpoint.dicts) == {"generator.model"}
    assert checkpoint.read(["b"], dict_name="generator.model")["b"].shape == (4,)


def test_a_dict_that_holds_itself_ends(tmp_path):
    state = tensors()
    state["again"] = state
    torch.save(state, tmp_path / "x.pt")
    assert len(open_checkpoint(tmp_path / "x.pt").dicts) == 4


def test_shards_are_read_as_one(tmp_path):
    infos = {key: TensorInfo.of(tensor) for key, tensor in tensors().items()}
    write_shards(tmp_path, infos, lambda keys: {k: tensors()[k] for k in keys}, stem="model", shard_bytes=24)
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.files) == 2 and checkpoint.dicts[""] == infos
    torch.testing.assert_close(checkpoint.read(["a", "b"]), tensors(), rtol=0, atol=0)
    checkpoint.files[1].unlink()
    with pytest.raises(FileNotFoundError, match="lacks shards that its index names: model-00002-of-00002"):
        open_checkpoint(tmp_path)


def test_an_index_can_not_name_files_outside_its_folder(tmp_path):
    save_file(tensors(), tmp_path / "secret.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(FileNotFoundError, match="lacks shards"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff"])
def test_json_that_is_damaged_is_refused_by_the_name_of_its_file(tmp_path, content):
    (tmp_path / "x.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors\.index\.json is damaged: it (is no JSON|holds (list|None))"):
        read_json(tmp_path / "x.safetensors.index.json")
    with pytest.raises(ValueError, match=r"x\.safetensors\.index\.json is damaged"):
        open_checkpoint(tmp_path)


def test_a_folder_with_several_models_is_refused(tmp_path):
    for name in ("x.safetensors", "x.fp16.safetensors"):
        save_file(tensors(), tmp_path / name)
    with pytest.raises(ValueError, match=r"one safetensors file or one index.*x\.fp16\.safetensors"):
        open_checkpoint(tmp_path)


def test_code_in_a_pickle_is_named_and_not_run(tmp_path):
    torch.save({"generator": tensors(), "args": Code(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"holds more than tensors \(`.*open`\).*not loaded"):
        open_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("save, name", [(save_file, "x.safetensors"), (torch.save, "x.pt")])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, save, name, part):
    save({"a": torch.zeros(1000)}, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match="truncated or damaged|truncated, damaged"):
        open_checkpoint(tmp_path / name)


def test_a_damaged_pickle_is_refused(tmp_path):
    torch.save(tensors(), tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_vX"))
    with pytest.raises(ValueError, match="more than tensors|damaged"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (pickle.dumps({"a": 1}), "bare pickle"),
        (b"<!doctype html> not found", "neither safetensors nor"),
    ],
)
def test_what_is_no_checkpoint_is_told_what_it_looks_like(tmp_path, content, reason):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        open_checkpoint(tmp_path / "x.pt")


def test_other_zip_files_and_dicts_without_tensors_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a.txt", "text")
    with pytest.raises(ValueError, match="another kind of zip"):
        open_checkpoint(tmp_path / "x.zip")
    torch.save({"step": 3}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no dict of tensors"):
        open_checkpoint(tmp_path / "x.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        open_checkpoint(tmp_path / "absent.pt")


def test_every_kind_of_misfit_is_listed_with_the_layout_that_was_assumed():
    def infos(*keys):
        return {key: TensorInfo((2, 3), torch.float32) for key in keys}

    expected = {"a": (2, 3), "b": (2, 3), "c": (2, 4)}
    check_keys(infos("a", "b"), {"a": (2, 3), "b": (2, 3)}, path="x.pt", layout="flat")
    with pytest.raises(ValueError) as caught:
        check_keys(infos("a", "c", "u", "v", "w", "z"), expected, path="x.pt", layout="the dict `generator_ema`")
    assert str(caught.value) == (
        "x.pt does not fit the model, of 3 keys; assumed was the dict `generator_ema`. Its keys: 1 missing (b); "
        "4 unknown (u, v, w, ...); 1 misshapen (c is (2, 3), not (2, 4))."
    )
