"""Every way to load a pipeline, each in a fresh process, against a Hub on this machine; and what is refused there."""

import json
import re
import shutil

import pytest
import torch
from conftest import toy_transformer, toy_vae
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from fresh_process import FreshProcesses, filmed
from hub import Hub

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.loaders.folder import write_code

IMPORTS = "from diffusers import DiffusionPipeline, WanPipeline\n"
PACKAGE_IMPORTS = IMPORTS + "from stream_t1 import StreamT1Pipeline\n"


@pytest.fixture(scope="module")
def toy():
    """A pipeline whose search, as `filmed` runs it, lets chunks leave the window."""
    models = toy_transformer(), toy_vae(z_dim=4)
    return StreamT1Pipeline(None, None, *models, FewStepFlowMatchScheduler(), window_frames=9)


@pytest.fixture(scope="module")
def video(toy):
    """The hash of the video that every route has to make."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the fresh processes: with more, sums may be rounded in another order
    yield filmed(toy)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def hub(toy, hub_server):
    """Holds `org/stream-t1`, saved by the package; `org/code`, the code alone; `org/wan`, stock, the same weights."""
    root = hub_server.root
    toy.save_pretrained(root / "org/stream-t1")
    write_code(root / "org/code")
    transformer = WanTransformer3DModel.from_config(toy.transformer.config)
    transformer.load_state_dict(toy.transformer.state_dict())
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    WanPipeline(None, None, toy.vae, scheduler, transformer=transformer).save_pretrained(root / "org/wan")
    return hub_server


@pytest.fixture
def run(processes, tmp_path):
    """Returns what fresh processes print; those of one test share their downloads."""
    for each in processes.values():
        each.forget_downloads()

    def run(lines: str, package: bool = False) -> list[str]:
        return processes[package].run((PACKAGE_IMPORTS if package else IMPORTS) + lines, tmp_path)

    return run


def test_what_remote_code_of_a_local_folder_saves_loads_by_the_names_in_its_index(run, hub, video):
    first = f"""
pipe = DiffusionPipeline.from_pretrained(
    "{hub.root}/org/stream-t1", custom_pipeline="stream_t1", trust_remote_code=True
)
print(filmed(pipe))
pipe.save_pretrained("saved")
"""
    second = """
print(filmed(DiffusionPipeline.from_pretrained("saved", trust_remote_code=True)))
"""
    assert run(first) == [video]
    assert run(second) == [video]


def test_a_local_folder_may_be_its_own_custom_pipeline(run, hub, video):
    folder = f"{hub.root}/org/stream-t1"
    lines = f"""
print(filmed(DiffusionPipeline.from_pretrained("{folder}", custom_pipeline="{folder}", trust_remote_code=True)))
"""
    assert run(lines) == [video]


def test_a_hub_name_loads_with_and_without_custom_pipeline_and_offline_by_path(run, processes, hub, video):
    push = """
pipe = DiffusionPipeline.from_pretrained("org/stream-t1", custom_pipeline="stream_t1", trust_remote_code=True)
print(filmed(pipe))
pipe.push_to_hub("org/pushed")
"""
    load = """
print(filmed(DiffusionPipeline.from_pretrained("org/pushed", trust_remote_code=True)))
"""
    offline = """
from pathlib import Path
from huggingface_hub import hf_hub_download
path = Path(hf_hub_download("org/pushed", "model_index.json")).parent
print(filmed(DiffusionPipeline.from_pretrained(path, trust_remote_code=True)))
"""
    assert run(push) == [video]
    assert (hub.root / "org/pushed/README.md").is_file() and (hub.root / "org/pushed/stream_t1.py").is_file()
    assert run(load) == [video]
    home = processes[False].home
    with FreshProcesses(hub.url, home, package=False, HF_HUB_OFFLINE="1") as without_network:
        assert without_network.run(IMPORTS + offline, home) == [video]


def test_hub_code_and_a_folders_code_run_over_stock_folders_and_pipelines(run, hub, video):
    wan = f"{hub.root}/org/wan"
    lines = f"""
code = dict(custom_pipeline="org/code", trust_remote_code=True, window_frames=9)
print(filmed(DiffusionPipeline.from_pretrained("{wan}", **code)))
print(filmed(DiffusionPipeline.from_pretrained("org/wan", **code)))
stock = WanPipeline.from_pretrained("{wan}", tokenizer=None, text_encoder=None)
code["custom_pipeline"] = "{hub.root}/org/code"
print(filmed(DiffusionPipeline.from_pipe(stock, **code)))
print(filmed(DiffusionPipeline.from_pretrained("{wan}", **code)))
"""
    assert run(lines) == [video] * 4


def test_the_package_loads_names_folders_and_stock_pipelines_without_remote_code_and_pushes(run, hub, video):
    lines = f"""
