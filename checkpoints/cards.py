"""Model cards: the README.md of a model's folder, whose front matter the Hub reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download

from .layouts import Generator
from .writing import WrittenWeights


@dataclass(frozen=True)
class Origin:
    """A source of a converted model."""

    role: str  # what became of it
    name: str  # `hub_id:file`, a Hub id, or the bare name of a file or folder
    hashes: Mapping[str, str]  # SHA-256 of its files, by their names; empty where it was not hashed


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion, and its sources."""

    folder: Path
    origins: tuple[Origin, ...]
    layout: str  # how the checkpoint held the weights
    weights: WrittenWeights
    hashes: Mapping[str, str]  # SHA-256 of the written weights, by the names of their files
    is_lora_apart: bool
    seconds: float


def generator_card(
    conversion: Conversion, generator: Generator, *, base: str | None, license_on_hub: str | None
) -> ModelCard:
    """The card of a converted generator.

    Args:
        base: Hub id of the model that text encoder, tokenizer and VAE come from; None for a folder.
        license_on_hub: according to the page of the weights; None where it was not read or says nothing.
    """
    trained_for = (
        f"a window of {generator.window_frames} latent frames, {generator.sink_frames} of them sinks, the steps "
        f"{list(generator.denoising_steps)} before a shift of {generator.shift:g}, and the memory policy "
        f"`{generator.memory}`"
    )
    needs_sink = "" if generator.sink_frames else f" and `sink_frames={generator.chunk_frames}` at loading"
    text = f"""# {generator.title} for Stream-T1

The weights of [{generator.title}]({generator.repository}) in diffusers' layout, with the code of Stream-T1: video is
made chunk by chunk, several candidates can be tried for every chunk, and rewards choose among them. The weights were
converted, not trained further.

## Use

{_use(conversion.is_lora_apart)}
`FOLDER` is this folder, or its id on the Hub. Where `stream-t1` is installed, `StreamT1Pipeline.from_pretrained` needs
no remote code.

By default it streams as it was trained: {trained_for}. For a search pass `image_reward`, `video_reward`, `num_beams`
and `num_candidates` to the call; with `memory=RewardRoutedSink()`{needs_sink} the rewards decide what is remembered.

## Where it comes from

{_origins(conversion)}
The weights were found in {conversion.layout}; every key is accounted for.

## Licence

{_license(generator, license_on_hub)}
"""
    return pipeline_card(
        text,
        base_model=[generator.hub_id, *([] if base is None else [base])],
        license=license_on_hub or generator.license,
        tags=["stream-t1", "video-generation", "wan"],
    )


def pipeline_card(text: str, **metadata: str | list[str]) -> ModelCard:
    """A card whose front matter declares a text-to-video model of diffusers."""
    data = ModelCardData(library_name="diffusers", pipeline_tag="text-to-video", **metadata)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def hub_license(hub_id: str) -> str | None:
    """The licence that a model's page on the Hub states, or None."""
    try:
        said = ModelCard.load(hf_hub_download(hub_id, "README.md")).data.license
    except Exception:  # no page, or one that can't be parsed, is no reason for a conversion to fail
        return None
    return said if isinstance(said, str) else None


def _use(is_lora_apart: bool) -> str:
    lines = [
        "import torch",
        "from diffusers import DiffusionPipeline",
        "from diffusers.utils import export_to_video",
        'pipe = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True, torch_dtype=torch.bfloat16)',
        'export_to_video(pipe.to("cuda")("a red fox walks through fresh snow").frames[0], "out.mp4", fps=16)',
    ]
    if is_lora_apart:
        lines.insert(-1, 'pipe.load_lora_weights("FOLDER")  # the LoRA is kept apart from the weights')
    return "\n".join(["```python", *lines, "```\n"])


def _origins(conversion: Conversion) -> str:
    lines = ["| file | what became of it | SHA-256 |", "|---|---|---|"]
    for origin in conversion.origins:
        for number, (file, sha256) in enumerate((origin.hashes or {"": "not hashed"}).items()):
            name = f"`{origin.name}`" + (f", {file}" if len(origin.hashes) > 1 else "")
            lines.append(f"| {name} | {origin.role if number == 0 else 'the same'} | `{sha256}` |")
    for file, sha256 in conversion.hashes.items():
        lines.append(f"| `transformer/{file}` | written here | `{sha256}` |")
    return "\n".join(lines) + "\n"


def _license(generator: Generator, license_on_hub: str | None) -> str:
    if license_on_hub is not None:
        said = f"`{license_on_hub}` is what the page of the weights, {generator.hub_id}, says."
    else:
        said = (
            f"`{generator.license}` is the licence of the authors' repository, {generator.repository}. The page of "
            "the weights could not be read when they were converted; what it says takes precedence."
        )
    return f"{said} The code in this folder is under Apache-2.0."
