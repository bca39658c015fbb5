"""The trained parts as a diffusers folder that `StreamT1Pipeline.from_pretrained` loads."""

import json
from pathlib import Path

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler

from ..loaders.folder import model_index
from .clips import FPS, FRAME_PIXELS
from .teacher_forcing import CHUNK_FRAMES
from .train_transformer import SHIFT, TextToVideo


def export_folder(model: TextToVideo, vae: AutoencoderKLWan, folder: Path) -> None:
    """Writes every component and `model_index.json`; no path of this machine stays in a config."""
    model.transformer.save_pretrained(folder / "transformer")
    model.text_encoder.save_pretrained(folder / "text_encoder")
    model.tokenizer.save_pretrained(folder / "tokenizer")
    vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(folder / "scheduler")
    index = model_index(
        chunk_frames=CHUNK_FRAMES,
        window_frames=4 * CHUNK_FRAMES,
        sink_frames=CHUNK_FRAMES,
        fps=FPS,
        default_height=FRAME_PIXELS,
        default_width=FRAME_PIXELS,
    )
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for config in folder.glob("*/*config.json"):
        values = json.loads(config.read_text())
        if values.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def folder_megabytes(folder: Path) -> float:
    """Size of the weights in 10^6 bytes."""
    return sum(path.stat().st_size for path in folder.glob("*/*.safetensors")) / 1e6
