"""Load and merge AlignCap checkpoints: whole folders, and adapters with the base they stand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from aligncap.data.provenance import checkpoint_provenance, write_provenance
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.encoders import layer_index
from aligncap.models.hub import resolve
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration, make_projector
from aligncap.models.processing_aligncap import AUDIO_TOKEN, CUES_MARK, SPEAKER_TOKEN, AlignCapProcessor
from aligncap.text.prompts import end_token_id, speaker_words, student_prompt
from aligncap.utils.errors import UserError
from aligncap.utils.io import workplace
from aligncap.utils.run_record import write_run_record


def check_architecture(folder: str | Path, wanted: str) -> None:
    """Refuse a checkpoint folder of another architecture before anything heavy is loaded.

    Raises:
        UserError: `folder` has no config.json, or its model_type is not `wanted`.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        hint = (
            "; it is an adapter: run `aligncap merge` first"
            if (Path(folder) / "adapter_config.json").is_file()
            else ""
        )
        raise UserError(f"{folder}: no config.json here, so no {wanted} checkpoint{hint}")
    found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    if found != wanted:
        raise UserError(
            f"{path}: model_type is {found!r}, {wanted!r} is needed; "
            "give the folder of an AlignCap checkpoint"
        )


def load_llm(name: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Any]:
    """A causal LM and its tokenizer, by name or folder; a missing padding token becomes end-of-text."""
    folder = resolve(name)
    config = AutoConfig.from_pretrained(folder) if (folder / "config.json").is_file() else None
    if config is None or config.is_encoder_decoder or config.model_type in ("aligncap", "whisper"):
        kind = "none" if config is None else config.model_type
        raise UserError(f"{folder}: model_type is {kind!r}; the language model must be a causal LM")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no end-of-text token, which the loss needs")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    without_dropout(config)
    llm = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype)
    if getattr(llm, "_is_stateful", False):
        raise UserError(
            f"{folder}: language models of type {config.model_type!r} keep a running state, which reads "
            "padding too; choose one with attention alone, such as llama, qwen2, gpt2 or opt"
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


def assemble(
    audio_tower: Any,
    feature_extractor: Any,
    llm: Any,
    tokenizer: Any,
    *,
    show_cues: bool = False,
    **options: Any,
) -> tuple[AlignCapForConditionalGeneration, AlignCapProcessor]:
    """Put parts in hand together; `options` are fields of `AlignCapConfig`, `show_cues` is the processor's.

    Returns:
        model: AlignCapForConditionalGeneration with the parts' weights and a fresh projector (torch's RNG);
        processor: AlignCapProcessor with the student's prompt.
    """
    layer_index(options.get("encoder_layer", "last"), len(audio_tower.layers))
    # Added to the tokenizer's own extra tokens: in place of them, a turn's mark would count as a plain word.
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AUDIO_TOKEN, SPEAKER_TOKEN]}, replace_extra_special_tokens=False
    )
    audio_token_id, last_id = tokenizer.convert_tokens_to_ids([AUDIO_TOKEN, SPEAKER_TOKEN])
    if last_id != audio_token_id + 1:
        raise UserError(f"the tokenizer knows {AUDIO_TOKEN} or {SPEAKER_TOKEN} already; take the plain LLM's")
    embeddings = llm.get_input_embeddings()
    if last_id >= embeddings.num_embeddings:
        llm.resize_token_embeddings(last_id + 1, pad_to_multiple_of=64, mean_resizing=False)
        embeddings = llm.get_input_embeddings()
        # Rows of placeholders are never read. Left random, they would make each seed's teacher another one.
        with torch.no_grad():
            embeddings.weight[audio_token_id:] = 0
            llm.get_output_embeddings().weight[audio_token_id:] = 0
    positions = audio_tower.config.max_source_positions * 0.02
    margin = options.get("margin_seconds", 1.0)
    options["max_seconds"] = min(options.get("max_seconds", 29.0), positions - margin)
    config = AlignCapConfig(
        audio_config=audio_tower.config,
        text_config=llm.config,
        audio_token_id=audio_token_id,
        tie_word_embeddings=llm.get_output_embeddings().weight is embeddings.weight,
        **{k: getattr(tokenizer, k) for k in ("pad_token_id", "bos_token_id", "eos_token_id")},
        **options,
    )
    with torch.device("meta"):
        model = AlignCapForConditionalGeneration(config)
    model.model.audio_tower = audio_tower
    model.model.language_model = llm.base_model
    model.lm_head = llm.get_output_embeddings()
    model.model.multi_modal_projector = make_projector(config, embeddings.embedding_dim)
    if config.speaker_relative:
        ids = [tokenizer(" " + word, add_special_tokens=False)["input_ids"] for word in speaker_words()]
        vectors = torch.stack([embeddings.weight.detach()[row].float().mean(0) for row in ids])
        model.model.multi_modal_projector.speaker_words.copy_(vectors)
    model.tie_weights()
    _check_head(model, llm, audio_token_id)
    left = [name for name, p in model.named_parameters() if p.is_meta]
    if left:
        raise RuntimeError(f"parameters without weights: {left}")
    model.generation_config = GenerationConfig(
        eos_token_id=list(dict.fromkeys([end_token_id(tokenizer), tokenizer.eos_token_id])),
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=64,
        do_sample=False,
    )
    processor = AlignCapProcessor(
        feature_extractor,
        tokenizer,
        prompt=student_prompt(
            tokenizer,
            AUDIO_TOKEN,
            speaker=SPEAKER_TOKEN if config.speaker_relative else None,
            cues=CUES_MARK if show_cues else None,
        ),
        show_cues=show_cues,
        **{
            k: getattr(config, k)
            for k in (
                "pool_size",
                "stack_size",
                "summary_token",
                "speaker_relative",
                "margin_seconds",
                "max_seconds",
            )
        },
    )
    return model.eval(), processor


