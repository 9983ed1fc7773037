"""States of speech and text: the right positions, the right weights, numbers that mean what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model

from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.inference.jobs import jobs_of_manifest, with_condition
from aligncap.lab import states as module
from aligncap.lab.state_report import centred, state_numbers, states_table
from aligncap.lab.states import (
    StatesConfig,
    _teacher_inputs,
    choose_clips,
    collect_states,
    run_states,
)
from aligncap.models.checkpoints import load_checkpoint
from aligncap.text.prompts import response_ids, teacher_prompt
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


def config(manifest: Path, **options) -> StatesConfig:
    return StatesConfig(model=["x"], manifest=str(manifest), out="", **options)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter"), 1.0)


@pytest.fixture(scope="module")
def base(adapter: Path) -> Path:
    return adapter / "base"


@pytest.fixture(scope="module")
def collected(adapter: Path, manifest: Path) -> dict:
    return collect_states(adapter, config(manifest), read_manifest(manifest))


def test_the_text_is_what_stands_for_the_clip_and_nothing_around_it(tiny, manifest):
    tokenizer = tiny[1].tokenizer
    utterance = read_manifest(manifest)[1]
    inputs, part = _teacher_inputs(
        tokenizer,
        [teacher_prompt(tokenizer, utterance.transcript, utterance.p_act[0], utterance.gender), "x"],
    )
    said = tokenizer.decode(inputs["input_ids"][0][part[0]])
    assert said.strip() == '"Kids are talking by the door"\nVoice: angry, loud.'


def test_states_are_those_of_the_positions_that_predict_the_caption(base, manifest, collected):
    model, processor = load_checkpoint(base)
    utterance = read_manifest(manifest)[3]
    text = teacher_prompt(processor.tokenizer, utterance.transcript, utterance.p_act[0], utterance.gender)
    prompt = processor.tokenizer(text, add_special_tokens=False)
    answer = response_ids(processor.tokenizer, utterance.captions[0])
    ids = torch.tensor([prompt["input_ids"] + answer])
    start = len(prompt["input_ids"]) - 1
    with torch.no_grad():
        states = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    assert torch.allclose(collected["after"][1][3], states[start : start + len(answer)].mean(0), atol=1e-5)


def test_a_clip_alone_has_the_states_it_has_in_a_batch(adapter, manifest, collected):
    single = collect_states(adapter, config(manifest, batch_size=1), read_manifest(manifest))
    for name, pair in collected.items():
        for one, other in zip(single[name], pair, strict=True):
            assert torch.allclose(one, other, atol=1e-4), name


def test_the_teacher_reads_without_the_adapter_and_the_student_hears_with_it(base, manifest, collected):
    plain = collect_states(base, config(manifest), read_manifest(manifest))
    assert torch.allclose(plain["after"][1], collected["after"][1], atol=1e-5)
    assert not torch.allclose(plain["after"][0], collected["after"][0], atol=1e-2)


def test_wrong_audio_is_another_clip_under_the_same_caption(adapter, manifest, collected):
    assert not torch.allclose(collected["after_wrong"][0], collected["after"][0], atol=1e-3)
    utterances = read_manifest(manifest)
    by_id = {u.id: u for u in utterances}
    jobs = with_condition(jobs_of_manifest(manifest), utterances, "wrong", 0)
    swapped = [replace(by_id[job.heard]) for job in jobs]
    for other, own in zip(swapped, utterances):
        other.captions = own.captions
    again = collect_states(adapter, config(manifest, batch_size=2), [swapped[0], swapped[1]])
    assert torch.allclose(again["after"][0][0], collected["after_wrong"][0][0], atol=1e-4)


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
    emotions = options.pop("emotions", ["angry" if i % 2 else "calm" for i in range(count)])
    utterances = [
        Utterance(str(i), ".", "x.wav", "made", speaker=f"s{i % 4}", emotion=emotion)
        for i, emotion in enumerate(emotions)
    ]
    options = {"texts": [str(i) for i in range(count)], **options}
    return state_numbers(speech, text, utterances=utterances, **options)


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
    found = numbers(centred(speech), centred(text))
    assert found["recall_at_1"]["value"] == 1 and found["mixing"]["value"] > 0.4


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


def test_pictures_numbers_and_record_are_written(adapter, base, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FEWEST", 8)
    models = [f"CL $x$={base}", f"distill={adapter}"]
    run_states(StatesConfig(model=models, manifest=str(manifest), out=str(tmp_path)))
    for name in ("states.png", "states_centred.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "states.json").read_text())
    teachers = [content["systems"][name]["teacher"] for name in ("CL $x$", "distill")]
    assert teachers == ["the same weights", "adapter off"]
    assert content["systems"]["distill"]["after"]["centred"]["clips"] == 8
    record = json.loads((tmp_path / "run.json").read_text())
    assert str(adapter / "adapter_model.safetensors") in record["data"]
    assert states_table(content["systems"]).row_count == 12


def test_too_few_clips_are_refused(base, manifest, tmp_path):
    with pytest.raises(UserError, match="8 clips"):
        run_states(StatesConfig(model=[str(base)], manifest=str(manifest), out=str(tmp_path)))


def test_a_name_given_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="the name run is taken; write ANOTHER=b/run"):
        StatesConfig(model=["a/run", "b/run"], manifest="m.jsonl", out=str(tmp_path))
