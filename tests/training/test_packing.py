"""Packed rows give what rows of their own give: losses, gradients, whole runs; and hardly any padding."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_batches import some_lengths, varied
from test_training import adapter, batch_of, breaking, losses, options, run, speech_options
from tiny import make_tokenizer, make_whisper, voice
from tiny_families import FAMILIES, VARIANTS, save_family

from aligncap.models.build import assemble, load_llm
from aligncap.text.prompts import response_ids
from aligncap.training import packing
from aligncap.training.align import AlignConfig
from aligncap.training.batches import LengthBuckets, describe
from aligncap.training.collators import IGNORE, SpeechCollator, join_packed, packed
from aligncap.training.data import ClipInputs
from aligncap.training.distill import DistillConfig, DistillTrainer
from aligncap.training.divergences import most_likely, pack
from aligncap.training.dpo import SpeechDPOConfig
from aligncap.training.packing import (
    PADDING,
    WIDEST,
    fill_rows,
    needs_mask,
    packed_size,
    pair_mask,
    plan_rows,
    with_mask,
)
from aligncap.training.sft import SpeechSFTConfig
from aligncap.training.teacher import TeacherConfig, run_teacher
from aligncap.utils.errors import UserError, UserErrors

CLIPS = [voice(0.9, 150), voice(2.7, 220), voice(0.5, 100), voice(1.4, 120), voice(0.7, 180)]
CAPTIONS = [
    "He sounds angry, with a loud voice.",
    "Sad.",
    "She speaks sadly and slowly, in a soft voice.",
    "",  # end-of-text alone
    "The speaker sounds calm.",
]
SAID = ["Voice: angry.", "Kids are talking by the door", "A woman says: calm", "soft", "Voice: not calm."]
LOSS, GRADIENTS = 1e-5, 1e-4  # what the two forms may differ by


def of_type(name: str, **own):
    """A tiny LLM of transformers' class of this name, and a tokenizer."""
    import transformers

    torch.manual_seed(0)
    tokenizer = make_tokenizer(chat=False)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1}
    kind = getattr(transformers, f"{name}ForCausalLM")
    ids = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    return kind(kind.config_class(vocab_size=len(tokenizer), **size, **ids, **own)), tokenizer


# Sliding layers of three tokens, which the longer texts overrun.
NARROW = {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8, "sliding_window": 3}


def trainer_of(name, manifest, tmp_path, attention="sdpa", **more):
    """A trainer on a student whose adapters and projector have moved away from their start."""
    from transformers import WhisperFeatureExtractor

    if name in ("Gemma3", "Mistral"):
        llm, tokenizer = of_type(name, **NARROW)
    else:
        llm, tokenizer = load_llm(save_family(name, tmp_path / "llm"))
    torch.manual_seed(0)
    model, processor = assemble(
        make_whisper().encoder, WhisperFeatureExtractor(), llm, tokenizer,
        encoder_layer=2, projector_hidden=24, projector_dropout=0.0,
        speakers=["woman", "man"], emotions=["angry", "calm"],
    )  # fmt: skip
    model.model.language_model.set_attn_implementation(attention)
    args = DistillConfig(**speech_options(tmp_path / "x", manifest, {}, packing=True, **more))
    trainer = DistillTrainer(model, args, processing_class=processor, train_dataset=[])
    torch.manual_seed(1)
    for p in trainer.model.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    trainer.model.train()
    return trainer, processor


def rows_of(processor):
    before, after = ClipInputs(processor).around()
    rows = []
    for clip, caption, said in zip(CLIPS, CAPTIONS, SAID):
        audio = [processor.audio_token_id] * processor.num_audio_tokens(len(clip))
        teacher = processor.tokenizer(said, add_special_tokens=False)["input_ids"]
        response = response_ids(processor.tokenizer, caption, 64)
        row = {"prompt_ids": [*before, *audio, *after], "samples": clip, "response_ids": response}
        rows.append(row | {"teacher_prompt_ids": teacher})
    return rows