@torch.no_grad()
def embedding_rms(table: torch.nn.Module) -> float:
    """Root mean square of what the LLM reads of a token, which is the size that audio tokens should have.

    Not the weights' own where the table scales what it gives (Gemma, by the root of the width).
    """
    weight: torch.Tensor = table.weight  # type: ignore[assignment]
    few = torch.arange(min(64, len(weight)), device=weight.device)
    scale = table(few).float().norm() / weight[few].float().norm()
    return (weight.float().pow(2).mean().sqrt() * scale).item()


@torch.no_grad()
def _check_head(model: Any, llm: Any, limit: int) -> None:
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
            "the head of AlignCap does not; choose another family, such as llama, qwen2, gpt2 or opt"
        )


def build(
    encoder: str, llm: str, **options: Any
) -> tuple[AlignCapForConditionalGeneration, AlignCapProcessor]:
    """Build from names or folders: `build("whisper-base", "smollm2-135m-instruct", encoder_layer=4)`.

    Raises:
        UserError: a name cannot be found, or `encoder` is not a Whisper.
    """
    folder = resolve(encoder)
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind != "whisper":
        raise UserError(f"{folder}: model_type is {kind!r}; speech encoders are Whisper models of any size")
    audio_tower = AutoModel.from_pretrained(folder, dtype=torch.float32).encoder
    audio_tower.requires_grad_(False)
    language_model, tokenizer = load_llm(llm)
    return assemble(
        audio_tower, AutoFeatureExtractor.from_pretrained(folder), language_model, tokenizer, **options
    )


def load_folder(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[AlignCapForConditionalGeneration, AlignCapProcessor]:
    """A whole checkpoint (merged, or a run's `base/`)."""
    check_architecture(folder, "aligncap")
    model = AlignCapForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    return model.eval(), AlignCapProcessor.from_pretrained(folder)


def base_of(folder: Path) -> Path:
    """The base of an adapter folder: `base/` in it (beside it for a checkpoint), else the one recorded."""
    places = [folder / "base"]
    if folder.name.startswith("checkpoint-"):
        places.append(folder.parent / "base")
    for candidate in places:
        if (candidate / "config.json").is_file():
            return candidate
    recorded = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get(
        "base_model_name_or_path"
    )
    if recorded and (Path(recorded) / "config.json").is_file():
        return Path(recorded)
    raise UserError(f"{folder}: the base model of this adapter is missing; expected {folder / 'base'}")


def load_checkpoint(
    folder: str | Path, dtype: torch.dtype = torch.float32, *, trainable: bool = False
) -> tuple[AlignCapForConditionalGeneration | PeftModel, AlignCapProcessor]:
    """A whole checkpoint, or an adapter on its base.

    Raises:
        UserError: the folder is missing, or of another architecture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a trained model")
    if not (folder / "adapter_config.json").is_file():
        return load_folder(folder, dtype)
    base = base_of(folder)
    model, processor = load_folder(base, dtype)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable).eval(), processor


def model_key(folder: str | Path) -> str:
    """What identifies a checkpoint's weights on this machine: path, size and time of its weight files.

    An adapter's are those of its base too.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "adapter_config.json").is_file():
        files += sorted(base_of(folder).glob("*.safetensors"))
    return "|".join(f"{f.resolve()}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)


def save_whole(model: Any, folder: str | Path) -> None:
    """Save weights, and config.json last: a folder that has it is complete, whenever a run is killed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with workplace(folder / "weights") as temporary:
        model.save_pretrained(temporary)
        for path in sorted(temporary.iterdir(), key=lambda p: p.name == "config.json"):
            path.replace(folder / path.name)


def merge(folder: str | Path, out: str | Path) -> Path:
    """Fold an adapter into its base and save one folder that loads with `from_pretrained`.

    Raises:
        UserError: `folder` holds no adapter, or `out` exists and is not empty.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: no adapter here (adapter_config.json); give the output_dir of a training run"
        )
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: exists and is not empty; choose another --out")
    model: Any
    model, processor = load_checkpoint(folder)
    processor.save_pretrained(out)
    save_whole(model.merge_and_unload(), out)
    write_provenance(out, checkpoint_provenance(folder))
    write_run_record(out, "merge", {"checkpoint": str(folder)}, [folder / "adapter_model.safetensors"])
    return out
