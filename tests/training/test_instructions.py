"""What is asked reaches the model, in training and in captioning, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model, save_model, voice
from transformers import AutoModelForCausalLM, AutoTokenizer

from aligncap.cli import main
from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.inference.captioner import Captioner
from aligncap.models.checkpoints import load_folder
from aligncap.models.merge import save_llm
from aligncap.training.align import student_language
from aligncap.training.clips import read_clips
from aligncap.training.collators import SpeechCollator
from aligncap.training.data import CaptionRows, ClipInputs, SpeechDataset
from aligncap.training.sft import SpeechSFTConfig, run_sft
from aligncap.utils.errors import UserError, UserErrors

ASKED = "Which emotion is it?"
OWN = "Describe how the speaker sounds."


@pytest.fixture(scope="module")
def asking(manifest: Path) -> Path:
    """The clips, each with a caption that describes and an answer to a question."""
    clips = read_manifest(manifest)
    for u in clips:
        u.captions, u.instructions = [u.captions[0], str(u.emotion or "sad")], ["", ASKED]
        u.clues, u.p_act = [["sad"]] * 2, ["Voice: sad."] * 2
    write_manifest(manifest.parent / "asking.jsonl", clips)
    return manifest.parent / "asking.jsonl"


def text(processor: Any, ids: list[int]) -> str:
    return processor.tokenizer.decode(ids)


def test_student_and_teacher_read_the_question_of_their_caption(asking: Path) -> None:
    _, processor = make_model()
    rows = SpeechDataset.from_manifest(asking, processor)
    describing, answering = rows[0], rows[1]
    for name in ("prompt_ids", "teacher_prompt_ids"):
        assert OWN in text(processor, describing[name]) and ASKED not in text(processor, describing[name])
        assert ASKED in text(processor, answering[name]) and OWN not in text(processor, answering[name])
    lengths = rows.lengths()
    assert [len(row["prompt_ids"]) for row in (describing, answering)] == lengths[:2, 0].tolist()
    prompt = processor.prompt_of(instruction=ASKED)
    assert prompt == processor.prompt.replace(OWN, ASKED) != processor.prompt


def test_a_clip_that_is_not_asked_about_a_caption_is_to_be_described(asking: Path) -> None:
    _, processor = make_model()
    row = ClipInputs(processor)(read_clips(str(asking)), 0)
    assert OWN in text(processor, row["prompt_ids"])


def test_the_same_answer_to_two_questions_stands_twice(asking: Path) -> None:
    _, processor = make_model()
    utterances = read_manifest(asking)
    for u in utterances:
        u.captions, u.clues, u.instructions = ["sad", "sad"], [], [ASKED, "And now?"]
    write_manifest(twice := asking.with_name("twice.jsonl"), utterances)
    clips = read_clips(str(twice))
    rows = CaptionRows.of(clips, processor.tokenizer, max_response_tokens=9, once=True)
    several = {(u.transcript, u.gender) for u in clips.utterances}
    assert len(rows) == 2 * len(several)


def test_the_question_of_a_captioner_is_that_of_training(asking: Path) -> None:
    model, processor = make_model()
    clip = voice(0.8, 150)
    captioner = Captioner(model, processor)
    asked = captioner.asking(ASKED)
    assert text(processor, asked.inputs([clip])["input_ids"][0].tolist()).count(ASKED) == 1
    assert captioner.instruction == "" and asked.model is captioner.model
    clips = read_clips(str(asking))
    row = ClipInputs(processor)(clips, 0, 1) | {"response_ids": [5]}
    batch = SpeechCollator(processor)([row])
    ids = batch["input_ids"][0].tolist()[: len(row["prompt_ids"])]
    with torch.no_grad():
        ours = model(**asked.inputs([row["samples"]])).logits[0, -1]
        theirs = model(**batch).logits[0, len(ids) - 1]
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("mark", ["<|audio|>", "<eos>"])
def test_a_question_with_a_control_token_is_refused(mark: str, asking: Path) -> None:
    model, processor = make_model()
    with pytest.raises(UserError, match="control token"):
        Captioner(model, processor).asking(f"What {mark} is it?")


def test_two_stages_train_caption_and_give_a_plain_language_model(
    asking: Path, manifest: Path, parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = {"max_steps": 1, "precision": "float32", "report_to": "none", "disable_tqdm": True}
    quiet |= {"cache_dir": str(tmp_path / "cache"), "save_strategy": "no"}
    one, two, merged = (tmp_path / name for name in ("one", "two", "merged"))
    shape = {"encoder_layer": "2", "projector_hidden": 24, "align_steps": 1, "train_llm": False}
    run_sft(SpeechSFTConfig(output_dir=str(one), train_manifest=str(manifest), **parts, **shape, **quiet))
    run_sft(SpeechSFTConfig(output_dir=str(two), train_manifest=str(asking), start=str(one), **quiet))
    assert main(["merge", str(two), "--out", str(merged), "--llm", str(tmp_path / "llm")]) == 0
    out = tmp_path / "answers.jsonl"
    words = ["caption", "--model", str(merged), "--manifest", str(asking), "--out", str(out)]
    assert main([*words, "--instruction", ASKED]) == 0
    assert len(out.read_text().splitlines()) == len(read_manifest(asking))
    # the language model alone gives the captioner's logits on text
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llm")
    ids = torch.tensor([tokenizer("He sounds sad.", add_special_tokens=False)["input_ids"]])
    whole, _ = load_folder(merged)
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids).logits[..., : whole.config.audio_token_id] for m in (whole, llm))
    assert torch.equal(ours, theirs)
    assert whole.config.audio_token_id in llm.generation_config.suppress_tokens
    assert json.loads((tmp_path / "llm/config.json").read_text())["model_type"] == "llama"
    capsys.readouterr()
    assert main(["merge", str(two), "--out", str(tmp_path / "m2"), "--llm", str(merged)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_whole_model_gives_its_language_model(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    assert (save_llm(folder, tmp_path / "llm") / "model.safetensors").is_file()
    with pytest.raises(UserError, match="not empty"):
        save_llm(folder, tmp_path / "llm")


def test_the_student_is_asked_in_the_language_of_descriptions_and_else_of_all_answers() -> None:
    def clip(captions: list[str], instructions: list[str]) -> Utterance:
        return Utterance("a", ".", "a.wav", "x", captions=captions, instructions=instructions)

    assert student_language([clip(["悲伤", "angry", "愤怒"], ["?", "?", "?"])]) == "en"
    assert student_language([clip(["悲伤", "愤怒"], ["?", "?"])]) == "zh"
    assert student_language([clip(["悲伤", "愤怒", "He is sad."], ["?", "?", ""])]) == "en"
    assert student_language([clip(["他很悲伤。", "sad"], ["", "?"])]) == "zh"


def test_lora_in_the_encoder_alone_or_of_another_rank_is_refused(
    manifest: Path, parts: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserErrors, match="encoder_lora: with train_llm=false"):
        SpeechSFTConfig(
            output_dir=str(tmp_path / "x"), train_manifest=str(manifest), encoder_lora=4, train_llm=False
        )
    quiet = {"max_steps": 1, "precision": "float32", "report_to": "none", "disable_tqdm": True}
    quiet |= {"cache_dir": str(tmp_path / "cache"), "save_strategy": "no", "train_manifest": str(manifest)}
    shape = {"encoder_layer": "2", "projector_hidden": 24, "align_steps": 1}
    run_sft(SpeechSFTConfig(output_dir=str(tmp_path / "one"), **parts, **shape, **quiet))
    options = {"output_dir": str(tmp_path / "two"), "start": str(tmp_path / "one"), "encoder_lora": 4}
    with pytest.raises(UserError, match=r"encoder_lora: the adapter of .* has 0, not 4; .*aligncap merge"):
        run_sft(SpeechSFTConfig(**options, **quiet))
