"""Rows of a manifest in shards: their order, and that shards change nothing of what is learnt and said."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from safetensors.torch import load_file
from tiny import make_model, save_model
from torch.utils.data import BatchSampler

from aligncap.cli import main
from aligncap.data.rows import open_manifest
from aligncap.data.shards import read_index
from aligncap.training import config as config_module
from aligncap.training import responses
from aligncap.training.clips import read_clips
from aligncap.training.data import CaptionRows, ClipInputs, SpeechDataset
from aligncap.training.sft import SpeechSFTConfig, SpeechSFTTrainer, run_sft
from aligncap.training.shard_order import ShardOrder
from aligncap.utils.errors import UserError

SHARDS = np.repeat([3, 0, 2, 1, 7], [40, 200, 160, 100, 1])
QUIET = {"report_to": "none", "disable_tqdm": True, "precision": "float32", "logging_steps": 1}


@pytest.fixture(scope="session")
def sharded(manifest, tmp_path_factory) -> Path:
    """The manifest of eight clips, in shards of two or three."""
    out = tmp_path_factory.mktemp("shards") / "out"
    assert main(["shard", str(manifest), "--out", str(out), "--size", "60KB"]) == 0
    assert len(read_index(out)) > 2
    return out / manifest.name


def speech(path: Path, processor: Any) -> SpeechDataset:
    return SpeechDataset.from_manifest(path, processor, teacher=False)


# ---------------------------------------------------------------------------------------------- the order


def test_every_row_once_and_the_same_by_seed_and_epoch():
    order = ShardOrder(SHARDS, seed=3, window=20)
    first = list(order)
    assert sorted(first) == list(range(501)) and len(order) == 501 and first == list(order)
    assert first == list(ShardOrder(SHARDS, seed=3, window=20)) != list(ShardOrder(SHARDS, seed=4, window=20))
    order.set_epoch(1)
    second = list(order)
    assert second != first and sorted(second) == list(range(501))
    order.set_epoch(0)
    assert list(order) == first and all(type(row) is int for row in first)


@pytest.mark.parametrize("window", [0, 1, 20, 60])
def test_a_shard_is_read_within_its_rows_and_the_window(window):
    """Its rows begin at most a window before all of an earlier shard are read, and end a window later."""
    for epoch in range(5):
        order = ShardOrder(SHARDS, window=window)
        order.set_epoch(epoch)
        shards = SHARDS[list(order)]
        for shard in np.unique(SHARDS):
            places = np.flatnonzero(shards == shard)
            assert places[-1] - places[0] < len(places) + 2 * window + 1
        if window == 0:
            assert 1 + np.count_nonzero(np.diff(shards)) == 5  # one after the other


def test_neighbours_are_mixed_over_the_window_and_a_large_one_leaves_no_order():
    lag = {}
    for window in (0, 60, 10**9):
        shards = SHARDS[list(ShardOrder(SHARDS, seed=1, window=window))]
        lag[window] = np.mean(shards[1:] == shards[:-1])
    alone = np.sum((np.bincount(SHARDS) / len(SHARDS)) ** 2)  # two rows drawn at random
    assert lag[0] > 0.98 and lag[60] < lag[0] and abs(lag[10**9] - alone) < 0.08


def test_two_processes_take_together_what_one_takes():
    one = list(BatchSampler(ShardOrder(SHARDS[:480], seed=5), 16, False))
    two = [
        list(BatchSamplerShard(BatchSampler(ShardOrder(SHARDS[:480], seed=5), 8, False), 2, i))
        for i in (0, 1)
    ]
    assert [a + b for a, b in zip(*two, strict=True)] == one


def test_the_loader_of_a_trainer_takes_another_order_each_epoch(sharded, manifest, tmp_path):
    model, processor = make_model()
    taken: dict[Path, list[list[int]]] = {}
    for path in (sharded, manifest):
        rows = speech(path, processor)
        args = SpeechSFTConfig(output_dir=str(tmp_path), train_manifest=str(path), max_steps=1, **QUIET)
        trainer = SpeechSFTTrainer(model, args, processor, train_dataset=rows)
        assert (rows.shards is None) == (path == manifest)
        assert isinstance(trainer._get_train_sampler(), ShardOrder) == (path == sharded)
        loader = trainer.get_train_dataloader()
        taken[path] = []
        for epoch in (0, 1, 0):
            loader.set_epoch(epoch)
            taken[path].append([row for batch in loader.batch_sampler for row in batch])
    first, second, again = taken[sharded]
    assert first == again != second and sorted(first) == sorted(second) == list(range(16))


def test_features_that_are_cached_are_read_in_the_order_of_any_manifest(sharded, tmp_path):
    model, processor = make_model()
    rows = SpeechDataset.from_manifest(sharded, processor, model=model, cache_dir=tmp_path, teacher=False)
    assert rows.shards is None  # no sound is read from the shards


# ---------------------------------------------------------------------------- what is learnt and what is said


def options(folder: Path, path: Path, parts: dict[str, str], **more: Any) -> SpeechSFTConfig:
    fixed = {"encoder_layer": "2", "projector_hidden": 24, "projector_dropout": 0.0, "lora_dropout": 0.0}
    fixed |= {"align_steps": 0, "feature_cache": "no", "balance": False, "max_steps": 6, "save_steps": 1}
    fixed |= {"save_total_limit": 9, "per_device_train_batch_size": 3, "cache_dir": str(folder / "cache")}
    return SpeechSFTConfig(train_manifest=str(path), **parts, **QUIET, **fixed | more)


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def whole(sharded, parts, tmp_path_factory) -> Path:
    """Six steps of three rows of the sixteen: the second epoch begins within them."""
    out = tmp_path_factory.mktemp("sft") / "whole"
    assert run_sft(options(out.parent, sharded, parts, output_dir=str(out))) == 0
    return out


@pytest.mark.parametrize("step", [2, 5, 6])
def test_killed_within_a_shard_it_goes_on_as_if_nothing_had_been(whole, sharded, parts, tmp_path, step):
    shutil.copytree(whole, killed := tmp_path / "killed")
    for path in killed.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) >= step:
            shutil.rmtree(path)
    (killed / "adapter_model.safetensors").unlink()
    again = options(whole.parent, sharded, parts, output_dir=str(killed), resume_from_checkpoint="true")
    assert run_sft(again) == 0
    assert losses(killed) == losses(whole) and len(losses(whole)) == 6
    ours, theirs = (load_file(out / "adapter_model.safetensors") for out in (killed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_worker_processes_decode_the_same(whole, sharded, parts, tmp_path):
    config = options(whole.parent, sharded, parts, output_dir=str(tmp_path / "run"), dataloader_num_workers=2)
    config.max_steps = 3  # of the same schedule's beginning: the rate differs, the first loss does not
    assert run_sft(config) == 0
    assert losses(tmp_path / "run")[0] == losses(whole)[0]
    model, processor = make_model()
    rows, taken = speech(sharded, processor), []
    for workers in (0, 2):
        config.dataloader_num_workers = workers
        loader = SpeechSFTTrainer(model, config, processor, train_dataset=rows).get_train_dataloader()
        taken.append(list(islice(loader, 4)))
    for one, other in zip(*taken, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_shards_change_no_loss(manifest, sharded, parts, tmp_path):
    """All rows in a batch: the order within it changes the last digits alone."""
    for name, path in (("plain", manifest), ("tar", sharded)):
        config = options(
            tmp_path,
            path,
            parts,
            output_dir=str(tmp_path / name),
            max_steps=2,
            per_device_train_batch_size=16,
        )
        assert run_sft(config) == 0
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "tar"), abs=1e-4)
    record = [json.loads((tmp_path / name / "provenance.json").read_text()) for name in ("plain", "tar")]
    assert record[0]["clips"] == record[1]["clips"]


def test_shards_change_no_caption(manifest, sharded, tmp_path):
    model = save_model(tmp_path / "model")
    said = []
    for name, path in (("plain", manifest), ("tar", sharded)):
        words = ["caption", "--model", str(model), "--manifest", str(path), "--device", "cpu"]
        assert main([*words, "--out", str(tmp_path / f"{name}.jsonl")]) == 0
        rows = map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
        said.append([(row["id"], row["caption"]) for row in rows])
    assert said[0] == said[1] and len(said[0]) == 8


def test_sound_is_decoded_by_workers_where_there_is_a_gpu(monkeypatch, tmp_path, manifest):
    plain = {"output_dir": str(tmp_path), "train_manifest": str(manifest)}
    assert SpeechSFTConfig(**plain, **QUIET).dataloader_num_workers == 0 or torch.cuda.is_available()
    assert SpeechSFTConfig(**plain, **QUIET, dataloader_num_workers=3).dataloader_num_workers == 3
    monkeypatch.setattr(config_module, "_cores", lambda: 16)
    assert config_module.spare_cores() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert config_module.spare_cores() == 1


# ------------------------------------------------------------------------------ captions read when asked


def test_of_very_many_captions_tokens_are_made_when_they_are_read(manifest, monkeypatch):
    _, processor = make_model()
    clips, tokenizer = read_clips(str(manifest)), processor.tokenizer
    asked = {"max_response_tokens": 64, "use_p_act": True}
    eager = CaptionRows.of(clips, tokenizer, **asked)
    monkeypatch.setattr(responses, "MOST_AT_ONCE", 4)
    monkeypatch.setattr(responses, "SAMPLE", 4)
    late = CaptionRows.of(clips, tokenizer, **asked)
    assert isinstance(late.responses, responses.LateTokens) and len(late) == len(eager)
    assert [late[i] for i in range(16)] == [eager[i] for i in range(16)]
    assert late.responses.lengths.tolist() == eager.responses.lengths.tolist()
    inputs = ClipInputs(processor)
    assert np.array_equal(SpeechDataset(late, inputs).lengths(), SpeechDataset(eager, inputs).lengths())
    with pytest.raises(
        UserError, match="of 4 captions drawn at random are longer than max_response_tokens=5"
    ):
        CaptionRows.of(clips, tokenizer, max_response_tokens=5)


def test_rows_are_balanced_and_once_in_a_manifest_on_disk_as_in_lists(manifest):
    _, processor = make_model()
    clips = read_clips(str(manifest))
    chosen = clips.chosen([5, 0, 5])
    rows = CaptionRows.of(chosen, processor.tokenizer, max_response_tokens=64)
    assert rows.places.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert rows[0] == rows[4] and chosen.keys[0] == clips.keys[5] and len(chosen.paths) == 2
    once = CaptionRows.of(clips, processor.tokenizer, max_response_tokens=64, once=True)
    read = [(u.gender, u.p_act[k], u.captions[k]) for u in open_manifest(manifest) for k in range(2)]
    assert once.places.tolist() == [[i // 2, i % 2] for i in sorted(map(read.index, dict.fromkeys(read)))]