def read(trainer, batch):
    """The loss, and the gradients of all that is trained."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def agree(trainer, rows):
    plain, several = trainer.data_collator(rows), packed(trainer.data_collator)(rows)
    assert len(several["input_ids"]) < len(rows) == len(plain["input_ids"])  # or nothing would be packed
    loss, gradients = read(trainer, plain)
    loss_packed, gradients_packed = read(trainer, several)
    assert loss_packed == pytest.approx(loss, rel=LOSS)
    assert gradients.keys() == gradients_packed.keys()
    assert any("projector" in n for n in gradients) and any("lora_A" in n for n in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_packed[name], gradient, atol=GRADIENTS, rtol=GRADIENTS)
    assert max(g.abs().max() for g in gradients.values()) > 1e-2  # or nothing would be compared
    return several


def test_docstring_examples_are_true():
    assert doctest.testmod(packing).failed == 0


some_texts = st.lists(st.integers(1, 90), min_size=1, max_size=40)


@given(some_texts)
def test_each_text_of_a_batch_stands_once_and_padding_is_small(lengths):
    rows = plan_rows(lengths)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths))) and all(rows)
    size, longest = packed_size(lengths), max(lengths)
    assert size // len(rows) <= WIDEST * longest or len(rows) == 1
    if sum(lengths) <= WIDEST * longest:  # one row is narrow enough
        assert sum(lengths) >= (1 - PADDING) * size
    if len(set(lengths)) == 1:
        assert len(rows) == len(lengths)  # what has no padding stays as narrow as it is


@given(some_texts, st.integers(1, 300))
def test_rows_of_a_data_set_hold_each_text_once_and_no_more_than_they_may(lengths, width):
    rows = fill_rows(lengths, width)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= width for row in rows)
    halves = sum(sum(lengths[i] for i in row) <= width / 2 for row in rows)
    assert halves <= 1  # two such rows would have been one
    # A collator that is given the texts in this order needs no more rows.
    assert len(plan_rows([lengths[i] for row in rows for i in row], width)) <= len(rows)


def test_pairs_of_long_and_short_texts_share_rows():
    assert plan_rows([50, 11, 40, 20, 30, 31]) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*FAMILIES, "Gemma3", "Mistral"])
def test_packed_rows_equal_plain_rows_in_every_family(name, attention, manifest, tmp_path):
    trainer, processor = trainer_of(name, manifest, tmp_path, attention)
    assert trainer.writes_mask == (name == "opt")
    batch = agree(trainer, rows_of(processor))
    assert len(batch["teacher_input_ids"]) < len(CLIPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_packed_rows_equal_plain_rows_in_variants_of_the_families(name, manifest, tmp_path):
    trainer, processor = trainer_of(name, manifest, tmp_path)
    agree(trainer, rows_of(processor))


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
def test_what_is_cached_of_the_teacher_follows_its_text(kind, manifest, tmp_path):
    trainer, processor = trainer_of("smollm2", manifest, tmp_path, teacher_top_k=8 * (kind == "top_k"))
    rows = rows_of(processor)
    generator = torch.Generator().manual_seed(0)
    for row in rows:
        del row["teacher_prompt_ids"]
        count = len(row["response_ids"])
        if kind == "hidden":
            row["teacher_hidden"] = torch.randn(count, 32, generator=generator)
        else:
            logits = torch.randn(count, processor.audio_token_id, generator=generator)
            row["teacher_top_k"] = pack(*most_likely(logits, 8))
    batch = agree(trainer, rows)
    assert (batch["labels"] != IGNORE).sum() == len(batch[f"teacher_{kind}"])


def test_cached_frames_of_several_clips_of_a_row_reach_their_own_places(manifest, tmp_path):
    """The hidden states at every token of every text are those of its own row."""
    trainer, processor = trainer_of("llama", manifest, tmp_path)
    model = trainer.model.get_base_model().model.eval()
    rows = rows_of(processor)
    with torch.no_grad():
        for row in rows:
            row["frames"] = model.encode_audio(**processor.features([row.pop("samples")])).frames[0]
        batch = SpeechCollator(processor, packing=True)(rows)
        audio = {name: batch[name] for name in ("audio_frames", "audio_frames_mask")}
        where = {name: batch[name] for name in ("input_ids", "position_ids")}
        hidden = model(**where, **audio, use_cache=False).last_hidden_state.flatten(0, 1)
        for row, order in zip(rows, np.argsort(join_packed(*texts(rows), 0)[1])):
            ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
            mask = torch.ones(1, len(row["frames"]), dtype=torch.bool)
            alone = model(input_ids=ids, audio_frames=row["frames"][None], audio_frames_mask=mask)
            begins = (batch["position_ids"] == 0).flatten().nonzero()[int(order), 0]
            mine = hidden[begins : begins + ids.shape[1]]
            torch.testing.assert_close(mine, alone.last_hidden_state[0], atol=1e-4, rtol=1e-4)
        swapped = {name: value.flip(0) for name, value in audio.items()}
        with pytest.raises(ValueError, match="differ in number"):
            model(**where, **swapped, use_cache=False)


def texts(rows):
    return [row["prompt_ids"] for row in rows], [row["response_ids"] for row in rows]


def test_padding_sees_itself_alone_and_no_text_sees_it():
    batch, order = join_packed([[1] * 40, [2] * 20, [3] * 18], [[7], [8], [9]], pad=0)
    assert order == [0, 1, 2] and batch["input_ids"].shape == (2, 41)
    assert batch["position_ids"][1, -1] == 1 and batch["labels"][1, -1] == IGNORE
    mask = pair_mask(batch["position_ids"])[:, 0]
    assert mask[1, -1].nonzero().tolist() == [[40]] and mask[1, :-1, -1].sum() == 0
    assert mask[1, 39].nonzero().flatten().tolist() == list(
        range(21, 40)
    )  # the last text's end sees it whole


def test_the_written_mask_is_that_which_transformers_makes():
    from transformers.masking_utils import create_causal_mask

    llm, _ = of_type("Mistral", **NARROW | {"sliding_window": None})
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 1], [0, 1, 2, 3, 4, 5]])
    for attention in ("sdpa", "eager"):
        llm.set_attn_implementation(attention)
        theirs = create_causal_mask(
            config=llm.config, inputs_embeds=torch.zeros(2, 6, 32), attention_mask=None,
            past_key_values=None, position_ids=position_ids,
        )  # fmt: skip
        ours = with_mask(llm, {"position_ids": position_ids})["attention_mask"]
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize(("name", "own"), [("Bloom", {}), ("Falcon", {"alibi": True})])
def test_a_language_model_that_would_read_packed_rows_otherwise_is_refused(name, own):
    with pytest.raises(UserError, match="share a row otherwise than alone; leave packing out"):
        needs_mask(of_type(name, **own)[0])


def test_flash_attention_is_refused():
    llm, _ = of_type("Mistral", **NARROW)
    llm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="flash_attention_2.*batches of one row alone; leave packing out"):
        needs_mask(llm)


def test_empty_prompts_are_refused():
    with pytest.raises(ValueError, match="without a prompt"):
        join_packed([[1], []], [[7], [8]], pad=0)


# Batches


@given(some_lengths, st.integers(20, 400), st.integers(1, 6), st.integers(0, 3))
def test_each_row_is_read_once_an_epoch_within_the_budget(lengths, tokens, multiple, epoch):
    buckets = LengthBuckets(lengths, tokens=tokens, multiple=multiple, packed=True)
    buckets.set_epoch(epoch)
    found = list(buckets)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert len(found) == len(buckets) and all(found)
    assert len(found) % multiple == 0 or all(len(batch) == 1 for batch in found)
    for batch in found:
        assert len(batch) == 1 or packed_size(lengths[batch].sum(1).tolist(), buckets.width) <= tokens
    assert found == list(buckets)


def test_a_budget_is_filled_by_narrow_rows_of_any_length():
    lengths = varied(2000)
    buckets = LengthBuckets(lengths, tokens=1600, packed=True)
    found = buckets.summary()
    assert found["padding"] <= PADDING < 0.25 < found["padding_shuffled"]
    assert buckets.width < 300
    batches = list(buckets)
    assert np.mean([packed_size(lengths[b].sum(1).tolist(), buckets.width) for b in batches]) > 0.9 * 1600
    spread = np.mean([lengths[batch].sum(1).std() for batch in batches])
    assert spread > 0.8 * lengths.sum(1).std()  # of like lengths it would be near 0
    buckets.set_epoch(1)
    assert {frozenset(b) for b in buckets}.isdisjoint(frozenset(b) for b in batches)


# Runs


def longer(**more):
    few = {"max_steps": 6, "per_device_train_batch_size": 5, "teacher_cache": "no", "align_steps": 5}
    return few | more


def test_a_packed_run_takes_the_losses_of_a_plain_one(manifest, parts, tmp_path):
    dev = {"dev_manifest": str(manifest), "eval_steps": 6}
    for name in ("plain", "packed"):
        run(DistillConfig, tmp_path / name, manifest, parts, **longer(packing=name == "packed", **dev))
    assert len(losses(tmp_path / "plain")) == 6
    assert losses(tmp_path / "packed") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    for name, value in adapter(tmp_path / "plain").items():
        torch.testing.assert_close(adapter(tmp_path / "packed")[name], value, atol=1e-4, rtol=1e-3)
    found = json.loads((tmp_path / "packed/run.json").read_text())["batches"]
    assert found["padding"] <= PADDING < found["padding_shuffled"]
    assert found["teacher_padding"] <= PADDING and found["rows"] == 16


def test_a_resumed_packed_run_equals_an_unbroken_one(manifest, parts, tmp_path):
    more = longer(packing=True, tokens_per_batch=200, per_device_train_batch_size=8)
    more |= {"save_steps": 2, "gradient_accumulation_steps": 2}
    run(DistillConfig, tmp_path / "whole", manifest, parts, **more)
    with pytest.raises(RuntimeError, match="power cut"):
        breaking(tmp_path / "broken", manifest, parts, at=5, **more)
    run(DistillConfig, tmp_path / "broken", manifest, parts, resume_from_checkpoint="true", **more)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert all(
        torch.equal(v, adapter(tmp_path / "whole")[k]) for k, v in adapter(tmp_path / "broken").items()
    )


def test_the_text_teacher_packs(manifest, parts, tmp_path):
    for name in ("plain", "packed"):
        more = {"max_steps": 2, "per_device_train_batch_size": 5, "packing": name == "packed"}
        run_teacher(TeacherConfig(**options(tmp_path / name, manifest, {"llm": parts["llm"]}, **more)))
    assert losses(tmp_path / "packed") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_the_share_of_padding_is_that_of_the_collated_batches(manifest, parts, tmp_path):
    trainer, _, _, rows, processor = batch_of(manifest, parts, tmp_path, tokens_per_batch=300, packing=True)
    found, words = describe(trainer.args, rows, trainer.buckets)
    collator = packed(trainer.data_collator, trainer.buckets.width)
    batches = [collator([rows[i] for i in batch]) for batch in trainer.buckets]
    total = sum(batch["input_ids"].numel() for batch in batches)
    assert found["padding"] == pytest.approx(1 - rows.lengths().sum() / total, abs=1e-4)
    assert "packed; padding" in words
    assert all(batch["input_ids"].numel() <= 300 for batch in batches)


def test_what_is_evaluated_is_not_packed(manifest, parts, tmp_path):
    trainer, *_ = batch_of(manifest, parts, tmp_path, packing=True)
    trainer.eval_dataset = trainer.train_dataset
    assert trainer.get_train_dataloader().collate_fn.packing
    assert not trainer.get_eval_dataloader().collate_fn.packing


def test_a_collator_that_cannot_pack_is_named(manifest, parts, tmp_path):
    trainer, *_ = batch_of(manifest, parts, tmp_path, packing=True)
    trainer.data_collator = dict
    with pytest.raises(ValueError, match="needs a field `packing`"):
        trainer.get_train_dataloader()


@pytest.mark.parametrize(
    ("kind", "chosen", "message"),
    [
        (SpeechSFTConfig, {"length_buckets": True}, "packing and length_buckets: .* leave one out"),
        (SpeechDPOConfig, {}, "packing: has no effect here"),
        (AlignConfig, {}, "packing: has no effect here"),
    ],
)
def test_where_packing_is_refused(kind, chosen, message, manifest, tmp_path):
    with pytest.raises(UserErrors, match=message):
        kind(output_dir=str(tmp_path / "x"), train_manifest=str(manifest), packing=True, **chosen)
