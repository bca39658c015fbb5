"""`stream-t1 convert` of the reward models, and what `stream-t1 inspect` says of their files."""

import hashlib

import pytest
from test_reward_converters import hpsv3_files, videoalign_files  # noqa: F401 - fixtures

from stream_t1.__main__ import main
from stream_t1.rewards import Reward


@pytest.mark.parametrize("name, title", [("hpsv3", "HPSv3"), ("videoalign", "VideoAlign")])
def test_a_reward_is_converted_by_its_command(request, tmp_path, capsys, name, title):
    checkpoint, template, base, _ = request.getfixturevalue(f"{name}_files")
    out = tmp_path / "reward"
    command = ["convert", name, "--checkpoint", str(checkpoint), "--template", str(template), "--base", str(base)]
    assert main([*command, "-o", str(out)]) == 2 and not out.exists()  # the template is the test's own
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("stream-t1: ") and "or --accept-changed-template" in error and "as the template." in error
    assert main([*command, "-o", str(out), "--accept-changed-template"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: {title}, ") and "parameters in float32" in first
    sha256 = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert lines[-1] == f"  {sha256}  model.safetensors"
    assert Reward.from_pretrained(out).kind == name


def test_inspect_knows_the_rewards_files_and_folders(videoalign_files, hpsv3_files, tmp_path, capsys):  # noqa: F811
    folder, template, base, _ = videoalign_files
    command = ["convert", "videoalign", "--checkpoint", str(folder), "--template", str(template), "--base", str(base)]
    assert main([*command, "-o", str(tmp_path / "reward"), "--accept-changed-template"]) == 0
    for path, said in (
        (folder, f"converted by: stream-t1 convert videoalign --checkpoint {folder}"),
        (folder / "checkpoint-10/model.pth", f"converted by: stream-t1 convert videoalign --checkpoint {folder}"),
        (hpsv3_files[0], f"converted by: stream-t1 convert hpsv3 --checkpoint {hpsv3_files[0]}"),
        (tmp_path / "reward", "a converted reward, which loads as it is"),
    ):
        capsys.readouterr()
        assert main(["inspect", str(path)]) == 0
        assert capsys.readouterr().out.splitlines()[-1].strip().startswith(said)
