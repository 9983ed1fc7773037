"""What encoder features take on disk, who keeps them, and what is checked before they are computed."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_model
from transformers import WhisperConfig

from aligncap.audio.files import info
from aligncap.data.manifest import read_manifest, write_manifest
from aligncap.models.checkpoints import load_for_inference
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.training import align, data, distill, sft
from aligncap.training.caches import FeatureCache, cached_teacher, feature_cache, frames_size, states_size
from aligncap.training.clips import read_clips
from aligncap.training.data import CaptionRows, cached_inputs, keeps_features
from aligncap.training.distill import DistillConfig, run_distill
from aligncap.training.sft import SpeechSFTConfig, run_sft
from aligncap.utils.errors import UserError


def config(out: Path, manifest: Path, parts: dict[str, str], kind=SpeechSFTConfig, **more):
    options = {"projector_hidden": 24, "projector_dropout": 0.0, "lora_dropout": 0.0, "align_steps": 3}
    options |= {"max_steps": 2, "logging_steps": 1, "report_to": "none", "disable_tqdm": True, **parts}
    options |= {"cache_dir": str(out.parent / "cache"), "precision": "float32"}
    return kind(output_dir=str(out), train_manifest=str(manifest), **options | more)


def cached(out: Path) -> set[str]:
    """Keys of the features beside a run."""
    shards = [FeatureCache(folder, {}) for folder in (out.parent / "cache").glob("frames-*")]
    return {key for shard in shards for key in shard._where}


def test_frames_take_half_the_space_and_are_read_in_single_precision(tmp_path):
    rows = {"a": torch.randn(40, 3, 16), "loud": torch.full((2, 16), 7e4)}
    cache = FeatureCache(tmp_path, {})
    cache.write(rows)
    size = next(tmp_path.glob("*.safetensors")).stat().st_size
    assert size == pytest.approx(40 * 3 * 16 * 2 + 2 * 16 * 4, abs=400)  # and the header
    assert cache["a"].dtype == cache["loud"].dtype == torch.float32
    torch.testing.assert_close(cache["a"], rows["a"], atol=1e-3, rtol=1e-3)
    assert torch.equal(cache["loud"], rows["loud"])  # beyond half precision: kept as it is


def test_sizes_by_hand():
    """large-v3: 33 states of 1,280 numbers, one in 0.32 s, 2 bytes each."""
    large = WhisperConfig(d_model=1280, encoder_layers=32, encoder_attention_heads=20)
    every = AlignCapConfig(audio_config=large, encoder_layer="mix", pool_size=16)
    assert frames_size(every, 1.0) == pytest.approx(264_000)
    assert frames_size(every, 3600 * 1000) == pytest.approx(950.4e9)
    assert frames_size(AlignCapConfig(audio_config=large, encoder_layer=16, pool_size=16), 1.0) == 8000
    model, _ = make_model()  # 32 numbers a token
    assert states_size(1000, model, torch.bfloat16, 0) == 64_000
    assert states_size(1000, model, torch.float32, 0) == 128_000
    assert states_size(1000, model, torch.bfloat16, 4) == 36_000


def test_the_store_is_chosen_by_its_size(manifest, monkeypatch):
    model, _ = make_model(encoder_layer="mix", pool_size=4)
    clips = read_clips(str(manifest))
    assert clips.seconds() == pytest.approx(
        sum(info(path).duration_s for path in clips.paths.values()), rel=0.01
    )
    size = frames_size(model.config, clips.seconds())
    for most, kept in ((size * 1.01, True), (size * 0.99, False)):
        monkeypatch.setattr(data, "MOST", most)
        assert keeps_features("auto", model, [clips], augment=False) == kept
        assert keeps_features("yes", model, [clips], augment=False)
        assert not keeps_features("no", model, [clips], augment=False)
    monkeypatch.setattr(data, "MOST", size * 1.5)
    assert not keeps_features("auto", model, [clips], augment=True)  # the clips through another channel too


def test_a_full_disk_is_told_before_anything_is_encoded(manifest, tmp_path, monkeypatch):
    model, processor = make_model()
    clips = read_clips(str(manifest))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(free=10))
    told = r"features of 0.0 h of speech: 0.0 GB; .* has 0.0 GB free; make room, give feature_cache no"
    with pytest.raises(UserError, match=told):
        cached_inputs(model, processor, [clips], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_is_cached_needs_no_room(manifest, tmp_path, monkeypatch):
    model, processor = make_model()
    clips = read_clips(str(manifest))
    cached_inputs(model, processor, [clips], tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(free=0))
    assert len(cached_inputs(model, processor, [clips], tmp_path).features._where) == len(clips.paths)


def test_without_a_store_only_the_clips_of_the_fit_are_encoded_before_training(
    manifest, parts, tmp_path, monkeypatch
):
    monkeypatch.setattr(align, "FIT_CLIPS", 3)
    run_sft(config(tmp_path / "a/run", manifest, parts, feature_cache="no", augment=False))
    assert len(cached(tmp_path / "a/run")) == 3
    run_sft(config(tmp_path / "b/run", manifest, parts, feature_cache="yes", augment=False))
    assert len(cached(tmp_path / "b/run")) == len(read_manifest(manifest))
    logs = [(tmp_path / name / "run/log.jsonl").read_text().splitlines() for name in "ab"]
    losses = [[row["loss"] for row in map(json.loads, log) if "loss" in row] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)  # features of the second are half precision


def test_the_clips_of_the_fit_take_no_more_than_a_run_may_keep(manifest, monkeypatch):
    model, _ = make_model(encoder_layer="mix", pool_size=4)
    clips = read_clips(str(manifest))
    size = frames_size(model.config, clips.seconds())
    assert align.fit_clips(model, clips, augment=True) == align.FIT_CLIPS
    monkeypatch.setattr(align, "MOST", size / 2)
    assert align.fit_clips(model, clips, augment=False) == len(clips.paths) // 2
    assert align.fit_clips(model, clips, augment=True) == len(clips.paths) // 4
    monkeypatch.setattr(align, "MOST", 1.0)
    assert align.fit_clips(model, clips, augment=False) == 1


def test_the_clips_of_the_fit_are_all_where_they_are_few_and_drawn_where_not(manifest):
    clips = read_clips(str(manifest)).balanced()
    assert clips.at_most(len(clips.paths)) is clips
    few = clips.at_most(4, seed=1)
    assert len(few.paths) == 4 and set(few.keys) == set(few.paths)
    assert [few.keys.count(key) for key in few.paths] == [clips.keys.count(key) for key in few.paths]
    assert few.keys == clips.at_most(4, seed=1).keys
    assert any(set(few.paths) != set(clips.at_most(4, seed=s).paths) for s in range(2, 6))


def test_a_length_that_the_manifest_lacks_is_read_from_a_few_headers(manifest, tmp_path):
    utterances = read_manifest(manifest)
    for u in utterances:
        u.duration, u.root = None, str((manifest.parent / u.root).resolve())
    write_manifest(tmp_path / "m.jsonl", utterances)
    known, unknown = read_clips(str(manifest)), read_clips(str(tmp_path / "m.jsonl"))
    assert unknown.seconds() == pytest.approx(
        sum(info(path).duration_s for path in known.paths.values()), rel=0.01
    )


def test_a_teacher_that_would_take_too_much_is_cached_by_its_likeliest_tokens(
    manifest, parts, tmp_path, monkeypatch
):
    monkeypatch.setattr(distill, "TOP_K", 5)
    options = {"kind": DistillConfig, "teacher_cache": "yes"}
    run_distill(config(tmp_path / "small", manifest, parts, **options))
    assert not list((tmp_path / "cache").glob("teacher-top-*"))
    monkeypatch.setattr(distill, "MOST", 10.0)
    run_distill(config(tmp_path / "large", manifest, parts, **options))
    assert len(list((tmp_path / "cache").glob("teacher-top-*"))) == 1
    assert json.loads((tmp_path / "large/run.json").read_text())["teacher_coverage"]["top_k"] == 5
    run_distill(config(tmp_path / "exact", manifest, parts, teacher_top_k=0, **options))
    assert len(list((tmp_path / "cache").glob("teacher-top-*"))) == 1


def test_clips_that_balancing_repeats_take_no_more_of_the_teacher(manifest):
    clips = read_clips(str(manifest))
    tokenizer = make_model()[1].tokenizer
    once, twice = (
        CaptionRows.of(part, tokenizer, max_response_tokens=64, use_p_act=False)
        for part in (clips, clips.chosen([*range(len(clips.utterances)), 0, 1, 1]))
    )
    assert (
        len(twice) > len(once) and twice.tokens_once() == once.tokens_once() == once.responses.lengths.sum()
    )


def test_what_the_teacher_said_before_needs_no_room(manifest, tmp_path, monkeypatch):
    model, processor = make_model()
    rows = CaptionRows.of(
        read_clips(str(manifest)), processor.tokenizer, max_response_tokens=64, use_p_act=False
    )
    options = {"dtype": torch.float32, "top_k": 0, "temperature": 1.0}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(free=100))
    with pytest.raises(UserError, match="what the teacher says"):
        cached_teacher(tmp_path, model, rows, 1, **options)
    monkeypatch.undo()
    cached_teacher(tmp_path, model, rows, 1, **options)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(free=100))
    cached_teacher(tmp_path, model, rows, 1, **options)


def test_the_key_of_the_store_tells_precision(tmp_path):
    model, processor = make_model()
    assert feature_cache(tmp_path, model, processor).description["dtype"] == "float16"


def test_the_encoder_is_not_held_where_all_features_are_cached(manifest, parts, tmp_path, monkeypatch):
    held = []

    def noted(trainer, *_, **__):
        held.append(trainer.model.get_base_model().model.audio_tower is not None)
        return 0

    monkeypatch.setattr(sft, "fit", noted)
    for wanted in ("yes", "no"):
        run_sft(config(tmp_path / wanted, manifest, parts, feature_cache=wanted))
    assert held == [False, True]


def test_a_run_without_the_encoder_saves_a_checkpoint_that_hears(manifest, parts, tmp_path):
    run_sft(config(tmp_path / "run", manifest, parts, feature_cache="yes"))
    model, processor = load_for_inference(tmp_path / "run")
    mel = processor.features([np.zeros(8000, np.float32)])
    assert model.model.encode_audio(**mel).mask.any()
    model.leave_out_encoder()
    with pytest.raises(RuntimeError, match="give audio_frames"):
        model.model.encode_audio(**mel)
