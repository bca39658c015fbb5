"""Opening untrusted third-party checkpoints.

The file is long because every kind of damage has its case.
"""

import collections
import io
import pickle
import random
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from stream_t1.checkpoints.reading import TensorInfo, check_keys, open_checkpoint, read_json
from stream_t1.checkpoints.writing import write_shards


def tensors():
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


class Code:
    """Code that runs when a pickle is loaded: here it leaves a file."""

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


def test_an_alpha_that_is_no_tensor_is_not_left_out(tmp_path):
    torch.save({**tensors(), "a.alpha": 8.0}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="1 alphas are numbers and no tensors, such as a.alpha"):
        open_checkpoint(tmp_path / "x.pt")


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


def test_an_index_cannot_name_files_outside_its_folder(tmp_path):
    save_file(tensors(), tmp_path / "secret.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(ValueError, match=r"names 1 files outside its folder: \.\./secret\.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
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
def test_a_file_that_is_no_checkpoint_is_refused_with_what_it_looks_like(tmp_path, content, reason):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        open_checkpoint(tmp_path / "x.pt")


def rezipped(path, compression=zipfile.ZIP_STORED, replaced=None):
    """The file written anew, some records with other contents."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    prefix = next(iter(contents)).split("/")[0]
    contents |= {f"{prefix}/{name}": content for name, content in (replaced or {}).items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def peak_bytes(function):
    tracemalloc.start()
    try:
        function()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_compressed_records_are_refused_without_being_unpacked(tmp_path):
    torch.save({"a": torch.zeros(10_000_000)}, tmp_path / "x.pt")
    path = rezipped(tmp_path / "x.pt", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000

    def refused():
        with pytest.raises(ValueError, match=r"x\.pt .*record \S+ is compressed or encrypted"):
            open_checkpoint(path)

    assert peak_bytes(refused) < 1_000_000


def test_a_file_that_was_zipped_anew_without_compression_is_read(tmp_path):
    torch.save(tensors(), tmp_path / "x.pt")
    checkpoint = open_checkpoint(rezipped(tmp_path / "x.pt"))
    torch.testing.assert_close(checkpoint.read(["a", "b"]), tensors(), rtol=0, atol=0)


def test_a_hole_in_a_record_is_found_by_the_checksum_of_the_zip(tmp_path):
    torch.save({"hole": torch.arange(1.0, 2001.0), "whole": torch.ones(7)}, tmp_path / "x.pt")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    begin = content.index(torch.arange(500.0, 600.0).numpy().tobytes())
    content[begin : begin + 400] = bytes(400)
    (tmp_path / "x.pt").write_bytes(content)
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert torch.equal(checkpoint.read(["whole"])["whole"], torch.ones(7))
    with pytest.raises(ValueError, match=r"x\.pt .*record x/data/0 is damaged.*checksum"):
        checkpoint.read(["hole"])


def test_a_file_saved_without_checksums_is_read(tmp_path):
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors(), tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(computed)
    torch.testing.assert_close(open_checkpoint(tmp_path / "x.pt").read(["a", "b"]), tensors(), rtol=0, atol=0)


def test_what_torch_saves_beside_and_as_tensors_is_read(tmp_path):
    shared, model = torch.arange(12.0), torch.nn.BatchNorm1d(3)
    state = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "view": shared.view(3, 4).t(),
        "part": shared[5:7],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "small": torch.ones(3).to(torch.float8_e4m3fn),
        "complex": torch.ones(2, dtype=torch.complex64),
    }
    others = {"args": {"lr": 1e-4, "betas": (0.9, 0.99), "name": "run", "flags": [True, None], "big": 2**70}}
    others |= {
        "size": torch.Size([3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "bytes": b"ab",
        "set": {1},
    }
    torch.save({**state, **others, "model": model.state_dict()}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert set(checkpoint.dicts) == {"", "model"} and checkpoint.dicts[""].keys() == state.keys()
    read = checkpoint.read(state)
    for key, tensor in state.items():
        torch.testing.assert_close(read[key], tensor.detach(), rtol=0, atol=0)
    assert torch.equal(checkpoint.read(["running_var"], dict_name="model")["running_var"], model.running_var)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path, protocol):
    torch.save({"generator": tensors(), "step": 3}, tmp_path / "x.pt", pickle_protocol=protocol)
    torch.testing.assert_close(
        open_checkpoint(tmp_path / "x.pt").read(["a", "b"], dict_name="generator"), tensors(), rtol=0, atol=0
    )


def tensor_pickle(*, offset=0, shape=(2, 3), stride=(3, 1), num_elements=6, key="0"):
    """`data.pkl` of {"a": a float tensor}, with the numbers that a damaged or hostile file may have."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                Storage(),
                offset,
                shape,
                stride,
                False,
                collections.OrderedDict(),
            )

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, key, "cpu", num_elements) if isinstance(thing, Storage) else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump({"a": Tensor()})
    return file.getvalue()


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"shape": (2, 4), "stride": (4, 1)}, r"shape \(2, 4\).*does not fit its storage of 6 numbers"),
        ({"offset": 1}, "offset 1 does not fit"),
        ({"stride": (4, 1)}, r"strides \(4, 1\)"),
        ({"shape": (10**6, 10**6), "stride": (0, 0)}, "does not fit its storage"),  # 4 TB of one number
        ({"shape": (2, -3)}, "does not fit its storage"),
        ({"offset": -1}, "does not fit its storage"),
        ({"stride": (1,)}, "does not fit its storage"),
        ({"num_elements": 600}, "record x/data/0 has 24 bytes, and should have 600 numbers"),
        ({"num_elements": 5}, "record x/data/0 has 24 bytes, and should have 5 numbers"),
        ({"key": "1"}, "truncated, damaged"),
        ({"key": "../0"}, "truncated, damaged"),
    ],
)
def test_shapes_that_do_not_fit_their_storage_are_refused(tmp_path, numbers, message):
    torch.save({"a": tensors()["a"]}, tmp_path / "x.pt")
    rezipped(tmp_path / "x.pt", replaced={"data.pkl": tensor_pickle()})
    assert torch.equal(open_checkpoint(tmp_path / "x.pt").read(["a"])["a"], tensors()["a"])
    rezipped(tmp_path / "x.pt", replaced={"data.pkl": tensor_pickle(**numbers)})
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",  # bytearray(2**31 - 1)
        b"\x80\x02ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x05}r\xff\xff\xff\x7f.",  # a memo of 2**31 entries
        b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00.",  # a bytearray of 4 GiB that is not there
        b"\x80\x02K\x01\x85\x85\x86.",
        b"\x80\x02}q\x00",
        b"\x80\x02h\x05.",
        b"(lp0\nI1\na.",
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    ],
)
def test_a_pickle_can_ask_for_no_memory_and_no_call(tmp_path, content):
    torch.save(tensors(), tmp_path / "x.pt")
    rezipped(tmp_path / "x.pt", replaced={"data.pkl": content})

    def refused():
        with pytest.raises(ValueError, match="no dict of tensors|truncated, damaged|more than tensors"):
            open_checkpoint(tmp_path / "x.pt")

    assert peak_bytes(refused) < 1_000_000


