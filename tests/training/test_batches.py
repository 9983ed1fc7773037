"""Batches of rows of like length: no row lost, no budget passed, and runs that resume and divide exactly."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from test_training import adapter, batch_of, breaking, losses, options, run
from torch.utils.data import DataLoader

from aligncap.training import batches
from aligncap.training.align import AlignConfig
from aligncap.training.batches import LengthBuckets, padded_size, padding_share, row_lengths
from aligncap.training.data import SpeechDataset
from aligncap.training.distill import DistillConfig
from aligncap.training.sft import SpeechSFTConfig
from aligncap.training.teacher import TeacherConfig, run_teacher
from aligncap.utils.errors import UserErrors
from aligncap.utils.tensor_cache import TensorCache

pairs = st.tuples(st.integers(1, 60), st.integers(1, 30))
some_lengths = st.lists(pairs, min_size=1, max_size=60).map(np.array)
limits = st.one_of(
    st.fixed_dictionaries({"rows": st.integers(1, 9)}),
    st.fixed_dictionaries({"tokens": st.integers(20, 400)}),
)


def varied(rows: int = 500, seed: int = 0) -> np.ndarray:
    """Lengths of prompts and responses that know nothing of each other."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(30, 60, rows), rng.integers(5, 40, rows)], axis=1)


def test_docstring_examples_are_true():
    assert doctest.testmod(batches, extraglobs={"np": np}).failed == 0


@given(some_lengths, limits, st.integers(1, 6), st.integers(0, 3))
def test_each_row_is_read_exactly_once_an_epoch(lengths, limit, multiple, epoch):
    buckets = LengthBuckets(lengths, multiple=multiple, **limit)
    buckets.set_epoch(epoch)
    found = list(buckets)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert len(found) == len(buckets) and all(found)
    assert len(found) % multiple == 0 or all(len(batch) == 1 for batch in found)


@given(some_lengths, limits, st.integers(1, 6), st.integers(0, 3))
def test_only_a_row_that_is_too_long_alone_passes_the_budget(lengths, limit, multiple, epoch):
    buckets = LengthBuckets(lengths, multiple=multiple, **limit)
    buckets.set_epoch(epoch)
    for batch in buckets:
        if "rows" in limit:
            assert len(batch) <= limit["rows"]
        else:
            assert len(batch) == 1 or padded_size(lengths[batch]) <= limit["tokens"]


@given(some_lengths, limits, st.integers(0, 9))
def test_seed_and_epoch_decide_the_order(lengths, limit, seed):
    first, second = (LengthBuckets(lengths, seed=seed, **limit) for _ in range(2))
    for epoch in (0, 5, 0):
        first.set_epoch(epoch)
        second.set_epoch(epoch)
        assert list(first) == list(second) == list(first)


def test_epochs_and_seeds_differ_in_the_order_and_the_company_of_rows():
    lengths = varied(500) // 10  # many rows of the same lengths
    buckets = LengthBuckets(lengths, tokens=200)
    other = LengthBuckets(lengths, tokens=200, seed=1)
    first = list(buckets)
    buckets.set_epoch(1)
    for found in (list(buckets), list(other)):
        assert found != first
        assert {frozenset(b) for b in found} != {frozenset(b) for b in first}


def test_a_budget_is_well_used_and_padding_small():
    lengths = varied(2000)
    tokens = LengthBuckets(lengths, tokens=1600).summary()
    rows = LengthBuckets(lengths, rows=16).summary()
    for found in (tokens, rows):
        assert found["padding"] < 0.1 < 0.25 < found["padding_shuffled"]
    sizes = [padded_size(lengths[batch]) for batch in LengthBuckets(lengths, tokens=1600)]
    assert np.mean(sizes) > 0.93 * 1600


def test_the_padding_share_is_that_of_the_collated_batches(manifest, parts, tmp_path):
    trainer, _, _, rows, _ = batch_of(manifest, parts, tmp_path, per_device_train_batch_size=3)
    found = [trainer.data_collator([rows[i] for i in range(start, start + 4)]) for start in (0, 4, 8, 12)]
    chosen = [range(start, start + 4) for start in (0, 4, 8, 12)]
    for prefix, lengths in (("", row_lengths(rows)), ("teacher_", rows.teacher_lengths())):
        masks = [batch[f"{prefix}attention_mask"] for batch in found]
        share = 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
        assert padding_share(lengths, [list(c) for c in chosen]) == pytest.approx(share)


def test_lengths_are_known_without_reading_audio(manifest, tiny, tmp_path, monkeypatch):
    model, processor = tiny
    cached = SpeechDataset.from_manifest(manifest, processor, model=model, cache_dir=tmp_path, teacher=False)
    for rows in (cached, SpeechDataset(cached.rows, cached.inputs.live())):
        real = [(len(rows[i]["prompt_ids"]), len(rows[i]["response_ids"])) for i in range(len(rows))]
        with monkeypatch.context() as patch:
            patch.setattr(TensorCache, "__getitem__", None)
            patch.setattr("aligncap.training.data.load_audio", None)
            assert [tuple(row) for row in rows.lengths()] == real
        assert len({p for p, _ in real}) > 1


