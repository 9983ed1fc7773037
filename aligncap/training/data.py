"""From manifest to training rows: a manifest is read once, its captions are tokenised once.

`Clips` is what a manifest says, `CaptionRows` its captions as tokens, `ClipInputs` what the student reads of
a clip; a dataset joins them. Rows are lean: captions stand in one array, and the teacher's prompts, which
are longer, are written and tokenised when a row is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from aligncap.audio.augment import through_channel
from aligncap.audio.files import SAMPLE_RATE, info, load_audio
from aligncap.data.manifest import Utterance
from aligncap.data.rows import Manifest
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.text.instruction import language_of
from aligncap.text.prompts import control_tokens, measured_cues, teacher_prompt
from aligncap.training.caches import (
    MOST,
    augmented_key,
    feature_cache,
    fill_features,
    frames_size,
    teacher_key,
)
from aligncap.training.clips import Clips, instruction_of, read_clips
from aligncap.training.collators import Row
from aligncap.training.config import FeatureCaching, RunConfig
from aligncap.training.responses import Responses, refuse_special_tokens, responses_of, spelling
from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.tensor_cache import TensorCache, require_space


@dataclass(frozen=True)
class Captions(Sequence[str]):
    """Texts of captions, read when they are asked for.

    places: (captions, 2), of each the places of its clip and of itself among the clip's.
    """

    utterances: Manifest
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        clip, caption = self.places[index]
        return self.utterances[clip].captions[caption]

    def __iter__(self) -> Iterator[str]:
        clips = self.utterances.chosen(self.places[:, 0])
        return (u.captions[k] for u, k in zip(clips, self.places[:, 1], strict=True))


def _first_of_each(utterances: Manifest, use_p_act: bool) -> list[int]:
    """Captions, counted over all clips, that are the first of what a teacher reads and answers."""
    first: dict[bytes, int] = {}
    place = 0
    for u in utterances:
        for k, caption in enumerate(u.captions):
            read = (u.transcript or "").strip(), u.gender, u.p_act[k] if use_p_act else None
            text = json.dumps((*read, instruction_of(u, k), caption))
            first.setdefault(hashlib.blake2b(text.encode(), digest_size=16).digest(), place)
            place += 1
    return list(first.values())


@dataclass(frozen=True)
class CaptionRows(Dataset[tuple[list[int], list[int]]]):
    """Rows (clip, caption) of a manifest: what is answered, and what the teacher reads of it.

    places: (rows, 2), of each row the places of its clip and of its caption; responses: its tokens.
    """

    clips: Clips
    tokenizer: PreTrainedTokenizerBase
    places: np.ndarray
    responses: Responses
    use_p_act: bool
    max_response_tokens: int

    @classmethod
    def of(
        cls,
        clips: Clips,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_response_tokens: int,
        use_p_act: bool = True,
        once: bool = False,
    ) -> CaptionRows:
        """A row for each caption of each clip; with `once`, the same two texts (prompt, caption) stand once.

        Raises:
            UserErrors: a text holds a control token of the LLM.
            UserError: captions are too long, see `responses_of`.
        """
        found = clips.utterances.matching(spelling(control_tokens(tokenizer)))
        texts = ((n, u.id, [u.transcript or "", *u.captions, *u.p_act, *u.instructions]) for n, u in found)
        refuse_special_tokens(clips.manifest, texts, tokenizer)
        counts = clips.utterances.columns.captions
        before = np.cumsum(counts) - counts
        clip = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        places = np.stack(
            [clip, np.arange(len(clip), dtype=np.int32) - before[clip].astype(np.int32)], axis=1
        )
        if once:
            places = places[_first_of_each(clips.utterances, use_p_act)]
        captions = Captions(clips.utterances, places)
        responses = responses_of(tokenizer, captions, max_response_tokens, clips.manifest)
        return cls(clips, tokenizer, places, responses, use_p_act, max_response_tokens)

    def __len__(self) -> int:
        return len(self.places)

    def tokens_once(self) -> int:
        """Response tokens; those of a clip that is repeated count once."""
        which = np.stack([self.clips.utterances.rows[self.places[:, 0]], self.places[:, 1]], axis=1)
        first = np.unique(which, axis=0, return_index=True)[1]
        return int(self.responses.lengths[first].sum())

    def prompt(self, index: int) -> list[int]:
        """Tokens of what the teacher reads: transcript and acoustic prompt."""
        clip, caption = self.places[index]
        u = self.clips.utterances[clip]
        acoustic = u.p_act[caption] if self.use_p_act else ""
        language = language_of([u.captions[caption]])
        asked = instruction_of(u, caption)
        text = teacher_prompt(self.tokenizer, u.transcript, acoustic, u.gender, language, asked)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        """The teacher's prompt and the response, as tokens."""
        return self.prompt(index), self.responses[index]


