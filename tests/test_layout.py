"""The shape of the repository that the Hub's loader needs, and what an import costs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import stream_t1

ROOT = Path(stream_t1.__file__).parent
PACKAGES = ("models", "schedulers", "search", "rewards", "checkpoints")
LEAVES = [
    path
    for folder in ("models", "schedulers", "search", "rewards")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.name != "__init__.py"
] + [ROOT / "checkpoints/folder.py"]  # the one file of the converters that the pipeline needs


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


def test_the_pipeline_file_names_every_module_it_needs():
    named = {module for _, module, _ in relative_imports(ROOT / "pipeline_stream_t1.py")}
    assert named == {f"{path.parent.name}.{path.stem}" for path in LEAVES}


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