@pytest.mark.parametrize("save, name", [(save_file, "x.safetensors"), (torch.save, "x.pt")])
def test_a_file_with_wrong_bytes_is_read_or_refused_and_by_its_checksums_never_read_wrong(tmp_path, save, name):
    save(tensors(), tmp_path / name)
    whole, draw, num_refused = (tmp_path / name).read_bytes(), random.Random(0), 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 1, 3])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        (tmp_path / name).write_bytes(content)
        try:
            read = open_checkpoint(tmp_path / name).read(["a", "b"])
            assert save is save_file or all(torch.equal(read[key], tensors()[key]) for key in read)
        except KeyError as error:  # a name was hit
            assert error.args[0] in ("", "a", "b")
        except ValueError:
            num_refused += 1
    assert 100 < num_refused < 300


def test_dicts_that_multiply_are_refused(tmp_path):
    inner = tensors()
    for _ in range(3):
        inner = {str(number): inner for number in range(60)}
    torch.save(inner, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="more than 100000 dicts"):
        open_checkpoint(tmp_path / "x.pt")


def test_tensors_of_other_kinds_are_refused_by_the_name_of_their_kind(tmp_path):
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"more than tensors \(`torch\._utils\._rebuild_sparse_tensor`\)"):
        open_checkpoint(tmp_path / "x.pt")


def safetensors_bytes(header: bytes, length: int | None = None, data: bytes = bytes(8)) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content",
    [
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', length=10**12),
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', length=20),
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}'),
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'),
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', data=bytes(9)),
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}'),
        safetensors_bytes(b'{"a":' * 10),
    ],
)
def test_a_safetensors_header_that_contradicts_the_file_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors can't be read as safetensors: it is truncated or damaged"):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("weight_map", ["{}", '{"a": 3}', '{"a": null}', '{"a": []}', "[]", '{"a": ".."}'])
def test_an_index_that_names_no_files_is_refused(tmp_path, weight_map):
    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "x.safetensors.index.json").write_text(f'{{"weight_map": {weight_map}}}')
    with pytest.raises(
        (ValueError, FileNotFoundError), match="not an index of shards|lacks shards|outside its folder"
    ):
        open_checkpoint(tmp_path)


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
