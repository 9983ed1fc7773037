"""Put a model together from pretrained parts: speech encoder, projector, language model."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2AudioEncoder,
)

from aligncap.audio.files import SAMPLE_RATE
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.encoders import (
    FAMILIES,
    FRAME_SAMPLES,
    FeatureExtractor,
    encoder_of,
    family_of,
    layer_index,
)
from aligncap.models.hub import load_config, load_pretrained, resolve
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.processing_aligncap import AUDIO_TOKEN, CUES_MARK, SPEAKER_TOKEN, AlignCapProcessor
from aligncap.models.projectors import make_projector
from aligncap.text.prompts import Language, end_token_id, student_prompt
from aligncap.utils.errors import UserError

USABLE = "such as llama, qwen2, gpt2 or opt"
LLMS = f"the language model must be a causal LM of text alone, {USABLE}"
ENCODERS = (
    "speech encoders are Whisper, wav2vec 2.0, HuBERT, WavLM, data2vec, w2v-BERT 2.0, "
    "emotion2vec or Qwen2-Audio"
)
Loaded = tuple[AlignCapForConditionalGeneration, AlignCapProcessor]
LLM = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_llm(name: str, dtype: torch.dtype = torch.float32) -> LLM:
    """A causal LM and its tokenizer, by name or folder; a missing padding token becomes end-of-text.

    Raises:
        UserError: no such model, or one that cannot be a captioner's language model.
    """
    folder = resolve(name)
    config = load_config(folder, LLMS)
    kind = config.model_type
    if (
        type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
        or config.is_encoder_decoder
        or config.get_text_config() is not config
        or kind in ("aligncap", *FAMILIES)
    ):
        raise UserError(f"{folder}: model_type is {kind!r}; {LLMS}")
    tokenizer = load_pretrained(AutoTokenizer, folder)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no end-of-text token, which the loss needs")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    without_dropout(config)
    llm = load_pretrained(AutoModelForCausalLM, folder, config=config, dtype=dtype)
    if getattr(llm, "_is_stateful", False):
        raise UserError(
            f"{folder}: language models of type {kind!r} keep a running state, which reads "
            f"padding too; choose one with attention alone, {USABLE}"
        )
    return llm, tokenizer


def without_dropout(config: PreTrainedConfig) -> None:
    """Set the dropout of a language model to zero, as Llama, Qwen and SmolLM have it.

    With it GPT-2 and OPT, as a frozen teacher or reference and as a training student, differ from themselves
    before anything is learnt: DPO would not begin at log 2. LoRA and the projector keep theirs.
    """
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def load_encoder(name: str) -> tuple[PreTrainedModel, FeatureExtractor]:
    """A frozen speech encoder and its feature extractor, by name or folder.

    Of Qwen2-Audio the audio tower is taken, and its weights alone are read.

    Raises:
        UserError: no such model, no speech encoder of a known family, or one that does not read 16 kHz.
    """
    folder = resolve(name)
    config, weights = load_config(folder, ENCODERS), dict[str, Any]()
    if config.model_type == "qwen2_audio":
        config = config.audio_config
        weights = {"config": config, "key_mapping": {r"^(model\.)?audio_tower\.": ""}}
    try:
        family_of(config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    extractor = load_pretrained(AutoFeatureExtractor, folder)
    if wrong := unfit_features(extractor):
        raise UserError(f"{folder}: {wrong}")
    kind = AutoModel if not weights else Qwen2AudioEncoder
    encoder = encoder_of(load_pretrained(kind, folder, dtype=torch.float32, **weights))
    return encoder.eval().requires_grad_(False), extractor


def unfit_features(extractor: FeatureExtractor) -> str:
    """Why a feature extractor does not fit sound at 16 kHz and frames of 20 ms; or nothing."""
    rate, hop = getattr(extractor, "sampling_rate", SAMPLE_RATE), getattr(extractor, "hop_length", 160)
    if rate != SAMPLE_RATE:
        return f"its feature extractor reads {rate} Hz, clips have {SAMPLE_RATE} Hz; choose another encoder"
    if hop != FRAME_SAMPLES // 2:
        return f"its feature extractor has hop_length={hop}, {hop / rate * 1000:.2f} ms; 10 ms are needed"
    return ""


def build(encoder: str, llm: str, **options: Any) -> Loaded:
    """Build from names or folders: `build("whisper-base", "smollm2-135m-instruct", encoder_layer=4)`.

    Raises:
        UserError: a name cannot be found, or a model cannot be used.
    """
    audio_tower, feature_extractor = load_encoder(encoder)
    return assemble(audio_tower, feature_extractor, *load_llm(llm), **options)


def assemble(
    audio_tower: PreTrainedModel,
    feature_extractor: FeatureExtractor,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    show_cues: bool = False,
    language: Language = "en",
    **options: Any,
) -> Loaded:
    """Put parts in hand together; `options` are fields of `AlignCapConfig`, `show_cues` and `language`
    (of the captions, and so of the prompt) are the processor's.

    The tokenizer gets two tokens, for audio and speaker. They are placeholders: their rows of the embeddings
    stay 0 and are never read, since audio tokens take their places, and they are masked out of the logits.

    Returns:
        model: AlignCapForConditionalGeneration with the parts' weights and a fresh projector (torch's RNG);
        processor: AlignCapProcessor with the student's prompt.

    Raises:
        UserError: the encoder has no such layer, or the language model's head or tokenizer does not fit.
    """
    family = family_of(audio_tower.config)
    layer_index(options.get("encoder_layer", "last"), audio_tower.config.num_hidden_layers)
    options = {"margin_seconds": family.margin_seconds} | options
    audio_token_id = add_placeholders(llm, tokenizer)
    embeddings = cast(nn.Embedding, llm.get_input_embeddings())
    head = cast(nn.Linear, llm.get_output_embeddings())
    config = AlignCapConfig(
        audio_config=audio_tower.config,
        text_config=llm.config,
        audio_token_id=audio_token_id,
        tie_word_embeddings=head.weight is embeddings.weight,
        **{k: getattr(tokenizer, k) for k in ("pad_token_id", "bos_token_id", "eos_token_id")},
        **options,
    )
    if family.reads == "log-mel":
        positions = audio_tower.config.max_source_positions * 0.02
        config.max_seconds = min(config.max_seconds, positions - config.margin_seconds)
    model = join(config, audio_tower, llm)
    model.model.multi_modal_projector = make_projector(config, embeddings.embedding_dim)
    projector = model.model.multi_modal_projector
    for token, words in (
        (projector.speaker, config.speakers),
        (projector.emotion, config.emotions),
    ):
        if token is not None:
            ids = [tokenizer(" " + word, add_special_tokens=False)["input_ids"] for word in words]
            vectors = [embeddings.weight.detach()[row].float().mean(0) for row in ids]
            token.words.copy_(torch.stack(vectors))
    _check_head(model, llm, audio_token_id)
    if left := [name for name, p in model.named_parameters() if p.is_meta]:
        raise RuntimeError(f"parameters without weights: {left}")
    model.generation_config = GenerationConfig(
        eos_token_id=list(dict.fromkeys([end_token_id(tokenizer), tokenizer.eos_token_id])),
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=config.max_response_tokens,
        do_sample=False,
    )
    prompt = prompt_of_student(tokenizer, bool(config.speakers), show_cues, language)
    shared = ("pool_size", "stack_size", "clip_tokens", "queries", "margin_seconds", "max_seconds")
    own = {name: getattr(config, name) for name in shared} | {"encoder": audio_tower.config.model_type}
    processor = AlignCapProcessor(
        feature_extractor, tokenizer, prompt=prompt, show_cues=show_cues, language=language, **own
    )
    return model.eval(), processor


def join(
    config: AlignCapConfig, audio_tower: PreTrainedModel, llm: PreTrainedModel
) -> AlignCapForConditionalGeneration:
    """A model of these parts; its projector has no weights yet (torch's meta device)."""
    with torch.device("meta"):
        model = AlignCapForConditionalGeneration(config)
    model.model.audio_tower = audio_tower
    model.model.language_model = llm.base_model
    model.lm_head = cast(nn.Linear, llm.get_output_embeddings())
    model.tie_weights()
    return model


def prompt_of_student(
    tokenizer: PreTrainedTokenizerBase, speakers: bool, show_cues: bool, language: Language
) -> str:
    """The prompt of an `AlignCapProcessor`, with the placeholders that its model needs."""
    speaker, cues = SPEAKER_TOKEN if speakers else None, CUES_MARK if show_cues else None
    return student_prompt(tokenizer, AUDIO_TOKEN, speaker=speaker, cues=cues, language=language)


@torch.no_grad()
def add_placeholders(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Enter the placeholders into the tokenizer and make room for their ids; the audio's id."""
    # Added to the tokenizer's own extra tokens: in place of them, a turn's mark would count as a plain word.
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AUDIO_TOKEN, SPEAKER_TOKEN]}, replace_extra_special_tokens=False
    )
    audio_token_id, last_id = cast(list[int], tokenizer.convert_tokens_to_ids([AUDIO_TOKEN, SPEAKER_TOKEN]))
    if last_id != audio_token_id + 1:
        raise UserError(f"the tokenizer knows {AUDIO_TOKEN} or {SPEAKER_TOKEN} already; take the plain LLM's")
    if last_id >= cast(nn.Embedding, llm.get_input_embeddings()).num_embeddings:
        llm.resize_token_embeddings(last_id + 1, pad_to_multiple_of=64, mean_resizing=False)
        # Rows of placeholders are never read. Left random, they would make each seed's teacher another one.
        for table in (llm.get_input_embeddings(), llm.get_output_embeddings()):
            cast(torch.Tensor, table.weight)[audio_token_id:] = 0
    return audio_token_id