@dataclass(frozen=True)
class ClipInputs:
    """What the student reads of one clip: `prompt_ids`, placeholders expanded, and its audio.

    Audio comes from the feature cache (`frames`), or from the file when there is none (`samples`). With
    `augment` every second caption of a clip is learnt from the clip as heard through another channel
    (`audio.augment`).
    """

    processor: AlignCapProcessor
    features: TensorCache | None = None
    augment: bool = False
    _around: dict[tuple[str | None, str], tuple[list[int], list[int]]] = field(
        default_factory=dict, repr=False
    )

    def live(self) -> ClipInputs:
        """The same without the feature cache: each clip is encoded whenever it is read."""
        return replace(self, features=None)

    def around(self, u: Utterance | None = None, instruction: str = "") -> tuple[list[int], list[int]]:
        """Token ids before and after the audio, with the utterance's measured cues where they are shown."""
        cues = measured_cues(u.cue_words) if u is not None and self.processor.show_cues else None
        if (cues, instruction) not in self._around:
            # Tokenised whole, as in captioning: some tokenizers treat a start of text otherwise.
            text = self.processor.prompt_of(cues, instruction)
            prompt = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            place = prompt.index(self.processor.audio_token_id)
            self._around[cues, instruction] = prompt[:place], prompt[place + 1 :]
        return self._around[cues, instruction]

    def lengths(
        self, clips: Clips, places: np.ndarray, captions: Sequence[int | None] | None = None
    ) -> np.ndarray:
        """(places,): tokens of these clips' prompts, placeholders expanded, without reading audio.

        From the headers of the feature cache or, to within one token where a file is resampled, of the files.

        Args:
            captions: of each place the caption that is to be answered, as in a call.
        """
        known: dict[int, int] = {}
        for place in dict.fromkeys(places.tolist()):
            key = clips.keys[place]
            if self.features is not None:
                audio = self.processor.tokens_of_frames(self.features.rows(key))
            else:
                seconds = info(clips.paths[key]).duration_s
                audio = self.processor.num_audio_tokens(round(seconds * SAMPLE_RATE))
            known[place] = audio
        return np.array(
            [
                known[place] + sum(map(len, self._around_clip(clips, place, caption)))
                for place, caption in zip(places.tolist(), captions or [None] * len(places), strict=True)
            ]
        )

    def _around_clip(self, clips: Clips, place: int, caption: int | None) -> tuple[list[int], list[int]]:
        u = clips.utterances[place]
        return self.around(u, "" if caption is None else instruction_of(u, caption))

    def __call__(self, clips: Clips, place: int, caption: int | None = None) -> Row:
        """What is read of the clip at `place` for one of its captions; None: for a description."""
        key = clips.keys[place]
        augmented = self.augment and caption is not None and caption % 2 == 1
        row: Row = {}
        if self.features is not None:
            row["frames"] = self.features[augmented_key(key) if augmented else key]
            count = self.processor.tokens_of_frames(len(row["frames"]))
        else:
            samples = load_audio(clips.paths[key], max_seconds=self.processor.max_seconds)
            row["samples"] = through_channel(samples, augmented_key(key)) if augmented else samples
            count = self.processor.num_audio_tokens(len(row["samples"]))
        before, after = self._around_clip(clips, place, caption)
        row["prompt_ids"] = [*before, *[self.processor.audio_token_id] * count, *after]
        return row


def keeps_features(
    wanted: FeatureCaching, model: AlignCapForConditionalGeneration, manifests: Sequence[Clips], augment: bool
) -> bool:
    """Whether all clips are encoded once: as asked, or where their frames take no more than `MOST` bytes."""
    if wanted != "auto":
        return wanted == "yes"
    first, *others = manifests
    return features_size(model, first, augment) + sum(features_size(model, c) for c in others) <= MOST


def features_size(model: AlignCapForConditionalGeneration, clips: Clips, augment: bool = False) -> float:
    """Bytes of the frames of all clips; with `augment`, of those through another channel too."""
    return frames_size(model.config, clips.seconds()) * (2 if augment else 1)


def cached_inputs(
    model: AlignCapForConditionalGeneration,
    processor: AlignCapProcessor,
    manifests: Sequence[Clips],
    cache_dir: str | Path,
    *,
    group: Group = ALONE,
    augment: bool = False,
) -> ClipInputs:
    """Encode the clips of `manifests` once; with `augment` those of the first through another channel too.

    Raises:
        UserErrors: every file that cannot be read.
        UserError: the disk has no room for what is not cached yet.
    """
    features = feature_cache(Path(cache_dir), model, processor)
    missing = 0.0
    for number, clips in enumerate(manifests):
        for name in (str, augmented_key) if augment and number == 0 else (str,):
            missing += clips.seconds([key for key in clips.paths if name(key) not in features])
    remedy = "make room, give feature_cache no, or an encoder_layer that is one number"
    size = frames_size(model.config, missing)
    require_space(features.folder, size, f"features of {missing / 3600:.1f} h of speech", remedy, group)
    for number, clips in enumerate(manifests):
        fill_features(features, model, processor, clips.paths, group=group)
        if augment and number == 0:
            fill_features(features, model, processor, clips.paths, group=group, augmented=True)
    return ClipInputs(processor, features, augment)