print(filmed(StreamT1Pipeline.from_pretrained("org/stream-t1")))
print(filmed(StreamT1Pipeline.from_pretrained("org/wan", window_frames=9)))
pipe = StreamT1Pipeline.from_pretrained("{hub.root}/org/stream-t1")
print(filmed(pipe))
stock = WanPipeline.from_pretrained("{hub.root}/org/wan", tokenizer=None, text_encoder=None)
print(filmed(StreamT1Pipeline.from_pipe(stock, window_frames=9)))
from pathlib import Path
Path("saved").mkdir()
Path("saved/notes.txt").write_text("of the user's, and nobody else's")
pipe.save_pretrained(Path("saved"), push_to_hub=True, repo_id="org/saved-and-pushed")
print(filmed(StreamT1Pipeline.from_pretrained("org/saved-and-pushed")))
"""
    assert run(lines, package=True) == [video] * 5
    pushed, saved = hub.root / "org/saved-and-pushed", hub.root / "org/stream-t1"
    assert all((pushed / path.relative_to(saved)).is_file() for path in saved.rglob("*") if path.is_file())
    assert not (pushed / "notes.txt").exists()


def test_the_package_refuses_an_image_to_video_name_before_its_weights_are_fetched(run, hub, processes):
    save_changed(hub, "i2v-by-name", "wan", _class_name="WanImageToVideoPipeline")
    (refusal,) = run('print(refusal(StreamT1Pipeline.from_pretrained, "org/i2v-by-name"))', package=True)
    assert re.match("ValueError: These components are of an image-to-video model", refusal)
    fetched = (processes[True].home / "hf/hub").glob("models--*/snapshots/*/**/*.*")
    assert [path.name for path in fetched] == ["model_index.json"]


def save_changed(hub: Hub, name: str, source: str, missing: str | None = None, **changes: object) -> None:
    """A copy of a repository under another name, without a file or with other entries in its index."""
    folder = hub.root / "org" / name
    shutil.copytree(hub.root / "org" / source, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **changes}))
    if missing is not None:
        (folder / missing).unlink()


REFUSED = {
    "code of its index that is not trusted": (
        'load(place + "/stream-t1")',
        "ValueError: The (repository|directory) .*org/stream-t1 contains .* Pass `trust_remote_code=True`",
    ),
    "code of its folder that is not trusted": (
        'load(place + "/stream-t1", custom_pipeline="stream_t1")',
        "ValueError: The (repository|directory) .*org/stream-t1 contains .* Pass `trust_remote_code=True`",
    ),
    "code of the Hub that is not trusted": (
        'load(place + "/wan", custom_pipeline="org/code")',
        "ValueError: The repository for org/code contains .* Pass `trust_remote_code=True`",
    ),
    "a component without weights": (
        'load(place + "/no-weights", trust_remote_code=True)',
        "OSError: Error no file named diffusion_pytorch_model.* found in directory .*no-weights.*/vae",
    ),
    "a component without config": (
        'load(place + "/no-config", trust_remote_code=True)',
        "OSError: Error no file named config.json found in directory .*no-config.*/transformer",
    ),
    "code that lacks a module": (
        'load(place + "/no-beam", trust_remote_code=True)',
        "(RemoteEntryNotFound|FileNotFound)Error: .*org/no-beam/.*search/beam.py",
    ),
    "an image-to-video model": (
        'load(place + "/i2v", custom_pipeline="org/code", trust_remote_code=True)',
        "ValueError: These components are of an image-to-video model, .* takes Wan 2.1 text-to-video: folders",
    ),
    "a Wan 2.2 model": (
        'load(place + "/wan22", custom_pipeline="org/code", trust_remote_code=True)',
        "ValueError: These components are of a Wan 2.2 model.* takes Wan 2.1 text-to-video: folders",
    ),
    "a pipeline of a Wan 2.2 model": (
        "DiffusionPipeline.from_pipe("
        'WanPipeline.from_pretrained(place + "/wan22", tokenizer=None, text_encoder=None), '
        'custom_pipeline="org/code", trust_remote_code=True)',
        "ValueError: These components are of a Wan 2.2 model.* takes Wan 2.1 text-to-video: folders",
    ),
    "another pipeline": (
        'load(place + "/other", custom_pipeline="org/code", trust_remote_code=True)',
        "ValueError: These components are of another pipeline, `LTXPipeline`.* takes Wan 2.1 text-to-video: folders",
    ),
}


@pytest.fixture(scope="module")
def refusals(hub, processes):
    """Errors of a process without the package for each case, by name and from a folder."""
    save_changed(hub, "no-weights", "stream-t1", missing="vae/diffusion_pytorch_model.safetensors")
    save_changed(hub, "no-config", "stream-t1", missing="transformer/config.json")
    save_changed(hub, "no-beam", "stream-t1", missing="search/beam.py")
    save_changed(hub, "i2v", "wan", _class_name="WanImageToVideoPipeline")
    save_changed(hub, "wan22", "wan", boundary_ratio=0.9)
    save_changed(hub, "other", "wan", _class_name="LTXPipeline")
    lines = "load = DiffusionPipeline.from_pretrained\n"
    for place in ("org", f"{hub.root}/org"):
        lines += f"place = {place!r}\n"
        lines += "".join(f"print(refusal(lambda: {call}))\n" for call, _ in REFUSED.values())
    said = iter(processes[False].run(IMPORTS + lines, processes[False].home))
    return {(place, case): next(said) for place in ("name", "folder") for case in REFUSED}


@pytest.mark.parametrize("place", ["name", "folder"])
@pytest.mark.parametrize("case", REFUSED)
def test_remote_code_refuses_with_one_clear_error(refusals, case, place):
    assert re.match(REFUSED[case][1], refusals[place, case])
