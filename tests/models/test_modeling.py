from unittest.mock import Mock

import pytest
import torch
from peft import PeftModel
from tiny import make_llm, make_model, make_tokenizer, make_whisper, voice, with_adapters
from transformers import AutoModelForCausalLM, AutoProcessor

from aligncap.models.checkpoints import load_checkpoint
from aligncap.models.encoders import encode_frames, pool_frames
from aligncap.models.merge import merge
from aligncap.utils.errors import UserError

CLIPS = [voice(1.31, 150), voice(2.7, 220), voice(0.5, 100)]


def words(model, processor, logits):
    return logits[..., : processor.audio_token_id]


@pytest.mark.parametrize("layer", ["last", "mix", 0, 2])
def test_a_batch_gives_the_logits_of_its_single_clips(layer):
    model, processor = make_model(encoder_layer=layer)
    with torch.no_grad():
        batch = model(**processor.captioning_inputs(CLIPS)).logits
        for row, clip in zip(batch, CLIPS):
            single = model(**processor.captioning_inputs([clip])).logits[0]
            torch.testing.assert_close(
                words(model, processor, row[-len(single) :]),
                words(model, processor, single),
                atol=1e-4,
                rtol=1e-4,
            )


def test_batched_decoding_equals_single_decoding(tiny):
    model, processor = tiny
    for options in ({}, {"num_beams": 3}):
        inputs = processor.captioning_inputs(CLIPS)
        batch = model.generate(**inputs, max_new_tokens=10, **options)[:, inputs["input_ids"].shape[1] :]
        for row, clip in zip(batch, CLIPS):
            one = processor.captioning_inputs([clip])
            single = model.generate(**one, max_new_tokens=10, **options)[0, one["input_ids"].shape[1] :]
            assert row[: len(single)].tolist() == single.tolist()


def test_the_encoder_equals_the_stock_encoder_at_thirty_seconds(tiny):
    model, _ = tiny
    encoder = model.model.audio_tower
    mel = torch.randn(2, 80, 3000)
    with torch.no_grad():
        stock = encoder(mel).last_hidden_state
        ours, mask = encode_frames(encoder, mel, torch.ones(2, 3000), "last")
    assert mask.all()
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-4)


def test_a_short_clip_costs_a_short_pass(tiny):
    _, processor = tiny
    assert (
        processor.features([voice(2.0)])["input_features"].shape[-1] == 300
    )  # two seconds and one of silence


def test_pooling_averages_only_frames_that_exist():
    frames = torch.tensor([[[1.0], [3.0], [5.0], [99.0]]])
    pooled, mask = pool_frames(frames, torch.tensor([[True, True, True, False]]), 2)
    assert pooled.flatten().tolist() == [2.0, 5.0] and mask.all()


def test_the_placeholder_is_never_generated(tiny):
    model, processor = tiny
    inputs = processor.captioning_inputs(CLIPS)
    torch.manual_seed(0)
    made = model.generate(
        **inputs, do_sample=True, temperature=100.0, top_k=0, num_return_sequences=8, max_new_tokens=40
    )
    assert (made[:, inputs["input_ids"].shape[1] :] < processor.audio_token_id).all()


def test_the_audio_changes_the_answer(tiny):
    model, processor = tiny
    with torch.no_grad():
        logits = [model(**processor.captioning_inputs([voice(1.0, f0)])).logits[0, -1] for f0 in (100, 300)]
    assert (logits[0] - logits[1]).abs()[: processor.audio_token_id].max() > 1e-3


def test_placeholders_and_audio_must_match_in_number(tiny):
    model, processor = tiny
    inputs = processor.captioning_inputs(CLIPS[:1])
    first = int((inputs["input_ids"][0] == processor.audio_token_id).nonzero()[0])
    cut = {
        k: torch.cat([inputs[k][:, :first], inputs[k][:, first + 1 :]], 1)
        for k in ("input_ids", "attention_mask")
    }
    with pytest.raises(ValueError, match="differ in number"):
        model(**{**inputs, **cut})
    with pytest.raises(ValueError, match="no audio was given"):
        model(input_ids=inputs["input_ids"])


def test_clips_beyond_the_limit_are_refused_with_the_remedy(tiny):
    with pytest.raises(UserError, match="cut it into utterances"):
        tiny[1].captioning_inputs([voice(29.5)])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_saved_and_loaded_models_are_equal(tmp_path, tied, chat):
    model, processor = make_model(tied=tied, chat=chat)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = AutoModelForCausalLM.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    assert reader.prompt == processor.prompt
    inputs = reader.captioning_inputs(CLIPS)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again.eval()(**inputs).logits)


