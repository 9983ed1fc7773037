"""Captions from Python: `Captioner.from_pretrained(DIR)("clip.wav")`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import BatchFeature, GenerationConfig

from aligncap.audio import members, speech
from aligncap.audio.files import SAMPLE_RATE, AudioError, load_audio, prepare_samples
from aligncap.inference.confidence import Calibration, Named, first_tokens, named_emotions, spellings
from aligncap.models.checkpoints import load_for_inference
from aligncap.models.context import FEWEST, Kind, chosen_clips, offset
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.precision import pick_device
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.text.coherence import contradictions, repetitions
from aligncap.text.emotions import emotion_of, everyday_share, forms_outside
from aligncap.text.prompts import templates
from aligncap.utils.distributed import ALONE, Gathered, Group
from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.options import Range

Audio = str | Path | np.ndarray | Tensor
Clip = str | Path | np.ndarray  # a file, or samples at 16 kHz that `prepare_samples` gave
Prior = Literal["equal", "everyday"]
NOTHING = np.zeros(0, dtype=np.float32)  # in place of a clip that is too quiet to be used
BEAMS = 4  # captions to choose from where the greedy one is at fault
NEVER = 1e4  # taken from a logit
# Options of `generate` that a caption is commonly made with; the others are transformers' to check.
_RANGES = {
    "max_new_tokens": Range(1),
    "num_beams": Range(1),
    "temperature": Range(0, open_low=True),
    "top_p": Range(0, 1, open_low=True),
    "top_k": Range(0),
    "num_return_sequences": Range(1, 1),
}


class Captioner:
    """Captions of how voices sound.

    >>> captioner = Captioner.from_pretrained("runs/quickstart/model")  # doctest: +SKIP
    >>> captioner("clip.wav")  # doctest: +SKIP
    'He sounds angry, with a loud and pressed voice.'

    Args:
        gate: whether a clip in which nobody speaks is answered "No speech is heard.", the model unasked.
        proofread: whether a greedy caption that is `at_fault` is written again: the likeliest of a search
            with beams that is not takes its place.
        calibration: what makes probabilities of the masses of emotions.
        prior: how likely emotions are taken to be before a clip is heard: all alike as in training, or as in
            everyday talk (`text.emotions.everyday_share`). Where a call names the emotions to choose from,
            these are alike.
    """

    def __init__(
        self,
        model: AlignCapForConditionalGeneration | PeftModel,
        processor: AlignCapProcessor,
        *,
        gate: bool = False,
        proofread: bool = False,
        calibration: Calibration | None = None,
        prior: Prior = "equal",
    ) -> None:
        # An adapter's layers stand in its base, which is the model that encodes and generates.
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.model = cast(AlignCapForConditionalGeneration, base)
        self.processor = processor
        self.gate = gate
        self.proofread = proofread
        self.calibration = calibration or Calibration()
        self.prior = prior
        self.instruction = ""
        self._outside: dict[frozenset[str], list[list[int]]] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str = "auto",
        dtype: str = "float32",
        *,
        gate: bool = True,
        proofread: bool = True,
        prior: Prior = "everyday",
        instruction: str = "",
    ) -> Captioner:
        """Load a merged folder or the output of a training run, with its calibration where it has one.

        Args:
            device: "auto" (the GPU where there is one), "cpu", "cuda", "cuda:1", …
            dtype: "float32" or "bfloat16".
            gate, proofread, prior: see `Captioner`.
            instruction: see `asking`.

        Raises:
            UserError: no such device or dtype, no folder, no AlignCap checkpoint in it, a wrong calibration.
        """
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype {dtype!r}: choose float32 or bfloat16")
        device = pick_device(device)
        calibration = Calibration.read(folder)
        model, processor = load_for_inference(folder, getattr(torch, dtype))
        model.to(device)  # type: ignore[arg-type]
        options: dict[str, Any] = {"gate": gate, "proofread": proofread, "prior": prior}
        captioner = cls(model, processor, calibration=calibration, **options)
        return captioner.asking(instruction) if instruction else captioner

    def asking(self, instruction: str) -> Captioner:
        """The same model asked something else than a description, which it must have been taught to answer.

        >>> captioner.asking("Which emotion does the speaker express?")("clip.wav")  # doctest: +SKIP
        'angry'
        """
        self.processor.prompt_of(instruction=instruction)  # raises what the first clip would
        other = copy(self)
        other.instruction = instruction
        return other

    @overload
    def __call__(self, audio: Audio, batch_size: int = 16, **options: Any) -> str: ...

    @overload
    def __call__(self, audio: Sequence[Audio], batch_size: int = 16, **options: Any) -> list[str]: ...

    def __call__(
        self,
        audio: Audio | Sequence[Audio],
        batch_size: int = 16,
        *,
        sampling_rate: int = SAMPLE_RATE,
        speakers: str | Sequence[str | None] | None = None,
        sessions: str | Sequence[str | None] | None = None,
        **options: Any,
    ) -> str | list[str]:
        """Caption one clip or a list of them.

        Args:
            audio: paths, or arrays and tensors as `audio.files.prepare_samples` takes them: of floats or
                integers, mono or not. A clip gives the same caption as a file and as samples.
            sampling_rate: of arrays, Hz.
            speakers: who speaks in each clip, or one name for all: what these clips have in common is then
                told from what the voice does in one of them (`models.context`). None: unknown.
            sessions: the same of clips that were recorded alike, whoever speaks; in place of `speakers`.
            options: of `transformers.GenerationMixin.generate`, such as num_beams or do_sample. A caption has
                at most `max_new_tokens` tokens, by default the model's `config.max_response_tokens`.

        Returns:
            A caption, or a list of captions in the order of the clips.

        Raises:
            UserError: a clip cannot be used, an option is unknown or out of its range, or `speakers` or
                `sessions` has another length than `audio`, or both are given.
        """
        if isinstance(audio, (str, Path, np.ndarray, Tensor)):
            one = {"sampling_rate": sampling_rate, "speakers": speakers, "sessions": sessions}
            return self([audio], batch_size, **one, **options)[0]
        if speakers is not None and sessions is not None:
            raise UserError("speakers and sessions: name one of them")
        kind: Kind = "speaker" if sessions is None else "session"
        given = speakers if sessions is None else sessions
        named = [given] * len(audio) if given is None or isinstance(given, str) else list(given)
        if len(named) != len(audio):
            raise UserError(f"{kind}s: {len(named)} for {len(audio)} clips; name one for each, or None")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be at least 1")
        self.check_options(options)
        prepare = partial(
            prepare_samples, sampling_rate=sampling_rate, max_seconds=self.processor.max_seconds
        )
        clips: list[Clip] = [
            c if isinstance(c, (str, Path)) else self._or_nothing(partial(prepare, _array(c))) for c in audio
        ]
        contexts = self.contexts(clips, named, kind)
        captions: dict[int, str] = {}
        for batch in batches_by_size(clips, batch_size):
            loaded = {i: self._or_nothing(partial(self._load, clips[i])) for i in batch}
            heard = [i for i in batch if not self.gate or speaks(loaded[i])]
            captions |= dict.fromkeys(batch, self.no_speech)
            if heard:
                made = self.generate([loaded[i] for i in heard], [contexts[i] for i in heard], **options)
                captions |= zip(heard, made, strict=True)
        return [captions[i] for i in range(len(clips))]

    @staticmethod
    def check_options(options: dict[str, object]) -> None:
        """
        Raises:
            UserErrors: every option of `generate` that is unknown or out of its range.
        """
        arguments = inspect.signature(AlignCapForConditionalGeneration.generate).parameters
        known = {*GenerationConfig().to_dict(), *arguments}
        errors = [f"generate has no option {name!r}{nearest(name, known)}" for name in {*options} - known]
        for name, limits in _RANGES.items():
            value = options.get(name)
            if value is not None and not (isinstance(value, (int, float)) and limits.holds(value)):
                errors.append(f"{name}={value}: must be {limits}")
        if errors:
            raise UserErrors(errors)

    @torch.inference_mode()
    def contexts(
        self,
        audio: Sequence[Clip],
        groups: Sequence[str | None],
        kind: Kind,
        batch_size: int = 8,
        *,
        wanted: Collection[str | None] | None = None,
        group: Group = ALONE,
    ) -> list[Tensor | None]:
        """Of each clip what the clips of its group have in common (`models.context.offset`), (emotions,).

        None of a clip of no group or of a small one, and of all if the model has no emotion token. Clips that
        cannot be read are passed over; captioning will name them.

        Args:
            groups: names of speakers or sessions, by `kind`.
            wanted: the groups that matter, by default all; what is given for others is not to be used.
            group: the processes that share the work; each must call.
        """
        if not self.model.config.emotions or not any(groups):
            return [None] * len(audio)
        projector = self.model.model.multi_modal_projector
        usual = projector.emotion.usual.cpu()
        members = chosen_clips(groups, FEWEST[kind])
        if wanted is not None:
            members = {name: places for name, places in members.items() if name in wanted}
        chosen = sorted({i for places in members.values() for i in places})
        batches = [[chosen[i] for i in b] for b in batches_by_size([audio[i] for i in chosen], batch_size)]

        def compute(batch: Sequence[int]) -> dict[int, Tensor]:
            clips: dict[int, np.ndarray] = {}
            for i in batch:
                with suppress(UserError):
                    clips[i] = self._load(audio[i])
            if not clips:
                return {}
            mel = self.processor.features(list(clips.values())).to(self.model.device)
            pooled = self.model.model.encode_audio(**mel)
            return dict(zip(clips, projector.emotion_logits(*pooled).cpu(), strict=True))

        logits = Gathered(group)
        group.share_out(logits, batches, compute, "clips recorded alike")
        found = {}
        for name, places in members.items():
            if heard := [logits[i] for i in places if i in logits]:
                found[name] = offset(torch.stack(heard), usual, kind)
        return [found.get(name) if name is not None else None for name in groups]

    def _load(self, clip: Clip) -> np.ndarray:
        if isinstance(clip, np.ndarray):
            if not len(clip):
                raise AudioError("silent", "audio array: silent")
            return clip
        return load_audio(clip, max_seconds=self.processor.max_seconds)

    def _or_nothing(self, load: Callable[[], np.ndarray]) -> np.ndarray:
        """What `load` gives; with the gate, NOTHING of a clip that is refused because it is silent."""
        try:
            return load()
        except UserError as error:
            if self.gate and is_silent(error):
                return NOTHING
            raise

    def generate(
        self,
        clips: Sequence[np.ndarray],
        contexts: Sequence[Tensor | None] | None = None,
        cues: Sequence[str | None] | None = None,
        emotions: Collection[str] = (),
        **options: object,
    ) -> list[str]:
        """Captions of clips of 16 kHz samples, in one batch.

        Args:
            contexts: those of `contexts`.
            cues: what was measured in each clip, for a model that is shown it.
            emotions: the labels of a corpus where they are known: captions name no others.
            options: as in `__call__`.

        Raises:
            UserError: an emotion has no words; see `aligncap.text.emotions`.
        """
        return self.said(self.heard(clips, contexts, cues, emotions), emotions, **options)

    def said(self, inputs: BatchFeature, emotions: Collection[str] = (), **options: object) -> list[str]:
        """As `generate`, of inputs that `heard` made; `emotions` must be the same."""
        return self.texts(self._tokens(inputs, emotions, options))

    def captions_with_confidence(
        self,
        clips: Sequence[np.ndarray],
        contexts: Sequence[Tensor | None] | None = None,
        cues: Sequence[str | None] | None = None,
        emotions: Collection[str] = (),
        **options: object,
    ) -> list[tuple[str, Named | None]]:
        """As `generate`, each caption with how sure it is of the emotion it names; None: it names none.

        The masses are those of the model's own distribution, whatever the captions were decoded with.
        """
        return self.sure_captions(self.heard(clips, contexts, cues, emotions), emotions, **options)

    @torch.inference_mode()
    def sure_captions(
        self, inputs: BatchFeature, emotions: Collection[str] = (), **options: object
    ) -> list[tuple[str, Named | None]]:
        """As `captions_with_confidence`, of inputs that `heard` made; `emotions` must be the same."""
        tokens = self._tokens(inputs, emotions, options)
        own = {e: ids for e, ids in self._first_tokens.items() if not emotions or e in emotions}
        named = named_emotions(self.model, inputs, tokens, own, self.processor.tokenizer, self.calibration)
        return list(zip(self.texts(tokens), named, strict=True))

    @property
    def no_speech(self) -> str:
        """The caption of a clip in which nobody speaks."""
        return str(templates(self.processor.language)["no_speech"])

    @cached_property
    def _first_tokens(self) -> dict[str, list[int]]:
        return first_tokens(self.processor.tokenizer)

    @torch.inference_mode()
    def _tokens(self, inputs: BatchFeature, emotions: Collection[str], options: dict[str, object]) -> Tensor:
        """Tokens of the captions, (clips, steps); a greedy caption that is at fault is written again."""
        limit = {"max_new_tokens": self.model.config.max_response_tokens}
        options = limit | {name: value for name, value in options.items() if value is not None}
        if emotions and (words := self._words_outside(emotions)):
            options["bad_words_ids"] = words
        tokens = self._generated(inputs, options)
        if self.proofread and not options.get("do_sample") and options.get("num_beams", 1) == 1:
            rows = [i for i, text in enumerate(self.texts(tokens)) if self.at_fault(text)]
            if rows:
                part = {name: value[rows] for name, value in inputs.items()}
                beams = {"num_beams": BEAMS, "num_return_sequences": BEAMS, "streamer": None}
                others = self._generated(part, options | beams).unflatten(0, (len(rows), BEAMS))
                pad = cast(int, self.model.generation_config.pad_token_id)
                tokens = _padded(tokens, others.shape[-1], pad)
                others = _padded(others, tokens.shape[-1], pad)
                for row, found in zip(rows, others, strict=True):
                    good = (t for t in found if not self.at_fault(self.texts(t[None])[0]))
                    tokens[row] = next(good, tokens[row])
        return tokens

    def _generated(self, inputs: Mapping[str, Any], options: dict[str, object]) -> Tensor:
        output = cast(Tensor, self.model.generate(**inputs, **options))  # type: ignore[misc, arg-type]
        return output[:, inputs["input_ids"].shape[1] :]

    def at_fault(self, caption: str) -> bool:
        """Whether a caption contradicts or repeats itself or, a description by a model that reads emotions,
        names none."""
        silent = bool(self.model.config.emotions) and not self.instruction and emotion_of(caption) is None
        return silent or bool(contradictions(caption) or repetitions(caption))

    def _words_outside(self, emotions: Collection[str]) -> list[list[int]]:
        """Token ids of the words of all other emotions, whose last token is then never written."""
        named = frozenset(emotions)
        if named not in self._outside:  # the same for every batch
            rows = chain.from_iterable(spellings(self.processor.tokenizer, forms_outside(emotions)))
            self._outside[named] = [list(row) for row in dict.fromkeys(map(tuple, rows))]
        return self._outside[named]

    @torch.inference_mode()
    def heard(
        self,
        clips: Sequence[np.ndarray],
        contexts: Sequence[Tensor | None] | None = None,
        cues: Sequence[str | None] | None = None,
        emotions: Collection[str] = (),
    ) -> BatchFeature:
        """As `inputs`, with the encoder's pooled frames in place of the log-mel."""
        inputs = self.inputs(clips, contexts, cues, emotions)
        mel = {name: inputs.pop(name) for name in ("input_features", "input_features_mask")}
        frames, mask = self.model.model.encode_audio(**mel)
        inputs["audio_frames"], inputs["audio_frames_mask"] = frames, mask
        return inputs

    def inputs(
        self,
        clips: Sequence[np.ndarray],
        contexts: Sequence[Tensor | None] | None = None,
        cues: Sequence[str | None] | None = None,
        emotions: Collection[str] = (),
    ) -> BatchFeature:
        """Inputs of the model's `generate` for clips of 16 kHz samples, on its device; see `generate`."""
        inputs = self.processor.captioning_inputs(clips, cues, self.instruction)
        known = self.model.config.emotions
        base = torch.tensor([self._unlikely(label, emotions) for label in known])
        if known and (base.any() or any(context is not None for context in contexts or ())):
            rows = contexts or [None] * len(clips)
            inputs["context"] = torch.stack([base if c is None else base + c for c in rows])
        return inputs.to(self.model.device)

    def _unlikely(self, emotion: str, emotions: Collection[str]) -> float:
        """What is taken from an emotion's logit before the clip is heard."""
        if emotions:  # one that is not to be named gets no share of the emotion token
            return 0.0 if emotion in emotions else NEVER
        return -math.log(everyday_share(emotion)) if self.prior == "everyday" else 0.0

    def texts(self, tokens: Tensor | list[list[int]]) -> list[str]:
        """Captions of rows of token ids, in one line each."""
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def is_silent(error: UserError) -> bool:
    """Whether a clip was refused because nothing is to be heard in it."""
    return isinstance(error, AudioError) and error.kind == "silent"


def speaks(samples: np.ndarray) -> bool:
    """Whether somebody speaks in a clip; in NOTHING nobody does."""
    return len(samples) > 0 and speech.has_speech(samples)


def batches_by_size(audio: Sequence[Clip], batch_size: int) -> list[list[int]]:
    """Indices of clips in batches of like length, the longest first."""
    order = sorted(range(len(audio)), key=lambda i: -_size(audio[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _padded(tokens: Tensor, length: int, pad: int) -> Tensor:
    """Rows of tokens padded to `length`."""
    return torch.nn.functional.pad(tokens, (0, max(0, length - tokens.shape[-1])), value=pad)


def _array(samples: np.ndarray | Tensor) -> np.ndarray:
    if not isinstance(samples, Tensor):
        return samples
    return (samples.float() if samples.dtype == torch.bfloat16 else samples).detach().cpu().numpy()


def _size(clip: Clip) -> int:
    if isinstance(clip, np.ndarray):
        return len(clip)
    with suppress(OSError):
        return members.size_of(clip)
    return 0
