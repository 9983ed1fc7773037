"""Rows of training: a manifest is read once, rows are lean, labels balanced, only whole captions end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_model, make_tokenizer, save_model

from aligncap.data import columns
from aligncap.data import manifest as manifests
from aligncap.data.manifest import Utterance, read_manifest, write_manifest
from aligncap.data.split import balanced
from aligncap.text.prompts import end_token_id, response_ids
from aligncap.training import data
from aligncap.training.clips import read_clips
from aligncap.training.data import (
    CaptionRows,
    SpeechDataset,
    TextDataset,
    cached_inputs,
    speech_datasets,
)
from aligncap.training.distill import DistillConfig, run_distill
from aligncap.training.dpo import SpeechDPOConfig, run_dpo
from aligncap.training.responses import tokenize_responses
from aligncap.training.sft import SpeechSFTConfig, SpeechSFTTrainer
from aligncap.utils.errors import UserError

QUIET = {"report_to": "none", "disable_tqdm": True, "precision": "float32", "max_steps": 1}


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Manifests in the order in which they are checked from end to end."""
    parsed: list[str] = []
    lines = manifests.manifest_lines

    def counted(path: Path) -> object:
        parsed.append(Path(path).name)
        return lines(path)

    for module in (manifests, columns):
        monkeypatch.setattr(module, "manifest_lines", counted)
    return parsed


def test_a_run_reads_each_manifest_once(parts, manifest, tmp_path, read):
    dev = manifest.with_name("dev.jsonl")
    dev.write_text(manifest.read_text())
    options = {
        "train_manifest": str(manifest),
        "dev_manifest": str(dev),
        "cache_dir": str(tmp_path / "cache"),
    }
    options |= {"encoder_layer": "2", "projector_hidden": 24, "align_steps": 2, **parts, **QUIET}
    run_distill(DistillConfig(output_dir=str(tmp_path / "run"), **options))
    assert read == ["train.jsonl", "dev.jsonl"]
    provenance = json.loads((tmp_path / "run/provenance.json").read_text())
    assert len(provenance["manifests"]) == 2 and len(provenance["clips"]) == 8


def test_a_run_on_pairs_reads_each_manifest_once(pairs, manifest, tmp_path, read):
    start = save_model(tmp_path / "start", emotions=["angry", "calm"])
    options = {"model": str(start), "train_pairs": str(pairs), "dev_manifest": str(manifest), "dev_clips": 2}
    options |= {"cache_dir": str(tmp_path / "cache"), **QUIET}
    run_dpo(SpeechDPOConfig(output_dir=str(tmp_path / "run"), **options))
    assert read == ["train.jsonl", "train.jsonl"]  # of the pairs, and for the dev score


def test_every_second_caption_is_heard_through_another_channel_and_dev_never(manifest, tmp_path):
    model, processor = make_model(pool_size=4)
    utterances = read_manifest(manifest)
    for u in utterances:
        u.captions, u.clues = ["He sounds calm.", "A calm voice.", "Calm."], []
        u.p_act = ["Voice: calm."] * 3
    write_manifest(three := manifest.with_name("three.jsonl"), utterances)
    clips = read_clips(str(three))
    rows = [CaptionRows.of(clips, processor.tokenizer, max_response_tokens=64)] * 2
    cached = cached_inputs(model, processor, [clips, clips], tmp_path, augment=True)
    train, dev = speech_datasets(rows, cached)
    live, _ = speech_datasets(rows, cached.live())
    plain, other, again = (train[i]["frames"] for i in range(3))
    assert torch.equal(plain, again) and not torch.allclose(plain, other)
    assert all(torch.equal(dev[i]["frames"], plain) for i in range(3))
    for i in range(3):  # encoded when it is read: the same channel
        encoded = model.model.encode_audio(**processor.features([live[i]["samples"]])).frames[0]
        assert torch.allclose(encoded, train[i]["frames"], atol=1e-3, rtol=1e-3)  # kept as float16


def test_rows_are_tokens_in_one_array_and_prompts_are_made_when_they_are_read(manifest, monkeypatch):
    tokenizer, asked = make_tokenizer(), []
    prompt = data.teacher_prompt
    monkeypatch.setattr(data, "teacher_prompt", lambda *a: asked.append(a) or prompt(*a))
    rows = TextDataset.from_manifest(manifest, tokenizer)
    assert not asked and rows.rows.responses.tokens.dtype == np.int32
    row = rows[1]
    assert len(asked) == 1 and tokenizer.decode(row["response_ids"]).endswith("<eos>")


@pytest.mark.parametrize("chat", [True, False])
def test_many_captions_are_tokenised_as_single_ones(chat, manifest):
    tokenizer = make_tokenizer(chat)
    captions = [c for u in read_manifest(manifest) for c in u.captions] * 100
    found = tokenize_responses(tokenizer, captions, 64, "m.jsonl")
    assert list(found) == [response_ids(tokenizer, caption) for caption in captions]


def clips(labels: dict[str | None, int]) -> list[Utterance]:
    return [
        Utterance(id=f"{label}{i}", root=".", audio="x", corpus="c", emotion=label)
        for label, count in labels.items()
        for i in range(count)
    ]


