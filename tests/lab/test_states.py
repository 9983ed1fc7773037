"""States of speech and text: the right positions, the right weights, numbers that mean what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model

from aligncap.data.manifest import read_manifest, write_manifest
from aligncap.lab import states as state_pictures
from aligncap.lab.states import (
    States,
    _shifted,
    _teacher_inputs,
    choose_clips,
    collect_states,
    state_numbers,
    teacher_text,
)
from aligncap.models.checkpoints import load_checkpoint
from aligncap.models.speakers import speaker_name
from aligncap.text.prompts import response_ids
from aligncap.utils.errors import UserError


def save_adapter(folder: Path, strength: float) -> Path:
    """A tiny student on its base; `strength` scales random LoRA weights."""
    model, processor = make_model()
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    torch.manual_seed(1)
    config = LoraConfig(
        r=2,
        target_modules=r"model\.language_model.*\.(q_proj|v_proj)",
        modules_to_save=["multi_modal_projector"],
    )
    student = get_peft_model(model, config)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=strength)
    student.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter"), 1.0)


@pytest.fixture(scope="module")
def base(adapter: Path) -> Path:
    return adapter / "base"


@pytest.fixture(scope="module")
def collected(adapter: Path, manifest: Path) -> States:
    return collect_states(adapter, manifest, read_manifest(manifest))


def test_the_text_is_what_stands_for_the_clip_and_nothing_around_it(tiny, manifest):
    tokenizer = tiny[1].tokenizer
    utterance = read_manifest(manifest)[1]
    inputs, part = _teacher_inputs(tokenizer, [teacher_text(tokenizer, utterance), "x"])
    said = tokenizer.decode(inputs["input_ids"][0][part[0]])
    assert said.strip() == '"Kids are talking by the door"\nVoice: angry, loud.'


def test_states_are_those_of_the_positions_that_predict_the_caption(base, manifest, collected):
    model, processor = load_checkpoint(base)
    utterance = read_manifest(manifest)[3]
    prompt = processor.tokenizer(teacher_text(processor.tokenizer, utterance), add_special_tokens=False)
    answer = response_ids(processor.tokenizer, utterance.captions[0])
    ids = torch.tensor([prompt["input_ids"] + answer])
    start = len(prompt["input_ids"]) - 1
    with torch.no_grad():
        states = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    assert torch.allclose(collected.text_after[3], states[start : start + len(answer)].mean(0), atol=1e-5)


def test_a_clip_alone_has_the_states_it_has_in_a_batch(adapter, manifest, collected):
    single = collect_states(adapter, manifest, read_manifest(manifest), batch_size=1)
    for name in ("speech_before", "text_before", "speech_after", "text_after", "after_wrong"):
        assert torch.allclose(getattr(single, name), getattr(collected, name), atol=1e-4), name


def test_the_teacher_reads_without_the_adapter_and_the_student_hears_with_it(base, manifest, collected):
    plain = collect_states(base, manifest, read_manifest(manifest))
    assert (collected.teacher, plain.teacher) == ("adapter off", "the same weights")
    assert torch.allclose(plain.text_after, collected.text_after, atol=1e-5)
    assert not torch.allclose(plain.speech_after, collected.speech_after, atol=1e-2)


def test_wrong_audio_is_another_clip_under_the_same_caption(adapter, manifest, collected):
    heard = _shifted(8, 0)
    assert sorted(heard) == list(range(8)) and all(a != b for a, b in enumerate(heard))
    assert not torch.allclose(collected.after_wrong, collected.speech_after, atol=1e-3)
    utterances = read_manifest(manifest)
    swapped = [utterances[i] for i in heard]
    for other, own in zip(swapped, utterances):
        other.captions = own.captions
    again = collect_states(adapter, manifest, [swapped[0], swapped[1]], batch_size=2)
    assert torch.allclose(again.speech_after[0], collected.after_wrong[0], atol=1e-4)


def test_a_model_that_hears_clips_against_their_speakers_is_given_the_speakers(tmp_path, manifest):
    model, processor = make_model(speaker_relative=True)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    utterances = read_manifest(manifest)
    known = collect_states(tmp_path, manifest, utterances)
    nameless = tmp_path / "m.jsonl"
    for u in utterances:
        u.root, u.speaker = str(manifest.parent), None
    write_manifest(nameless, utterances)
    assert speaker_name(utterances[0]) is None
    unknown = collect_states(tmp_path, nameless, utterances)
    assert not torch.allclose(known.speech_before, unknown.speech_before, atol=1e-3)


def test_clips_without_text_are_all_named(tmp_path, manifest):
    utterances = read_manifest(manifest)
    utterances[0].captions, utterances[0].p_act, utterances[0].clues = [], [], []
    utterances[2].p_act = []
    write_manifest(tmp_path / "m.jsonl", utterances)
    with pytest.raises(UserError) as caught:
        choose_clips(tmp_path / "m.jsonl", 8, 0)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and "m.jsonl:1" in lines[0] and "annotate" in lines[0]
    assert "m.jsonl:3" in lines[1] and "clues" in lines[1]


def numbers(speech, text, **options):
    count = len(speech)
    defaults = {
        "texts": [str(i) for i in range(count)],
        "emotions": ["angry" if i % 2 else "calm" for i in range(count)],
        "speakers": [f"s{i % 4}" for i in range(count)],
    }
    return state_numbers(speech, text, **{**defaults, **options})


def test_pairs_that_coincide_are_found_and_mixed():
    torch.manual_seed(0)
    states = torch.randn(40, 16)
    found = numbers(states, states + 0.01 * torch.randn(40, 16))
    assert found["recall_at_1"]["value"] == 1 and found["emotion_at_1"]["value"] == 1
    assert 0.45 < found["mixing"]["value"] < 0.65
    assert found["mixing"]["chance"] == pytest.approx(40 / 79)
    assert found["pair_gap"]["value"] > 0.9


def test_a_gap_between_the_kinds_parts_neighbours_and_not_what_pairs_share():
    torch.manual_seed(0)
    states, gap = torch.randn(40, 16), 50 * torch.nn.functional.one_hot(torch.tensor(0), 16)
    speech, text = states + gap, states - gap
    found = numbers(speech, text)
    assert found["mixing"]["value"] == 0
    centred = numbers(state_pictures._centred(speech), state_pictures._centred(text))
    assert centred["recall_at_1"]["value"] == 1 and centred["mixing"]["value"] > 0.4


def test_unrelated_states_are_at_chance():
    torch.manual_seed(0)
    found = numbers(torch.randn(200, 8), torch.randn(200, 8))
    assert found["mixing"]["value"] == pytest.approx(found["mixing"]["chance"], abs=0.06)
    assert found["recall_at_1"]["value"] < 0.05
    assert found["pair_gap"]["low"] < 0 < found["pair_gap"]["high"]
    assert found["emotion_at_1"]["value"] == pytest.approx(0.5, abs=0.12)


def test_the_same_words_are_the_same_text():
    speech = torch.eye(4)
    text = speech[[1, 0, 3, 2]]
    assert numbers(speech, text)["recall_at_1"]["value"] == 0
    twins = numbers(speech, text, texts=["a", "a", "b", "b"])
    assert (
        twins["recall_at_1"]["value"] == 1 and twins["recall_at_1"]["chance"] == 0.5 and twins["texts"] == 2
    )


def test_what_cannot_be_measured_is_none():
    states = torch.eye(4)
    found = numbers(states, states, emotions=[None] * 4, texts=["a"] * 4)
    assert found["emotion_at_1"]["value"] is None and found["pair_gap"]["value"] is None


def test_a_missing_scikit_learn_names_the_extra_before_any_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match=r"aligncap\[pictures\]"):
        state_pictures.write_states({"x": tmp_path / "none"}, tmp_path / "none.jsonl", tmp_path)


def test_pictures_numbers_and_record_are_written(adapter, base, manifest, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(state_pictures, "FEWEST", 8)
    content = state_pictures.write_states({"CL $x$": base, "distill": adapter}, manifest, tmp_path)
    for name in ("states.png", "states_centred.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "states.json").read_text()) == content
    assert content["systems"]["distill"]["after"]["centred"]["clips"] == 8
    record = json.loads((tmp_path / "run.json").read_text())
    assert str(adapter / "adapter_model.safetensors") in record["data"]
    assert state_pictures.states_table(content).row_count == 12


def test_too_few_clips_are_refused(base, manifest, tmp_path):
    pytest.importorskip("sklearn")
    with pytest.raises(UserError, match="8 clips"):
        state_pictures.write_states({"x": base}, manifest, tmp_path)
