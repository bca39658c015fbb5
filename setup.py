"""The repository's root is the package `stream_t1`."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
SUBPACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

setup(
    name="stream-t1",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "pipeline_stream_t1.py").read_text(encoding="utf-8")).group(1),
    description="Test-time search for streaming text-to-video diffusion models, as a diffusers pipeline",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"stream_t1": "."},
    packages=["stream_t1", *(f"stream_t1.{name}" for name in SUBPACKAGES)],
    package_data={
        "stream_t1": ["model_index.json"],
        "stream_t1.demo": ["*.json", "checkpoint/*", "checkpoint/*/*", "judge/*"],
    },
    install_requires=[
        "torch>=2.11",
        "diffusers>=0.42",
        "transformers>=5.17",
        "accelerate>=1.10",
        "ftfy>=6.2",
        "safetensors>=0.6",
        "huggingface_hub>=1.0",
        "imageio-ffmpeg>=0.6",
        "numpy",
        "pillow",
        "tqdm",
    ],
    extras_require={
        "train": ["matplotlib>=3.9"],
        "test": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.14", "matplotlib>=3.9", "peft>=0.18", "torchao>=0.16"],
    },
    entry_points={"console_scripts": ["stream-t1 = stream_t1.__main__:main"]},
)
