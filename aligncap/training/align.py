"""The student before decoding is trained, and `train align`: its parts, a projector that fits them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, cast

from safetensors.torch import load_file
from transformers import GenerationConfig, set_seed

from aligncap.data.columns import columns_of
from aligncap.data.manifest import Utterance
from aligncap.models.build import Loaded, build, prompt_of_student
from aligncap.models.checkpoints import base_of, is_adapter, load_folder, model_key, save_base
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.models.quantise import quantise
from aligncap.text.lexicon import is_chinese
from aligncap.text.prompts import Language, speaker_words
from aligncap.training.adapters import check_adapter, lora_config
from aligncap.training.alignment import align
from aligncap.training.caches import MOST
from aligncap.training.clips import Clips, read_clips
from aligncap.training.config import SHAPE, StudentConfig
from aligncap.training.data import CaptionRows, ClipInputs, cached_inputs, features_size, keeps_features
from aligncap.training.resume import Run, begin, record_run
from aligncap.training.sharding import place
from aligncap.training.words import emotions_of
from aligncap.utils.errors import UserError
from aligncap.utils.io import file_sha256, write_json, write_jsonl
from aligncap.utils.tensor_cache import digest

_log = logging.getLogger(__name__)
PROJECTOR = "multi_modal_projector."
FIT_CLIPS = 8192  # that the projector is fitted to before decoding, drawn at random where there are more
MARK = "made_of.json"  # in the folder of a student that is whole: what it was made of


_USED = (
    *SHAPE,
    *"align_by align_learning_rate align_steps augment balance cache_dir feature_cache llm".split(),
    *"max_response_tokens output_dir resume_from_checkpoint seed start train_manifest use_cpu".split(),
    *("debug", "include_num_input_tokens_seen"),  # the parser changes their defaults
)


@dataclass
class AlignConfig(StudentConfig):
    """The projector alone, drawn to text before decoding; no LLM is run.

    The student is saved in `OUTPUT_DIR/base`: with `--align_by contrastive` it is CL-Align, with
    `--align_steps 0` the untrained student.

    Examples:
        aligncap train align --config align-contrastive
        aligncap train align --llm runs/teacher --train_manifest data/train.jsonl --align_steps 0 \\
            --output_dir runs/untrained
        aligncap caption --model runs/untrained/base clip.wav
        aligncap train align --start runs/english --train_manifest chinese.jsonl --output_dir runs/aligned
    """

    IDLE: ClassVar[dict[str, str]] = {f.name: "" for f in fields(StudentConfig) if f.name not in _USED}


def run_align(config: AlignConfig) -> int:
    """The student with its projector aligned and nothing else trained, saved in `output_dir`/base."""
    run = begin("train align", config)
    manifests = [read_clips(path, p_act=config.align_steps > 0, group=run.group) for path in run.manifests]
    make_student(run, config, manifests)
    record_run(run, manifests)
    return run.done()


@dataclass(frozen=True)
class Student:
    """A student before decoding is trained, the rows of each manifest, and what it reads of their clips."""

    model: Any
    processor: AlignCapProcessor
    rows: list[CaptionRows]
    inputs: ClipInputs


def make_student(
    run: Run, config: StudentConfig, manifests: Sequence[Clips], *, use_p_act: bool = True
) -> Student:
    """The student of `run.out`/base, which is made once: its parts, its projector fitted and aligned.

    Processes share the encoding of speech; the rest takes seconds and is the first one's.

    Args:
        manifests: what is learnt from, first, and what is evaluated on.

    Raises:
        UserError: the folder holds a student of other options or data; a part cannot be had.
        UserErrors: texts or sound files that cannot be used.
    """
    options, aligning = config.model_options(), config.align_options()
    language = student_language(manifests[0].utterances)
    if language != "en":  # the key of students that were made before is that of English
        options |= {"language": language}
        options |= {"speakers": speaker_words(language)} if config.speaker_token else {}
    folder, group, llm = run.out / "base", run.group, config.llm
    if config.emotion_token and not config.start:
        options["emotions"] = emotions_of(manifests[0].utterances)
    parts: dict[str, Any] = {"encoder": config.encoder, "llm": llm, "options": options, "align": aligning}
    named: dict[str, str | Path] = {"encoder": config.encoder, "llm": llm}
    if config.start:
        named = {"student": _without_adapter(config.start)}
        parts = {"start": model_key(config.start), "align": aligning, "limit": config.max_response_tokens}
    clips = [manifests[0].balanced() if config.balance else manifests[0], *manifests[1:]]
    made_of = digest(
        parts | {"balance": config.balance, "augment": config.augment},
        file_sha256(manifests[0].manifest),
        model_key(llm) if Path(llm).is_dir() else None,
    )
    made = group.first((folder / MARK).is_file())
    if not made:
        set_seed(config.seed)
        model, processor = (
            load_start(config, language) if config.start else build(config.encoder, llm, **options)
        )
    elif json.loads((folder / MARK).read_text(encoding="utf-8"))["digest"] == made_of:
        model, processor = load_folder(folder)
    else:
        raise UserError(
            f"{folder}: was made with other options or data; "
            "resume with the same, or choose another output_dir"
        )
    if not isinstance(config, AlignConfig):  # what cannot be is refused before anything long
        adapter = lora_config(model, config, projector=True)
        if config.start:
            check_adapter(adapter, config.start)
    limit = config.max_response_tokens
    rows = [
        CaptionRows.of(part, processor.tokenizer, max_response_tokens=limit, use_p_act=use_p_act)
        for part in clips
    ]
    place(model, run.device, run.sharded)
    learns = bool(getattr(config, "encoder_lora", 0) or getattr(config, "encoder_tuned", 0))
    keep = not learns and keeps_features(config.feature_cache, model, manifests, config.augment)
    inputs = ClipInputs(processor, augment=config.augment)
    fitted = clips[0].at_most(fit_clips(model, clips[0], config.augment), config.seed)
    if keep or not made:
        encoded = manifests if keep else [fitted]
        inputs = cached_inputs(model, processor, encoded, run.cache, group=group, augment=config.augment)
    if not made:
        if group.rank == 0:
            fresh, losses = not config.start, list[float]()
            if fresh or isinstance(config, AlignConfig):
                losses = align(model, inputs, fitted, fresh=fresh, **aligning)
            if losses:
                log = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
                write_jsonl(run.out / "align.jsonl", log)
            processor.save_pretrained(folder)
            save_base(model, folder, **named)
            write_json(folder / MARK, {"digest": made_of})  # last: a folder without it was not finished
        group.gather(None)
        del model
        # From the folder: to the last bit what a resumed run starts from.
        model = place(load_folder(folder)[0], run.device, run.sharded)
    if keep:
        model.leave_out_encoder()
    quantise(model, model.model.language_model, config.llm_weights)
    return Student(model, processor, rows, inputs if keep else inputs.live())


def fit_clips(model: AlignCapForConditionalGeneration, clips: Clips, augment: bool) -> int:
    """Clips that the projector is fitted to: `FIT_CLIPS`, or those whose frames `MOST` bytes hold."""
    size = features_size(model, clips, augment)
    return max(1, min(FIT_CLIPS, int(len(clips.paths) * MOST / max(size, 1.0))))


def student_language(utterances: Sequence[Utterance]) -> Language:
    """In which language the student is asked: that of most descriptions; where there are only answers to
    instructions, which have their own wording, Chinese if all answers are."""
    columns = columns_of(utterances)
    if described := int(columns.described.sum()):
        return "zh" if 2 * int(columns.chinese.sum()) > described else "en"
    return "zh" if all(is_chinese(caption) for u in utterances for caption in u.captions) else "en"


def _without_adapter(start: str | Path) -> Path:
    """The folder of the student that `start` stands on, or is."""
    return base_of(Path(start)) if is_adapter(start) else Path(start)


def load_start(config: StudentConfig, language: Language) -> Loaded:
    """The student that `config.start` goes on from: of an adapter its base, with the projector trained on it.

    It is asked in the language of the captions.

    Raises:
        UserError: the folder holds no student, or a projector that does not fit its base.
    """
    start = Path(str(config.start))
    model, processor = load_folder(_without_adapter(start))
    if is_adapter(start):
        saved = load_file(start / "adapter_model.safetensors")
        if isinstance(config, AlignConfig) and any("audio_tower." in name for name in saved):
            remedy = "align the merged model (`aligncap merge`)"
            raise UserError(f"{start}: its encoder was trained too, in its adapter; {remedy}")
        own = {name.rpartition(PROJECTOR)[2]: tensor for name, tensor in saved.items() if PROJECTOR in name}
        try:
            if own:
                model.model.multi_modal_projector.load_state_dict(own)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise UserError(f"{start}: its projector does not fit its base: {reason}") from error
    if processor.language != language:
        speakers, cues = bool(model.config.speakers), processor.show_cues
        processor.language = language
        processor.prompt = prompt_of_student(processor.tokenizer, speakers, cues, language)
    model.config.max_response_tokens = config.max_response_tokens
    cast(GenerationConfig, model.generation_config).max_new_tokens = config.max_response_tokens
    _log.info("%s: goes on with its encoder, projector and LLM; llm=%s is not read", start, config.llm)
    return model, processor