def times(utterances: list[Utterance]) -> dict[str | None, int]:
    """How often the first clip of each label stands."""
    picked = balanced(utterances)
    first = {u.emotion: i for i, u in reversed(list(enumerate(utterances)))}
    return {label: picked.count(place) for label, place in first.items()}


def test_rare_labels_are_repeated_four_times_at_most(caplog):
    with caplog.at_level("INFO", "aligncap"):
        assert times(clips({"angry": 100, "calm": 50, "disgusted": 2})) == {
            "angry": 1,
            "calm": 2,
            "disgusted": 4,
        }
    assert "2 disgusted of c × 4" in caplog.text and "without a label: 0" in caplog.text


def test_clips_without_a_label_stand_once_and_count_for_nothing():
    assert times(clips({None: 1000, "angry": 30, "sad": 10})) == {None: 1, "angry": 1, "sad": 3}
    assert times(clips({None: 3})) == {None: 1}
    assert times(clips({"angry": 100, None: 2})) == {"angry": 1, None: 1}


LONG = "He sounds angry, with a loud voice, and then he sounds calm and steady, in a soft voice."


def with_long_captions(manifest: Path, path: Path, long: int, rows: int) -> Path:
    """A manifest of `rows` captions of one clip, `long` of them too long."""
    u = read_manifest(manifest)[0]
    u.root = str(manifest.parent)
    u.captions = [f"{LONG} {i}" for i in range(long)] + [f"He sounds calm {i}." for i in range(rows - long)]
    u.p_act, u.clues = ["Voice: calm."] * rows, [["calm"]] * rows
    write_manifest(path, [u])
    return path


def test_many_captions_beyond_the_limit_are_refused_with_the_remedy(manifest, tmp_path):
    path = with_long_captions(manifest, tmp_path / "m.jsonl", 3, 100)
    tokenizer = make_tokenizer()
    longest = max(len(response_ids(tokenizer, f"{LONG} {i}")) for i in range(3))
    with pytest.raises(UserError) as caught:
        TextDataset.from_manifest(path, tokenizer, max_response_tokens=20)
    assert str(caught.value) == (
        f"{path}: 3 of 100 captions are longer than max_response_tokens=20, "
        f"the longest has {longest} tokens; "
        f"shorten them, or set max_response_tokens to {longest}"
    )
    assert len(TextDataset.from_manifest(path, tokenizer, max_response_tokens=longest)) == 100


def test_a_caption_that_is_cut_is_told_and_is_taught_no_end(manifest, tmp_path, caplog):
    path = with_long_captions(manifest, tmp_path / "m.jsonl", 1, 100)
    tokenizer = make_tokenizer()
    with caplog.at_level("INFO", "aligncap"):
        rows = TextDataset.from_manifest(path, tokenizer, max_response_tokens=20)
    assert "1 of 100 captions are longer than max_response_tokens=20" in caplog.text
    cut, whole = rows[0]["response_ids"], rows[1]["response_ids"]
    end = end_token_id(tokenizer)
    assert len(cut) == 20 and end not in cut and cut == response_ids(tokenizer, f"{LONG} 0")[:20]
    assert whole[-1] == end and whole.count(end) == 1


@pytest.mark.parametrize("batch", [3, 5, 16])
def test_the_dev_loss_is_per_token_whatever_the_batches(batch, manifest, tmp_path):
    model, processor = make_model(projector_dropout=0.0)
    rows = SpeechDataset.from_manifest(manifest, processor, teacher=False)
    args = SpeechSFTConfig(output_dir=str(tmp_path), per_device_eval_batch_size=batch, **QUIET)
    trainer = SpeechSFTTrainer(model=model, args=args, train_dataset=rows, processing_class=processor)
    found = trainer.evaluate(rows)["eval_loss"]
    total = tokens = 0.0
    for i in range(len(rows)):
        row = trainer.data_collator([rows[i]])
        count = len(rows[i]["response_ids"])
        total += trainer.compute_loss(trainer.model, row, num_items_in_batch=1).item()
        tokens += count
    assert found == pytest.approx(total / tokens, rel=1e-5)


def test_the_dev_loss_of_distillation_is_per_token_too(manifest, tmp_path):
    from aligncap.training.distill import DistillTrainer

    model, processor = make_model(projector_dropout=0.0)
    rows = SpeechDataset.from_manifest(manifest, processor)
    found = []
    for batch in (3, 16):
        args = DistillConfig(output_dir=str(tmp_path), per_device_eval_batch_size=batch, **QUIET)
        trainer = DistillTrainer(model=model, args=args, train_dataset=rows, processing_class=processor)
        model = trainer.model
        found.append(trainer.evaluate(rows)["eval_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_rows_with_other_prompts_of_the_same_caption_stand_by_themselves(manifest):
    rows = CaptionRows.of(read_clips(str(manifest)), make_tokenizer(), max_response_tokens=64, once=True)
    texts = {(tuple(rows.prompt(i)), tuple(rows.responses[i])) for i in range(len(rows))}
    assert len(texts) == len(rows) < 16
