"""Packed pairs give what rows of their own give: log-probabilities, loss and gradients."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from tiny import make_model, make_whisper, voice
from tiny_families import FAMILIES, VARIANTS, save_family
from torch.nn import functional as F

from aligncap.models.build import assemble, load_llm
from aligncap.text.prompts import response_ids
from aligncap.training.adapters import lora_config
from aligncap.training.collators import IGNORE, PreferenceCollator
from aligncap.training.data import ClipInputs
from aligncap.training.dpo import SpeechDPOConfig
from aligncap.training.shared_prefix import pack_pairs, plain_rows, score_responses, why_not_packed

CLIPS = [voice(1.31, 150), voice(2.7, 220), voice(0.5, 100)]  # prompts of three lengths: left padding
CAPTIONS = [
    ("He sounds angry, with a loud voice.", "Calm."),
    ("Sad.", "She speaks sadly and slowly, in a soft voice."),
    ("The speaker sounds calm and steady.", ""),  # end-of-text alone
]
LOSS, GRADIENTS = 1e-5, 1e-4  # what the two forms may differ by


def adapted(model, tmp_path):
    """The model with LoRA and a trained projector, both moved away from their start."""
    for name in ("pairs.jsonl", "model"):
        (tmp_path / name).touch()
    args = SpeechDPOConfig(
        output_dir=str(tmp_path / "x"),
        model=str(tmp_path / "model"),
        train_pairs=str(tmp_path / "pairs.jsonl"),
        precision="float32",
    )
    model.requires_grad_(False)
    peft = get_peft_model(model, lora_config(model, args, projector=True))
    torch.manual_seed(1)
    for p in peft.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    return peft.train()


def batch_of(processor, clips=CLIPS, captions=CAPTIONS, cached=None):
    """A batch of the collator; `cached`: a model whose pooled frames stand in the batch, not samples."""
    around = ClipInputs(processor).around()
    rows = []
    for clip, (chosen, rejected) in zip(clips, captions):
        count = processor.num_audio_tokens(len(clip))
        row = {"prompt_ids": [*around[0], *[processor.audio_token_id] * count, *around[1]], "samples": clip}
        if cached is not None:
            with torch.no_grad():
                row["frames"] = cached.model.encode_audio(**processor.features([clip])).frames[0]
        row["chosen_ids"] = response_ids(processor.tokenizer, chosen, 64)
        row["rejected_ids"] = response_ids(processor.tokenizer, rejected, 64)
        rows.append(row)
    return PreferenceCollator(processor)(rows)


def read(model, batch, shared):
    """The fields of trl's forward, with packed rows or plain ones."""
    score_responses(model.get_base_model(), shared)
    inputs = {k: v for k, v in batch.items() if k != "completion_mask"}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORE)
    return model(**inputs, labels=labels, fused_lm_head=True, use_cache=False)


def scored(model, batch, shared):
    """These fields, DPO's and SFT's loss, and the gradients."""
    output = read(model, batch, shared)
    chosen, rejected = output.log_probs.sum(1).chunk(2)
    loss = -F.logsigmoid(0.3 * (chosen - rejected)).mean() - 0.2 * chosen.mean()
    model.zero_grad()
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return output, loss.detach(), gradients


def agree(model, batch):
    plain, loss, gradients = scored(model, batch, shared=False)
    packed, packed_loss, packed_gradients = scored(model, batch, shared=True)
    for name in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(packed[name], plain[name], atol=1e-4, rtol=1e-5)
    assert torch.equal(packed.label_mask, plain.label_mask) and torch.equal(packed.is_top1, plain.is_top1)
    assert packed_loss.item() == pytest.approx(loss.item(), abs=LOSS)
    assert gradients.keys() == packed_gradients.keys()
    assert any("projector" in n for n in gradients) and any("lora_A" in n for n in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=GRADIENTS, rtol=GRADIENTS)
    assert max(g.abs().max() for g in gradients.values()) > 1e-2  # or nothing would be compared


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_packed_pairs_equal_plain_rows_in_every_family(name, attention, tmp_path):
    from transformers import WhisperFeatureExtractor

    llm, tokenizer = load_llm(save_family(name, tmp_path / "llm"))
    torch.manual_seed(0)
    model, processor = assemble(
        make_whisper().encoder, WhisperFeatureExtractor(), llm, tokenizer,
        encoder_layer=2, projector_hidden=24, projector_dropout=0.0,
    )  # fmt: skip
    model.model.language_model.set_attn_implementation(attention)
    assert model.model.language_model.config._attn_implementation == attention
    assert why_not_packed(model.model.language_model) is None
    agree(adapted(model, tmp_path), batch_of(processor))