@torch.no_grad()
def embedding_rms(table: nn.Module) -> float:
    """Root mean square of what the LLM reads of a token, which is the size that audio tokens should have.

    Not the weights' own where the table scales what it gives (Gemma, by the root of the width).
    """
    weight: torch.Tensor = table.weight  # type: ignore[assignment]
    few = torch.arange(min(64, len(weight)), device=weight.device)
    scale = table(few).float().norm() / weight[few].float().norm()
    return (weight.float().pow(2).mean().sqrt() * scale).item()


@torch.no_grad()
def _check_head(model: AlignCapForConditionalGeneration, llm: PreTrainedModel, limit: int) -> None:
    """Some families scale, cap or bias their logits outside the head's weight; as a teacher that would be
    another LLM than the one named.

    Raises:
        UserError: the assembled model does not give the LLM's own logits on text.
    """
    ids = torch.arange(4, device=llm.device)[None] % limit
    ours, theirs = (m.eval()(input_ids=ids).logits[..., :limit].float() for m in (model, llm))
    other = not torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3)
    capped = getattr(llm.config, "final_logit_softcapping", None)  # small logits hardly show it
    if llm.get_output_embeddings().bias is not None or capped or other:
        raise UserError(
            f"language models of type {llm.config.model_type!r} bias, scale or cap their logits, which "
            f"the head of AlignCap does not; choose another family, {USABLE}"
        )
