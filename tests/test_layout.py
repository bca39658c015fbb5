"""The shape of the repository that the Hub's loader needs, and what an import costs."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers.utils.dynamic_modules_utils import find_pipeline_class, get_relative_imports

import stream_t1
from stream_t1 import rewards
from stream_t1.__main__ import COMMANDS, main
from stream_t1.loaders.folder import reached_modules, write_code
from stream_t1.rewards.shipped import SHIPPED_REWARDS

ROOT = Path(stream_t1.__file__).parent
PACKAGES = ("models", "schedulers", "search", "rewards", "checkpoints")
LEAVES = [
    path
    for folder in ("models", "schedulers", "search", "rewards", "loaders")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.name != "__init__.py"
]


def relative_imports(path):
    """(level, module, names) of every relative import."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    return [(node.level, node.module, [name.name for name in node.names]) for node in found]


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_leaf_imports_its_siblings_by_name_and_no_other_part_of_the_project(path):
    siblings = {sibling.stem for sibling in path.parent.glob("*.py")}
    for level, module, names in relative_imports(path):
        assert (level, module) == (1, None) and set(names) <= siblings
    assert "stream_t1" not in {name.split(".")[0] for name in absolute_imports(path)}


def absolute_imports(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]


def test_the_pipeline_reaches_every_leaf_and_no_converter():
    reached = {f"{module.replace('.', '/')}.py" for module in reached_modules("pipeline_stream_t1")}
    leaves = {path.relative_to(ROOT).as_posix() for path in LEAVES}
    at_the_root = {name for name in reached if "/" not in name}
    assert reached == leaves | at_the_root and "pipeline_stream_t1.py" in at_the_root


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """The folder of the exported code, which can be imported as `exported_code` and has no `__init__.py`."""
    write_code(tmp_path / "exported_code")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "exported_code"
    for name in [name for name in sys.modules if name.split(".")[0] == "exported_code"]:
        del sys.modules[name]


def test_the_exported_code_is_what_importing_the_pipeline_loads(exported):
    importlib.import_module("exported_code.pipeline_stream_t1")
    loaded = {module.__file__ for name, module in sys.modules.items() if name.startswith("exported_code.")} - {None}
    assert loaded == {str(path) for path in exported.rglob("*.py")} - {
        str(exported / shim) for shim in ("stream_t1.py", "pipeline.py")
    }


@pytest.mark.parametrize("shim", ["stream_t1", "pipeline"])
def test_a_shim_holds_the_pipeline_and_names_all_modules_in_the_form_that_the_loader_reads(exported, shim):
    imports = set(get_relative_imports(exported / f"{shim}.py"))
    assert imports == set(reached_modules("pipeline_stream_t1"))
    assert find_pipeline_class(importlib.import_module(f"exported_code.{shim}")).__name__ == "StreamT1Pipeline"


def test_the_exported_code_loads_every_kind_of_reward(exported, tmp_path):
    importlib.import_module("exported_code.pipeline_stream_t1")
    config = {"kind": "none", "model": {}, "reward_tokens": []}
    (tmp_path / "reward_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="kind 'none'; Reward loads hpsv3, videoalign."):
        sys.modules["exported_code.rewards.base"].Reward.from_pretrained(tmp_path)


def test_every_public_reward_is_registered_as_shipped():
    classes = [getattr(rewards, name) for name in rewards.__all__]
    abstract = {rewards.Reward, rewards.PictureReward}
    public = {cls for cls in classes if issubclass(cls, rewards.Reward)} - abstract
    assert set(SHIPPED_REWARDS.values()) == public and all(SHIPPED_REWARDS[cls.__name__] is cls for cls in public)


def test_an_evaluation_knows_nothing_of_the_demo():
    for path in (ROOT / "evaluation").glob("*.py"):
        modules = [f"{module or ''} {' '.join(names)}" for _, module, names in relative_imports(path)]
        assert not [module for module in modules if "demo" in module] and "stream_t1" not in absolute_imports(path)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does_and_which_arguments_it_has(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: stream-t1 {command} [-h]") and len(said.splitlines()) > 5


def test_leaves_import_nothing_that_the_project_does_not_require():
    allowed = {"torch", "diffusers", "transformers", "numpy", "PIL", "safetensors", "huggingface_hub"}
    used = {name.split(".")[0] for path in LEAVES for name in absolute_imports(path)}
    assert used - allowed <= sys.stdlib_module_names


def test_importing_the_package_loads_neither_torch_nor_diffusers():
    code = "import stream_t1, sys; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["stream_t1", *(f"stream_t1.{name}" for name in PACKAGES)])
def test_every_public_name_is_that_of_what_it_brings(package):
    module = importlib.import_module(package)
    names = set(module.__all__) - {"__version__"}
    assert names and {getattr(module, name).__name__ for name in names} == names


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'WanPipeline'"):
        stream_t1.WanPipeline  # noqa: B018
