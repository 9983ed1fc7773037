"""Every family of language models goes the whole way: teacher, distill, sft, dpo, merge, caption.

GPT-2 and OPT number positions absolutely, so that left padding moves their words unless positions are given;
rotary families would not notice.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_whisper, voice
from tiny_families import FAMILIES, VARIANTS, save_family

from aligncap.data.manifest import read_manifest
from aligncap.inference.captioner import Captioner
from aligncap.inference.sampling import random_numbers, sample_tokens
from aligncap.models.build import load_llm
from aligncap.models.checkpoints import load_checkpoint, load_folder
from aligncap.models.merge import merge
from aligncap.text.prompts import end_token_id, response_ids, teacher_prompt
from aligncap.training.distill import DistillConfig, run_distill
from aligncap.training.dpo import SpeechDPOConfig, run_dpo
from aligncap.training.sft import SpeechSFTConfig, run_sft
from aligncap.training.teacher import TeacherConfig, run_teacher
from aligncap.utils.io import write_jsonl

CLIPS = [voice(1.31, 150), voice(2.7, 220), voice(0.5, 100)]
CAPTION = "He sounds angry, with a loud voice."


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> str:
    from transformers import WhisperFeatureExtractor

    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    make_whisper().save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return str(folder)


def common(out: Path, **more):
    return {
        "output_dir": str(out),
        "max_steps": 3,
        "per_device_train_batch_size": 16,  # all rows, so that losses of two steps can be compared
        "learning_rate": 5e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "precision": "float32",
        "report_to": "none",
        "disable_tqdm": True,
    } | more


def speech(kind, out: Path, manifest: Path, whisper: str, llm: str, **more):
    options = {"encoder_layer": "2", "projector_hidden": 24, "align_steps": 3} | more
    cache = str(out.parent / "cache")
    train = {SpeechSFTConfig: run_sft, DistillConfig: run_distill}[kind]
    train(
        kind(
            **common(out, train_manifest=str(manifest), encoder=whisper, llm=llm, cache_dir=cache, **options)
        )
    )
    return out


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def trained_parts(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


def moved(out: Path) -> None:
    """LoRA and projector have both had gradients, in every layer."""
    weights = trained_parts(out)
    start = load_file(out / "base/projector.safetensors")
    lora = {n: w for n, w in weights.items() if "lora_B" in n}
    assert len(lora) >= 2 and all(w.abs().max() > 0 for w in lora.values())
    projector = {n.rsplit("multi_modal_projector.", 1)[1]: w for n, w in weights.items() if "projector" in n}
    assert projector and any(
        not torch.equal(start[n], w) for n, w in projector.items() if n.endswith("weight")
    )


def pairs_of(manifest: Path, path: Path) -> Path:
    clips = read_manifest(manifest)
    rows = [
        {"id": u.id, "manifest": os.path.relpath(manifest, path.parent), "kind": "best-worst"}
        | {"chosen": u.captions[0], "rejected": "The voice."}
        for u in clips
    ]
    write_jsonl(path, rows)
    return path


def go_the_whole_way(name: str, folder: Path, manifest: Path, whisper: str) -> Path:
    """Teacher, distill, sft, dpo and merge; returns the folder that holds their outputs."""
    llm = save_family(name, folder / "llm")
    run_teacher(
        TeacherConfig(**common(folder / "teacher", max_steps=2, train_manifest=str(manifest), llm=llm))
    )
    teacher = str(folder / "teacher")
    speech(DistillConfig, folder / "distill", manifest, whisper, teacher, max_steps=4, teacher_cache="yes")
    speech(SpeechSFTConfig, folder / "sft", manifest, whisper, llm, max_steps=2)
    pairs = pairs_of(manifest, folder / "pairs.jsonl")
    start = merge(folder / "distill", folder / "start")
    options = {"train_pairs": str(pairs), "cache_dir": str(folder / "cache"), "max_steps": 2}
    options |= {"eval_strategy": "no", "loss_type": ["sigmoid"], "loss_weights": None}
    run_dpo(SpeechDPOConfig(**common(folder / "dpo", model=str(start), **options)))
    merge(folder / "dpo", folder / "model")
    return folder


@pytest.fixture(
    scope="module",
    params=[*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)],
)
def family(request, tmp_path_factory, manifest, whisper):
    """Name of the family, what it is like, and the folder of its runs."""
    folder = go_the_whole_way(request.param, tmp_path_factory.mktemp(request.param), manifest, whisper)
    return request.param, (FAMILIES | VARIANTS)[request.param], folder


def test_it_is_of_the_shape_it_stands_for(family):
    _, like, folder = family
    model, tokenizer = load_llm(str(folder / "llm"))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (bool(tokenizer.chat_template), tied) == (like.chat, like.tied)
    assert (tokenizer.bos_token is not None) == like.bos


def test_every_stage_trains(family, manifest):
    _, _, folder = family
    for run in ("teacher", "distill", "sft", "dpo"):
        found = losses(folder / run)
        assert len(found) >= 2 and all(0 < loss < 100 for loss in found)
    distilled = losses(folder / "distill")
    assert distilled[-1] < distilled[0]
    moved(folder / "distill")
    moved(folder / "sft")
    assert losses(folder / "dpo")[0] == pytest.approx(0.6931, abs=1e-3)  # starts at its reference


def test_the_first_losses_in_bfloat16_are_near_those_in_float32(family, manifest, whisper, tmp_path):
    _, _, folder = family
    llm, half = str(folder / "llm"), {"precision": "bfloat16", "max_steps": 1}
    data = {"train_manifest": str(manifest), "llm": llm}
    run_teacher(TeacherConfig(**common(tmp_path / "teacher", **data, **half)))
    speech(SpeechSFTConfig, tmp_path / "sft", manifest, whisper, llm, **half)
    for run in ("teacher", "sft"):
        assert losses(tmp_path / run)[0] == pytest.approx(losses(folder / run)[0], rel=0.02)


def test_the_trained_teacher_is_a_plain_llm_of_the_family_and_the_students_base(family):
    _, like, folder = family
    before, _ = load_llm(str(folder / "llm"))
    teacher, tokenizer = load_llm(str(folder / "teacher"))
    student, processor = load_folder(folder / "distill/base")
    assert type(teacher) is type(before)
    ids = tokenizer(teacher_prompt(tokenizer, "Kids are talking", "Voice: angry."), return_tensors="pt")
    with torch.no_grad():
        wanted = teacher.eval()(input_ids=ids["input_ids"]).logits[..., : processor.audio_token_id]
        found = student(input_ids=ids["input_ids"]).logits[..., : processor.audio_token_id]
        first = before.eval()(input_ids=ids["input_ids"]).logits[..., : processor.audio_token_id]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - first).abs().max() > 1e-3
    assert (student.lm_head.weight is student.get_input_embeddings().weight) == like.tied


def test_cached_teacher_states_and_frames_give_the_live_run(family, manifest, whisper, tmp_path):
    _, _, folder = family
    teacher = str(folder / "teacher")
    options = {"max_steps": 2, "teacher_cache": "no", "feature_cache": "no"}
    live = speech(DistillConfig, tmp_path / "live", manifest, whisper, teacher, **options)
    assert losses(live) == pytest.approx(losses(folder / "distill")[:2], rel=1e-4)


def test_the_adapter_is_the_merged_folder_is_what_is_loaded_again(family, tmp_path):
    _, like, folder = family
    adapted, processor = load_checkpoint(folder / "distill")
    merged, _ = load_folder(folder / "start")
    merged.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = load_folder(tmp_path)
    assert reader.prompt == processor.prompt
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == like.tied
    inputs = reader.captioning_inputs(CLIPS)
    with torch.no_grad():
        wanted = merged(**inputs).logits
        assert torch.equal(again(**inputs).logits, wanted)
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(adapted(**inputs).logits[real], wanted[real], atol=1e-3, rtol=1e-3)


def test_a_batch_is_decoded_like_its_single_clips(family):
    _, _, folder = family
    captioner = Captioner.from_pretrained(folder / "model", device="cpu")
    assert all(isinstance(caption, str) for caption in captioner(CLIPS, max_new_tokens=4))
    model, processor = captioner.model, captioner.processor
    numbers = torch.stack([torch.from_numpy(random_numbers(0, str(i), 2, 6)) for i in range(len(CLIPS))])
    inputs = processor.captioning_inputs(CLIPS)
    width = inputs["input_ids"].shape[1]
    assert len(set(inputs["attention_mask"].sum(1).tolist())) == 3  # padded, or nothing would be tested
    with torch.inference_mode():
        logits = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6)[:, width:]
        several = sample_tokens(model, inputs, numbers, temperature=1.0, top_p=0.95)
        for i, clip in enumerate(CLIPS):
            one = processor.captioning_inputs([clip])
            alone = model(**one).logits[0]
            torch.testing.assert_close(logits[i, -len(alone) :], alone, atol=1e-3, rtol=1e-3)
            made = model.generate(**one, max_new_tokens=6, min_new_tokens=6)[0, one["input_ids"].shape[1] :]
            assert tokens[i].tolist() == made.tolist()
            assert several[i] == sample_tokens(model, one, numbers[i : i + 1], temperature=1.0, top_p=0.95)[0]


def test_decoding_with_a_cache_equals_reading_the_whole(family):
    _, _, folder = family
    model, processor = load_folder(folder / "model")
    inputs = processor.captioning_inputs(CLIPS)
    width = inputs["input_ids"].shape[1]
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, pad_token_id=0)
        mask = torch.cat([inputs["attention_mask"], torch.ones(len(CLIPS), 5, dtype=torch.long)], 1)
        whole = model(**{**inputs, "input_ids": tokens, "attention_mask": mask}).logits
    ends = model.generation_config.eos_token_id
    whole[..., ends] = -torch.inf  # as min_new_tokens has it
    assert whole[:, width - 1 : -1].argmax(-1).tolist() == tokens[:, width:].tolist()


def test_prompts_begin_once_and_answers_end_a_turn(family):
    _, like, folder = family
    model, processor = load_folder(folder / "model")
    tokenizer = processor.tokenizer
    ids = tokenizer(processor.prompt, add_special_tokens=False)["input_ids"]
    assert ids.count(processor.audio_token_id) == 1
    if like.bos:
        assert ids[0] == tokenizer.bos_token_id and ids[1] != tokenizer.bos_token_id
    answer = response_ids(tokenizer, CAPTION)
    end = end_token_id(tokenizer)
    assert answer.count(end) == 1 and answer[-1] == end and end in model.generation_config.eos_token_id
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == CAPTION
