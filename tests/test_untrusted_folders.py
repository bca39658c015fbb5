"""Folders that name code of their own where a tokenizer, a config or a model is read."""

import builtins
import json
import shutil

import pytest
from safetensors.torch import save_file
from tiny_rewards import (
    TEMPLATES,
    byte_tokenizer,
    hpsv3_reward,
    qwen_config,
    save_reward,
    save_tiny_clip,
    save_tiny_dino,
)

from stream_t1 import StreamT1Pipeline
from stream_t1.checkpoints import convert_hpsv3
from stream_t1.demo import CHECKPOINT
from stream_t1.rewards import (
    BackgroundConsistencyReward,
    CLIPScoreReward,
    HPSv3Reward,
    Reward,
    SubjectConsistencyReward,
)

CODE = """
from pathlib import Path

Path("{marker}").touch()


class Evil:
    @classmethod
    def from_pretrained(cls, *arguments, **options):
        return cls()
"""
CLASS_REFERENCES = ["evil.Evil", "org/elsewhere--evil.Evil"]


@pytest.fixture(autouse=True)
def nothing_runs_and_nobody_is_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(builtins, "input", lambda question="": asked.append(question) or "yes")
    yield
    assert not asked and not (tmp_path / "ran").exists()


@pytest.fixture
def poison(tmp_path):
    """Adds a module to a folder and its names to the configs there; `changes` may lead away from transformers."""

    def add(folder, reference="evil.Evil", **changes):
        (folder / "evil.py").write_text(CODE.format(marker=tmp_path / "ran"))
        for name, kinds in (
            ("tokenizer_config.json", ["AutoTokenizer"]),
            ("config.json", ["AutoConfig", "AutoModel"]),
        ):
            path = folder / name
            config = json.loads(path.read_text()) if path.is_file() else {}
            references = {kind: [None, reference] if kind == "AutoTokenizer" else reference for kind in kinds}
            path.write_text(json.dumps({**config, "auto_map": references, **changes}))
        return folder

    return add


def clip_folder(path):
    path.mkdir()
    save_tiny_clip(path)
    return path


@pytest.mark.parametrize("reference", CLASS_REFERENCES)
def test_a_tokenizer_that_is_code_is_refused_and_does_not_run(reference, poison, tmp_path):
    clip = clip_folder(tmp_path / "clip")
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    byte_tokenizer().save_pretrained(tokenizer)
    poison(tokenizer, reference, tokenizer_class="Evil", model_type="evil")
    with pytest.raises(ValueError, match=r"tokenizer names code of its own as its tokenizer .*never runs here"):
        CLIPScoreReward.from_pretrained(clip, tokenizer=tokenizer)


@pytest.mark.parametrize("reference", CLASS_REFERENCES)
def test_a_reward_folder_whose_tokenizer_is_code_is_refused(reference, poison, tmp_path):
    folder = poison(
        save_reward(hpsv3_reward(), tmp_path / "reward"), reference, tokenizer_class="Evil", model_type="x"
    )
    for load in (Reward.from_pretrained, HPSv3Reward.from_pretrained):
        with pytest.raises(ValueError, match="reward names code of its own as its tokenizer"):
            load(folder)


def test_a_converter_passes_over_code_beside_its_base(poison, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    byte_tokenizer().save_pretrained(base)
    (base / "config.json").write_text(json.dumps(qwen_config(byte_tokenizer())))
    poison(base, tokenizer_class="Evil")
    words, template = TEMPLATES["hpsv3"], tmp_path / "data_collator_qwen.py"
    template.write_text(
        f'INSTRUCTION = """{words.before}{{text_prompt}}\\n"""\nprompt_with_special_token = """{words.after[1:]}"""\n'
    )
    save_file(hpsv3_reward().model.state_dict(), tmp_path / "HPSv3.safetensors")
    convert_hpsv3(tmp_path / "HPSv3.safetensors", template, tmp_path / "out", base=base, accept_changed_template=True)
    assert Reward.from_pretrained(tmp_path / "out").kind == "hpsv3"
    assert not list((tmp_path / "out").glob("*.py"))


def test_a_pipeline_passes_over_code_beside_its_components(poison, tmp_path):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "demo")
    for component in ("tokenizer", "text_encoder"):
        poison(folder / component)
    pipe = StreamT1Pipeline.from_pretrained(folder)
    assert type(pipe.tokenizer).__module__.startswith("transformers.")


@pytest.mark.parametrize("entry", [["transformers", "AutoTokenizer"], ["evil", "Evil"]])
def test_a_pipeline_never_takes_a_class_that_could_be_code_of_its_folder(entry, poison, tmp_path):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "demo")
    poison(folder / "tokenizer", tokenizer_class="Evil", model_type="evil")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "tokenizer": entry}))
    with pytest.raises((ValueError, ImportError, AttributeError)):
        StreamT1Pipeline.from_pretrained(folder)


def test_code_beside_a_model_of_transformers_is_passed_over(poison, tmp_path):
    clip, dino = poison(clip_folder(tmp_path / "clip")), tmp_path / "dino"
    dino.mkdir()
    save_tiny_dino(dino)
    poison(dino)
    for model in (
        CLIPScoreReward.from_pretrained(clip).model,
        BackgroundConsistencyReward.from_pretrained(clip).model,
        SubjectConsistencyReward.from_pretrained(dino).model,
    ):
        assert type(model).__module__.startswith("transformers.")