def test_adapters_survive_saving_and_merging(tmp_path, manifest):
    from aligncap.training.sft import SpeechSFTConfig

    model, processor = make_model()
    model.save_pretrained(tmp_path / "run/base")
    processor.save_pretrained(tmp_path / "run/base")
    args = SpeechSFTConfig(output_dir=str(tmp_path / "run"), train_manifest=str(manifest))
    adapted = with_adapters(model, args, projector=True)
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    adapted.eval().save_pretrained(tmp_path / "run")
    inputs = processor.captioning_inputs(CLIPS)
    with torch.no_grad():
        wanted = adapted(**inputs).logits
        loaded, _ = load_checkpoint(tmp_path / "run")
        assert isinstance(loaded, PeftModel)
        torch.testing.assert_close(loaded(**inputs).logits, wanted)
        (tmp_path / "run/calibration.json").write_text("{}")
        merged, _ = load_checkpoint(merge(tmp_path / "run", tmp_path / "merged"))
        assert (tmp_path / "merged/calibration.json").read_text() == "{}"
        torch.testing.assert_close(merged(**inputs).logits, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="not empty"):
        merge(tmp_path / "run", tmp_path / "merged")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("aligncap.models.merge.write_provenance", Mock(side_effect=KeyboardInterrupt))
        merge(tmp_path / "run", tmp_path / "stopped")
    assert not (tmp_path / "stopped").exists()


def test_only_the_language_model_is_adapted(manifest, tmp_path):
    from aligncap.training.sft import SpeechSFTConfig

    model, _ = make_model()
    args = SpeechSFTConfig(output_dir=str(tmp_path), train_manifest=str(manifest))
    names = [n for n, p in with_adapters(model, args, projector=True).named_parameters() if "lora" in n]
    assert names and all("language_model" in n for n in names)


def test_a_checkpoint_of_another_architecture_is_refused(parts, tmp_path):
    with pytest.raises(UserError, match="model_type is 'llama'"):
        load_checkpoint(parts["llm"])
    with pytest.raises(UserError, match="no such folder"):
        load_checkpoint(tmp_path / "nothing")


def test_families_whose_head_is_more_than_a_matrix_are_refused():
    from tiny import make_tokenizer, make_whisper
    from transformers import PhiConfig, PhiForCausalLM, WhisperFeatureExtractor

    from aligncap.models.build import assemble

    tokenizer = make_tokenizer()
    phi = PhiForCausalLM(
        PhiConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
        )
    )
    with pytest.raises(UserError, match="'phi' bias"):
        assemble(make_whisper().encoder, WhisperFeatureExtractor(), phi, tokenizer)


@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen2"])
def test_other_families_keep_their_logits_and_batch_like_singles(family):
    import transformers
    from tiny import make_tokenizer, make_whisper

    from aligncap.models.build import assemble

    torch.manual_seed(0)
    tokenizer = make_tokenizer(chat=False)
    size = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    llm = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4)
        ),
        "opt": lambda: transformers.OPTForCausalLM(
            transformers.OPTConfig(**size, ffn_dim=64, word_embed_proj_dim=32, pad_token_id=1)
        ),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**size, intermediate_size=64, num_key_value_heads=2)
        ),
    }[family]()
    model, processor = assemble(
        make_whisper().encoder, transformers.WhisperFeatureExtractor(), llm, tokenizer, encoder_layer=1
    )
    with torch.no_grad():
        batch = model(**processor.captioning_inputs(CLIPS)).logits
        single = model(**processor.captioning_inputs(CLIPS[:1])).logits[0]
    torch.testing.assert_close(
        words(model, processor, batch[0, -len(single) :]),
        words(model, processor, single),
        atol=1e-4,
        rtol=1e-4,
    )


def test_the_teacher_is_one_whatever_the_seed():
    from transformers import WhisperFeatureExtractor

    from aligncap.models.build import assemble
    from aligncap.utils.tensor_cache import fingerprint

    marks = set()
    for seed in (0, 1):
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        llm, whisper = make_llm(len(tokenizer)), make_whisper()
        torch.manual_seed(seed)
        model, _ = assemble(whisper.encoder, WhisperFeatureExtractor(), llm, tokenizer)
        marks.add(fingerprint(model.model.language_model))
    assert len(marks) == 1
