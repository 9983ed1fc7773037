"""Students of Chinese captions are asked, and answer, in Chinese, made so from the start or going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import voice

from aligncap.data.manifest import read_manifest, write_manifest
from aligncap.inference.captioner import Captioner
from aligncap.models.checkpoints import load_folder
from aligncap.text.prompts import speaker_words, teacher_prompt, templates
from aligncap.training.clips import read_clips
from aligncap.training.data import CaptionRows
from aligncap.training.sft import SpeechSFTConfig, run_sft


@pytest.fixture(scope="module")
def chinese(manifest: Path) -> Path:
    """The clips with Chinese captions, clues and acoustic prompts."""
    clips = read_manifest(manifest)
    for i, u in enumerate(clips):
        u.gender = ("female", "male")[i % 2]
        u.captions, u.clues = ["她听起来悲伤。", "她语速缓慢。"], [["悲伤"], ["语速缓慢"]]
        u.p_act = ["声音：悲伤。", "声音：语速缓慢。"]
    out = manifest.parent / "chinese.jsonl"
    write_manifest(out, clips)
    return out


@pytest.fixture(scope="module")
def options(parts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        **{"max_steps": 1, "save_strategy": "no", "precision": "float32", "report_to": "none"},
        **{"cache_dir": str(tmp_path_factory.mktemp("cache")), "disable_tqdm": True},
    }


SHAPE = {"encoder_layer": "2", "projector_hidden": 24, "align_steps": 2}


def test_every_text_has_its_chinese_counterpart() -> None:
    english, chinese = templates("en"), templates("zh")
    assert {*english} - {"zh"} == {*chinese}
    assert speaker_words("zh") == ["女性", "男性"] and speaker_words() == ["woman", "man"]


def test_the_teacher_is_asked_in_the_language_of_each_caption(chinese, manifest, tiny) -> None:
    tokenizer = tiny[1].tokenizer
    for path, language in ((chinese, "zh"), (manifest, "en")):
        rows = CaptionRows.of(read_clips(str(path), p_act=True), tokenizer, max_response_tokens=64)
        u = rows.clips.utterances[0]
        wanted = teacher_prompt(tokenizer, u.transcript, u.p_act[0], u.gender, language)
        assert rows.prompt(0) == tokenizer(wanted, add_special_tokens=False)["input_ids"]
        assert templates(language)["instruction"] in wanted


def test_a_student_of_chinese_captions(chinese, options, parts, tmp_path) -> None:
    data = {"train_manifest": str(chinese), "output_dir": str(tmp_path / "run")}
    run_sft(SpeechSFTConfig(**options, **parts, **SHAPE, **data))
    model, processor = load_folder(tmp_path / "run/base")
    assert processor.language == "zh" and templates("zh")["instruction"] in processor.prompt
    assert list(model.config.speakers) == ["女性", "男性"]
    assert model.model.multi_modal_projector.speaker.weight.abs().sum() > 0  # fitted by the clips' genders
    captioner = Captioner.from_pretrained(tmp_path / "run", device="cpu")
    assert captioner.no_speech == "没有听到说话声。"
    assert isinstance(captioner(voice(0.6), max_new_tokens=3), str)


def test_an_english_student_goes_on_in_chinese(chinese, manifest, options, parts, tmp_path) -> None:
    first = {"train_manifest": str(manifest), "output_dir": str(tmp_path / "first")}
    run_sft(SpeechSFTConfig(**options, **parts, **SHAPE, **first))
    assert load_folder(tmp_path / "first/base")[1].language == "en"
    second = {"train_manifest": str(chinese), "output_dir": str(tmp_path / "second")}
    run_sft(SpeechSFTConfig(**options, start=str(tmp_path / "first"), **second))
    _, processor = load_folder(tmp_path / "second/base")
    assert processor.language == "zh" and templates("zh")["instruction"] in processor.prompt
