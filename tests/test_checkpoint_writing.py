"""Output that appears whole or not at all."""

import json
import resource
import shutil

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from stream_t1.checkpoints.reading import TensorInfo
from stream_t1.checkpoints.writing import DIFFUSERS_STEM, check_free_space, new_folder, write_shards
from stream_t1.loaders.saving import MANIFEST, write_manifest


def write(folder, tensors, **options):
    infos = {key: TensorInfo.of(tensor) for key, tensor in tensors.items()}
    return write_shards(folder, infos, lambda keys: {key: tensors[key] for key in keys}, stem="model", **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_its_name_when_it_is_finished(tmp_path):
    with new_folder(tmp_path / "model") as folder:
        (folder / "model_index.json").write_text("{}")
        assert not (tmp_path / "model").exists()
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["model_index.json", MANIFEST]


@pytest.mark.parametrize("failure", [ValueError, OSError, KeyboardInterrupt])
def test_a_failure_or_an_interruption_leaves_nothing(tmp_path, failure):
    with pytest.raises(failure), new_folder(tmp_path / "model") as folder:
        (folder / "model_index.json").write_text("{}")
        raise failure
    assert names(tmp_path) == []


@pytest.fixture
def existing(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text("old")
    write_manifest(folder)
    return folder


def test_an_existing_folder_is_refused(tmp_path, existing):
    with pytest.raises(FileExistsError, match="exists; name another"), new_folder(existing):
        pass
    assert (existing / "model_index.json").read_text() == "old" and names(tmp_path) == ["model"]


def test_an_existing_folder_is_replaced_on_request_and_only_at_the_end(tmp_path, existing):
    with new_folder(existing, overwrite=True) as folder:
        (folder / "model_index.json").write_text("new")
        assert (existing / "model_index.json").read_text() == "old"
    assert (existing / "model_index.json").read_text() == "new" and names(tmp_path) == ["model"]


def test_a_swap_that_is_interrupted_brings_the_old_folder_back(tmp_path, existing, monkeypatch):
    rename = type(existing).rename

    def interrupted(path, target):
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(type(existing), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(existing, overwrite=True):
        pass
    assert (existing / "model_index.json").read_text() == "old" and names(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["letter.txt", "config.json", "model_index.json", ".git/HEAD", MANIFEST])
def test_a_folder_with_a_file_that_was_not_written_here_is_never_replaced(tmp_path, name):
    (tmp_path / "home" / name).parent.mkdir(parents=True)
    (tmp_path / "home" / name).write_text("dear")
    with pytest.raises(FileExistsError, match=f"{name}, of 1"), new_folder(tmp_path / "home", overwrite=True):
        pass
    assert (tmp_path / "home" / name).read_text() == "dear" and names(tmp_path) == ["home"]


def test_a_folder_that_was_changed_or_added_to_is_never_replaced(existing):
    (existing / "model_index.json").write_text("mine")
    with pytest.raises(FileExistsError, match="model_index.json, of 1"), new_folder(existing, overwrite=True):
        pass
    (existing / "model_index.json").write_text("old")
    (existing / "notes").symlink_to(existing.parent)
    with pytest.raises(FileExistsError, match="notes, of 1"), new_folder(existing, overwrite=True):
        pass
    assert names(existing) == ["model_index.json", "notes", MANIFEST]


def test_a_link_to_a_folder_is_never_replaced(tmp_path, existing):
    (tmp_path / "link").symlink_to(existing)
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    for name in ("link", "nowhere"):
        with pytest.raises(FileExistsError, match="is no folder"), new_folder(tmp_path / name, overwrite=True):
            pass
    assert (tmp_path / "link").is_symlink() and (existing / "model_index.json").read_text() == "old"


def test_an_output_may_not_hold_its_inputs(tmp_path, existing):
    for path in (existing, existing / "model_index.json"):
        with pytest.raises(ValueError, match="holds the input"), new_folder(existing, overwrite=True, inputs=(path,)):
            pass
    with pytest.raises(FileNotFoundError, match="no folder"), new_folder(tmp_path / "absent" / "model"):
        pass


def test_shards_have_the_names_and_index_that_diffusers_loads(tmp_path, toy_models):
    transformer = toy_models[0]
    state = transformer.state_dict()
    infos = {key: TensorInfo.of(tensor) for key, tensor in state.items()}
    written = write_shards(
        tmp_path, infos, lambda keys: {key: state[key] for key in keys}, stem=DIFFUSERS_STEM, shard_bytes=8000
    )
    WanTransformer3DModel.from_config(transformer.config).save_config(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), state, rtol=0, atol=0)
    assert len(written.files) > 1 and set(names(tmp_path)) >= {file.name for file in written.files}
    assert written.num_parameters == sum(tensor.numel() for tensor in state.values())
    assert written.num_bytes == 4 * written.num_parameters and written.dtypes == ("float32",)


def test_every_shard_is_read_on_its_own_and_no_larger_than_asked(tmp_path):
    tensors = {name: torch.zeros(10) for name in "abcde"}
    asked = []

    def read(keys):
        asked.append(keys)
        return {key: tensors[key] for key in keys}

    infos = {key: TensorInfo.of(tensor) for key, tensor in tensors.items()}
    write_shards(tmp_path, infos, read, stem="model", shard_bytes=80)
    assert asked == [["a", "b"], ["c", "d"], ["e"]]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["c"] == "model-00002-of-00003.safetensors"
    assert index["metadata"]["total_size"] == 200


def test_views_and_tied_tensors_are_written_as_tensors_of_their_own(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"rows": whole[:2], "columns": whole.t(), "tied": whole, "again": whole}
    write(tmp_path, tensors)
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), tensors, rtol=0, atol=0)


def test_a_disk_that_takes_no_more_is_an_os_error_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # no file grows beyond this
    try:
        with pytest.raises(OSError, match="model.safetensors could not be written"):
            with new_folder(tmp_path / "model") as folder:
                write(folder / "transformer", {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_too_small_a_disk_is_found_out_before_any_work(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_free_space(tmp_path / "model", free // 2)
    with pytest.raises(OSError, match=r"needs .* GB, and its disk has .* GB left"):
        check_free_space(tmp_path / "model", free + 10**12)