@pytest.mark.parametrize("cached", [True, False])
def test_a_model_with_word_tokens_scores_alike_in_both_forms(cached, tmp_path):
    words = {"speakers": ["woman", "man"], "emotions": ["angry", "calm"]}
    model, processor = make_model(encoder_layer="mix", projector_dropout=0.0, **words)
    batch = batch_of(processor, cached=model if cached else None)
    assert ("audio_frames" in batch) == cached
    agree(adapted(model, tmp_path), batch)


def test_the_adapter_off_is_the_reference_in_both_forms(tmp_path):
    model, processor = make_model(projector_dropout=0.0)
    model, batch = adapted(model, tmp_path), batch_of(processor)
    with torch.no_grad():
        on = read(model, batch, shared=True).log_probs
        with model.disable_adapter():
            packed, plain = (read(model, batch, shared).log_probs for shared in (True, False))
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-5)
    assert (packed - on).abs().max() > 1e-2


@torch.no_grad()
def test_dropout_makes_the_forms_differ_by_chance_alone(tmp_path):
    model, processor = make_model(projector_dropout=0.5)
    model, batch = adapted(model, tmp_path), batch_of(processor)
    draws = torch.tensor(
        [[read(model, batch, shared).log_probs.sum() for _ in range(60)] for shared in (True, False)]
    )
    error = (draws.var(1) / 60).sum().sqrt()
    assert error > 1e-3  # dropout is on
    assert abs(draws[0].mean() - draws[1].mean()) < 4 * error


def test_the_language_model_reads_each_prompt_once(tmp_path):
    model, processor = make_model(projector_dropout=0.0)
    batch = batch_of(processor)
    shapes = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    model = adapted(model, tmp_path)
    read(model, batch, shared=True)
    chosen, rejected = batch["completion_mask"].sum(1).chunk(2)
    prompts = batch["attention_mask"].sum(1)[:3] - chosen
    assert shapes == [(3, int((prompts + chosen + rejected).max()))]
    read(model, batch, shared=False)
    assert shapes[1] == tuple(batch["input_ids"].shape)


def test_packed_rows_are_the_drawn_ones():
    ids = torch.tensor([[5, 6, 4, 7, 8], [0, 5, 4, 3, 0], [5, 6, 4, 9, 0], [0, 5, 4, 1, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    labels = ids.masked_fill(mask == 0, IGNORE).index_fill(1, torch.tensor([0, 1, 2]), IGNORE)
    layout = pack_pairs(ids, mask, labels)
    assert layout.inputs["input_ids"].tolist() == [[5, 6, 4, 7, 8, 9], [5, 4, 3, 1, 2, 0]]
    positions = layout.inputs["position_ids"].tolist()
    assert positions[0] == [0, 1, 2, 3, 4, 3] and positions[1][:5] == [0, 1, 2, 2, 3]
    seen = layout.inputs["attention_mask"][:, 0].int().tolist()
    assert seen[0][5] == [1, 1, 1, 0, 0, 1] and seen[0][4] == [1, 1, 1, 1, 1, 0]
    assert seen[1][4] == [1, 1, 0, 1, 1, 0] and seen[1][5] == [1, 1, 0, 0, 0, 1]
    assert layout.keep.int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0]]
    assert layout.which.tolist() == [0, 1, 2, 0, 2, 3]  # 7, 8, 3, then 9, 1, 2


def test_a_caption_of_no_token_at_all_is_taken():
    ids, mask = torch.tensor([[5, 7], [5, 0]]), torch.tensor([[1, 1], [1, 0]])
    layout = pack_pairs(ids, mask, torch.tensor([[IGNORE, 7], [IGNORE, IGNORE]]))
    assert layout.inputs["input_ids"].tolist() == [[5, 7]] and layout.which.tolist() == [0]
    assert plain_rows(ids, mask, torch.tensor([[IGNORE, 7], [IGNORE, IGNORE]])).which.tolist() == [0]


@pytest.mark.parametrize("kind", ["window", "attention", "alibi"])
def test_a_language_model_that_cannot_take_the_mask_says_why(kind, tmp_path):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    llm, _ = load_llm(save_family("qwen2", tmp_path / "llm"))
    assert why_not_packed(llm) is None
    if kind == "window":
        size = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        llm = Gemma3ForCausalLM(
            Gemma3TextConfig(vocab_size=200, intermediate_size=64, num_hidden_layers=1, **size)
        )
        assert "sliding_attention" in why_not_packed(llm)
    elif kind == "attention":
        llm.config._attn_implementation = "flash_attention_2"
        assert "flash_attention_2" in why_not_packed(llm)
    else:
        llm.config.alibi = True
        assert "ALiBi" in why_not_packed(llm)