class SpeechDataset(Dataset[Row]):
    """One row a (clip, caption) pair: what the student reads and answers, and what the teacher reads or says.

    Args:
        teacher: whether rows hold the teacher's prompts (`teacher_prompt_ids`), for a live teacher.
        states: cache of what the teacher says (`caches.cached_teacher`), in place of its prompts.
    """

    def __init__(
        self,
        rows: CaptionRows,
        inputs: ClipInputs,
        *,
        teacher: bool = False,
        states: TensorCache | None = None,
    ) -> None:
        self.rows, self.inputs, self.teacher, self.states = rows, inputs, teacher, states

    @classmethod
    def from_manifest(
        cls,
        manifest: str | Path,
        processor: AlignCapProcessor,
        *,
        model: AlignCapForConditionalGeneration | None = None,
        cache_dir: str | Path | None = None,
        teacher: bool = True,
        use_p_act: bool = True,
        balance: bool = False,
        max_response_tokens: int = RunConfig.max_response_tokens,
    ) -> SpeechDataset:
        """Rows of a manifest with captions (and, with `teacher`, acoustic prompts).

        Args:
            model: with `cache_dir`, encodes the clips now and keeps them there; else each is encoded in
                training, whenever it is read.
            max_response_tokens: longest caption; give `build` the same, for the model's own captions.

        Raises:
            UserError, UserErrors: the manifest, its texts or its sound cannot be used.
        """
        clips = read_clips(str(manifest), p_act=teacher and use_p_act)
        clips = clips.balanced() if balance else clips
        rows = CaptionRows.of(
            clips, processor.tokenizer, max_response_tokens=max_response_tokens, use_p_act=use_p_act
        )
        if model is not None and cache_dir is not None:
            return cls(rows, cached_inputs(model, processor, [clips], cache_dir), teacher=teacher)
        return cls(rows, ClipInputs(processor), teacher=teacher)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shards(self) -> np.ndarray | None:
        """(rows,): the number of each row's tar shard where its sound is read from; None: from none."""
        shards = self.rows.clips.shards
        return None if shards is None or self.inputs.features is not None else shards[self.rows.places[:, 0]]

    def __getitem__(self, index: int) -> Row:
        row = self.inputs(self.rows.clips, *self.rows.places[index])
        row["response_ids"] = self.rows.responses[index]
        if self.states is not None:
            name = "teacher_top_k" if "top_k" in self.states.description else "teacher_hidden"
            row[name] = self.states[teacher_key(*self.rows[index])]
        elif self.teacher:
            row["teacher_prompt_ids"] = self.rows.prompt(index)
        return row

    def lengths(self) -> np.ndarray:
        """(rows, 2): tokens of each row's prompt and response, for the student; no audio is read."""
        places, captions = self.rows.places.T
        prompts = self.inputs.lengths(self.rows.clips, places, captions.tolist())
        return np.stack([prompts, self.rows.responses.lengths], axis=1)

    def teacher_lengths(self) -> np.ndarray | None:
        """The same of what the teacher reads; None where it reads nothing."""
        if self.states is not None or not self.teacher:
            return None
        prompts = np.array([len(self.rows.prompt(i)) for i in range(len(self))])
        return np.stack([prompts, self.rows.responses.lengths], axis=1)


def speech_datasets(
    rows: Sequence[CaptionRows],
    inputs: ClipInputs,
    *,
    teacher: bool = False,
    states: TensorCache | None = None,
) -> list[SpeechDataset]:
    """Of each manifest its dataset; only the first, which is learnt from, is heard through other channels."""
    plain = replace(inputs, augment=False)
    return [
        SpeechDataset(part, plain if number else inputs, teacher=teacher, states=states)
        for number, part in enumerate(rows)
    ]


class TextDataset(Dataset[Row]):
    """Rows of the text teacher: transcript and acoustic prompt to caption; the same two texts stand once."""

    def __init__(self, rows: CaptionRows) -> None:
        self.rows = rows

    @classmethod
    def from_manifest(
        cls,
        manifest: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        use_p_act: bool = True,
        max_response_tokens: int = RunConfig.max_response_tokens,
    ) -> TextDataset:
        """Rows of a manifest with captions and acoustic prompts; errors as in `SpeechDataset`."""
        clips, limit = read_clips(str(manifest), p_act=use_p_act), max_response_tokens
        return cls(
            CaptionRows.of(clips, tokenizer, max_response_tokens=limit, use_p_act=use_p_act, once=True)
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        prompt, response = self.rows[index]
        return {"prompt_ids": prompt, "response_ids": response}

    def lengths(self) -> np.ndarray:
        """(rows, 2): tokens of each row's prompt and response."""
        return np.array([(len(self.rows.prompt(i)), n) for i, n in enumerate(self.rows.responses.lengths)])
