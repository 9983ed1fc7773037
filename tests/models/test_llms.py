"""Which language models are taken, and what is made of them: no dropout, marks kept, a fixed date."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny import make_tokenizer, make_whisper, voice
from tiny_families import FAMILIES, save_family

from aligncap.models.build import assemble, build, embedding_rms, load_llm
from aligncap.text.prompts import student_prompt, teacher_prompt
from aligncap.utils.errors import UserError, UserErrors

CLIPS = [voice(1.31, 150), voice(0.5, 100)]


@pytest.mark.parametrize("mark", ["<|im_start|>", "<|im_end|>", "<|audio|>"])
def test_a_caption_with_a_turns_mark_is_refused(mark, parts, tmp_path):
    from aligncap.training.responses import refuse_special_tokens

    _, processor = build(parts["encoder"], save_family("qwen2", tmp_path / "llm"), encoder_layer=1)
    with pytest.raises(UserErrors, match="control token"):
        refuse_special_tokens("m.jsonl", [(1, "a", [f"He sounds {mark} calm."])], processor.tokenizer)


def test_the_prompt_of_a_template_with_the_date_is_the_same_every_day(tmp_path):
    _, tokenizer = load_llm(save_family("llama-instruct", tmp_path / "llm"))
    assert "Today Date: 26 Jul 2024" in student_prompt(tokenizer, "<|audio|>")
    assert "Today Date: 26 Jul 2024" in teacher_prompt(tokenizer, None, "Voice: angry.")


def test_audio_tokens_get_the_size_of_what_the_llm_reads():
    """Gemma's table multiplies its weights by the root of the width."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    gemma = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=200, intermediate_size=64, head_dim=8, **size))
    for model in (gemma, FAMILIES["opt"].make()[0]):
        table = model.get_input_embeddings()
        read = table(torch.arange(table.num_embeddings)).detach()
        assert embedding_rms(table) == pytest.approx(read.pow(2).mean().sqrt().item(), rel=1e-5)


def test_a_language_model_with_a_running_state_is_refused(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    _, tokenizer = FAMILIES["gpt2"].make()
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'mamba' keep a running state.*choose"):
        load_llm(str(tmp_path))


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_the_llm_comes_without_dropout(name, tmp_path):
    model, _ = load_llm(save_family(name, tmp_path / "llm"))
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


def assembled(name: str, **options):
    """A student around a tiny model of another family, and its processor."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(chat=False)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1}
    kind = getattr(transformers, f"{name}ForCausalLM")
    llm = kind(kind.config_class(vocab_size=len(tokenizer), **size, **options))
    return assemble(
        make_whisper().encoder, transformers.WhisperFeatureExtractor(), llm, tokenizer, encoder_layer=1
    )


GROUPED = {"num_key_value_heads": 2, "intermediate_size": 64}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Qwen3", GROUPED | {"head_dim": 8}),
        ("Mistral", GROUPED),
        ("SmolLM3", GROUPED),
        ("Olmo2", GROUPED),
        ("StableLm", GROUPED),
        ("Phi3", GROUPED),
        ("Gemma", GROUPED | {"head_dim": 8}),
        ("Gemma3", GROUPED | {"head_dim": 8}),
        ("GPTNeoX", {"intermediate_size": 64}),
        ("Falcon", {}),
        ("Bloom", {}),
    ],
)
def test_these_are_accepted_and_have_layers_to_adapt(name, options):
    from aligncap.training.adapters import lora_targets

    model, processor = assembled(name, **options)
    assert lora_targets(model.model.language_model, "auto")
    with torch.no_grad():
        batch = model(**processor.captioning_inputs(CLIPS)).logits
        alone = model(**processor.captioning_inputs(CLIPS[:1])).logits[0]
    torch.testing.assert_close(batch[0, -len(alone) :], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Gemma2", GROUPED | {"head_dim": 8}),
        ("Granite", GROUPED | {"logits_scaling": 4.0}),
        ("Cohere", GROUPED),
        ("Phi", {"intermediate_size": 64}),
        ("GPTJ", {"rotary_dim": 4}),
    ],
)
def test_these_are_refused_since_their_head_is_more_than_a_matrix(name, options):
    with pytest.raises(UserError, match="bias, scale or cap.*choose another family"):
        assembled(name, **options)