def test_processes_share_an_epoch_in_turn_and_resume_in_its_middle():
    lengths = varied(60)
    epoch = LengthBuckets(lengths, tokens=300, multiple=2, seed=3)
    epoch.set_epoch(1)
    whole = list(epoch)
    for count in (1, 2):
        for process in range(count):
            buckets = LengthBuckets(lengths, tokens=300, multiple=2, seed=3)
            loader = DataLoader(list(range(60)), batch_sampler=buckets, collate_fn=list)
            loader = prepare_data_loader(loader, num_processes=count, process_index=process)
            loader.set_sampler(buckets)
            resumed = skip_first_batches(loader, 3)
            resumed.set_epoch(1)
            assert list(resumed) == whole[process::count][3:]
            loader.set_epoch(1)
            assert list(loader) == whole[process::count]
            assert len(loader) == len(whole) // count


def in_tokens(**more):
    """Batches of two or three rows of the eight clips with two captions each; more than one epoch of them."""
    return {
        "tokens_per_batch": 200,
        "per_device_train_batch_size": 8,
        "max_steps": 9,
        "save_steps": 2,
        "save_total_limit": None,
    } | more


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, manifest, parts):
    out = tmp_path_factory.mktemp("batches") / "whole"
    run(DistillConfig, out, manifest, parts, **in_tokens(gradient_accumulation_steps=2))
    return out


def test_a_run_says_and_records_its_padding(manifest, parts, tmp_path, caplog):
    with caplog.at_level("INFO", "aligncap"):
        more = in_tokens(max_steps=1, teacher_cache="no")
        run(DistillConfig, tmp_path / "run", manifest, parts, **more)
    said = caplog.text
    found = json.loads((tmp_path / "run/run.json").read_text())["batches"]
    assert found["rows"] == 16 and found["batches"] > 2
    assert found["padding"] < found["padding_shuffled"] and "teacher_padding" in found
    assert f"16 rows in {found['batches']} batches" in said and f"padding {found['padding']:.1%}" in said


def test_rows_longer_than_the_budget_are_warned_of(manifest, parts, tmp_path, caplog):
    with caplog.at_level("INFO", "aligncap"):
        run(SpeechSFTConfig, tmp_path / "run", manifest, parts, **in_tokens(max_steps=1, tokens_per_batch=20))
    assert "16 rows are longer than tokens_per_batch=20" in caplog.text


def test_the_whole_run_takes_three_epochs_of_three_steps(whole_run):
    # What the tests of resuming stand on: checkpoint 4 lies in the middle of the second epoch, 6 at its end.
    found = json.loads((whole_run / "run.json").read_text())["batches"]
    assert found["batches"] == 2 * 3 and len(losses(whole_run)) == 9


@pytest.mark.parametrize("at", [5, 7])
def test_a_resumed_run_equals_an_unbroken_one(at, whole_run, manifest, parts, tmp_path):
    out = tmp_path / "broken"
    more = in_tokens(gradient_accumulation_steps=2)
    with pytest.raises(RuntimeError, match="power cut"):
        breaking(out, manifest, parts, at=at, **more)
    run(DistillConfig, out, manifest, parts, resume_from_checkpoint="true", **more)
    assert losses(out) == losses(whole_run)
    assert all(torch.equal(v, adapter(whole_run)[k]) for k, v in adapter(out).items())


def test_a_batch_gives_the_loss_and_gradient_of_its_rows_one_by_one(manifest, parts, tmp_path):
    trainer, model, _, rows, _ = batch_of(manifest, parts, tmp_path, tokens_per_batch=200)
    batch = next(b for b in trainer.buckets if len(b) > 1)
    tokens = sum(len(rows[i]["response_ids"]) for i in batch)

    def gradient(groups):
        model.zero_grad()
        total = 0.0
        for group in groups:
            inputs = trainer.data_collator([rows[i] for i in group])
            loss = trainer.compute_loss(model, inputs, num_items_in_batch=tokens)
            loss.backward()
            total += loss.item()
        return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    together, alone = gradient([batch]), gradient([[i] for i in batch])
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    for a, b in zip(together[1], alone[1]):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_the_teacher_trains_in_buckets_of_a_fixed_number_of_rows(manifest, parts, tmp_path):
    out = tmp_path / "teacher"
    more = {"length_buckets": True, "max_steps": 2, "per_device_train_batch_size": 3}
    run_teacher(TeacherConfig(**options(out, manifest, {"llm": parts["llm"]}, **more)))
    found = json.loads((out / "run.json").read_text())["batches"]
    assert found["batches"] == -(-found["rows"] // 3) and len(losses(out)) == 2


def test_without_the_options_the_order_is_the_trainers_own(manifest, parts, tmp_path):
    trainer, *_ = batch_of(manifest, parts, tmp_path)
    assert trainer.buckets is None and trainer.describe_batches() == {}
    assert not isinstance(trainer.get_train_dataloader().batch_sampler, LengthBuckets)


@pytest.mark.parametrize(
    ("kind", "chosen", "message"),
    [
        (DistillConfig, {"tokens_per_batch": 500, "per_device_train_batch_size": 4}, "leave one out"),
        (DistillConfig, {"tokens_per_batch": -1}, "must be at least 0"),
        (SpeechSFTConfig, {"length_buckets": True, "train_sampling_strategy": "sequential"}, "strategy"),
        (AlignConfig, {"tokens_per_batch": 500}, "has no effect here"),
    ],
)
def test_options_that_contradict_each_other_are_refused(kind, chosen, message, manifest, tmp_path):
    with pytest.raises(UserErrors, match=message):
        kind(output_dir=str(tmp_path / "x"), train_manifest=str(manifest), **chosen)
