"""From manifest to training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from aligncap.audio.files import SAMPLE_RATE, info, load_audio
from aligncap.data.manifest import Utterance, audio_path, read_manifest
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.text.prompts import measured_cues, response_ids, teacher_prompt
from aligncap.training.caches import teacher_key
from aligncap.training.collators import audio_batch, join_prompt_and_response
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import read_jsonl
from aligncap.utils.tensor_cache import TensorCache, digest


def read_captioned(path: str, need_p_act: bool) -> list[Utterance]:
    """Utterances with captions (and acoustic prompts).

    Raises:
        UserErrors: utterances without captions or acoustic prompts, all of them.
    """
    utterances = read_manifest(Path(path))
    errors = []
    for number, u in enumerate(utterances, 1):
        if not u.captions:
            errors.append(f"{path}:{number}: {u.id} has no captions; run `aligncap annotate` on it")
        elif need_p_act and len(u.p_act) != len(u.captions):
            errors.append(f"{path}:{number}: {u.id} has no acoustic prompts; run `aligncap clues` on it")
    if not utterances:
        errors.append(f"{path}: the manifest is empty")
    if errors:
        raise UserErrors(errors)
    return utterances


def refuse_special_tokens(path: str, texts: Iterable[tuple[int, str, Sequence[str]]], tokenizer: Any) -> None:
    """A caption or transcript that holds a control token would end a turn, or put audio where there is none.

    Args:
        texts: line of `path`, id and texts of each.

    Raises:
        UserErrors: every such text.
    """
    # Llama 3 lists its turns' marks among the added tokens alone.
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    special = [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if token.strip()]
    errors = [
        f"{path}:{number}: {name}: {token!r} in its texts is a control token of the LLM; take it out"
        for number, name, said in texts
        for token in special
        if any(token in text for text in said)
    ]
    if errors:
        raise UserErrors(errors)


def texts_of(utterances: list[Utterance]) -> list[tuple[int, str, list[str]]]:
    """What of each utterance the LLM reads or writes, for `refuse_special_tokens`."""
    return [(n, u.id, [u.transcript or "", *u.captions, *u.p_act]) for n, u in enumerate(utterances, 1)]


def balanced(utterances: list[Utterance]) -> list[int]:
    """Indices of the utterances, those of rarer emotion labels repeated until labels count about alike.

    A label never named by the model costs the same whether it is rare or frequent, so it must be learnt
    alike.
    """
    counts = Counter(u.emotion for u in utterances)
    most = max(counts.values())
    return [i for i, u in enumerate(utterances) for _ in range(round(most / counts[u.emotion]))]


def text_rows(
    utterances: list[Utterance], tokenizer: Any, limit: int, use_p_act: bool = True
) -> list[dict[str, Any]]:
    """Rows of the teacher's SFT: transcript + P_act -> caption. The same pair of texts stands once."""
    rows: dict[tuple[str, str], None] = {}
    for u in utterances:
        for i, caption in enumerate(u.captions):
            acoustic = u.p_act[i] if use_p_act else ""
            rows[teacher_prompt(tokenizer, u.transcript, acoustic, u.gender), caption] = None
    return [
        {
            "prompt_ids": tokenizer(prompt, add_special_tokens=False)["input_ids"],
            "response_ids": response_ids(tokenizer, caption, limit),
        }
        for prompt, caption in rows
    ]


class ClipInputs:
    """What the student reads of one clip: `prompt_ids`, placeholders expanded, and its audio.

    Audio comes from the feature cache (`frames`), or from the file when there is none (`samples`). `voices`
    holds the mean of each clip's speaker by the clip's key (`speaker_mean`), nan where it is unknown.
    """

    def __init__(
        self,
        processor: AlignCapProcessor,
        features: TensorCache | None,
        voices: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.processor, self.features, self.voices = processor, features, voices
        self._around: dict[str | None, tuple[list[int], list[int]]] = {}

    def around(self, cues: str | None) -> tuple[list[int], list[int]]:
        """Token ids before and after the audio."""
        if cues not in self._around:
            # Tokenised whole, as in captioning: some tokenizers treat a start of text otherwise.
            text = self.processor.prompt_of(cues)
            prompt = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            place = prompt.index(self.processor.audio_token_id)
            self._around[cues] = prompt[:place], prompt[place + 1 :]
        return self._around[cues]

    def prompt_length(self, key: str, path: Path, cues: str | None = None) -> int:
        """Tokens of the prompt, placeholders expanded, without reading audio: from the header of the feature
        cache or, to within one token where the file is resampled, of the sound file."""
        if self.features is not None:
            count = self.processor.tokens_of_frames(self.features.rows(key))
        else:
            count = self.processor.num_audio_tokens(round(info(path).duration_s * SAMPLE_RATE))
        return count + sum(map(len, self.around(cues if self.processor.show_cues else None)))

    def __call__(self, key: str, path: Path, cues: str | None = None) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if self.features is not None:
            row["frames"] = self.features[key]
            count = self.processor.tokens_of_frames(len(row["frames"]))
        else:
            row["samples"] = load_audio(path, max_seconds=self.processor.max_seconds)
            count = self.processor.num_audio_tokens(len(row["samples"]))
        if self.voices is not None:
            row["speaker_mean"] = self.voices[key]
        before, after = self.around(cues if self.processor.show_cues else None)
        row["prompt_ids"] = [*before, *[self.processor.audio_token_id] * count, *after]
        return row


class SpeechRows(Dataset):
    """One row a (clip, caption) pair."""

    def __init__(
        self,
        manifest: str,
        utterances: list[Utterance],
        processor: AlignCapProcessor,
        *,
        teacher: bool,
        limit: int,
        features: TensorCache | None,
        keys: list[str],
        voices: Mapping[str, Tensor] | None = None,
        states: TensorCache | None = None,
        use_p_act: bool = True,
    ) -> None:
        self.inputs, self.states = ClipInputs(processor, features, voices), states
        tokenizer = processor.tokenizer
        self.rows: list[dict[str, Any]] = []
        for u, key in zip(utterances, keys, strict=True):
            path = audio_path(Path(manifest), u)
            for i, caption in enumerate(u.captions):
                row = {
                    "key": key,
                    "path": path,
                    "cues": measured_cues(u.cue_words),
                    "response_ids": response_ids(tokenizer, caption, limit),
                }
                if teacher:
                    acoustic = u.p_act[i] if use_p_act else ""
                    prompt = teacher_prompt(tokenizer, u.transcript, acoustic, u.gender)
                    row["teacher_prompt_ids"] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
                self.rows.append(row)

    def lengths(self) -> list[tuple[int, int]]:
        """Tokens of each row's prompt and response, as the student reads them; no audio is read."""
        return [
            (self.inputs.prompt_length(r["key"], r["path"], r["cues"]), len(r["response_ids"]))
            for r in self.rows
        ]

    def teacher_lengths(self) -> list[tuple[int, int]] | None:
        """The same of what the teacher reads; None where it reads nothing."""
        if self.states is not None or not self.rows or "teacher_prompt_ids" not in self.rows[0]:
            return None
        return [(len(p), len(r)) for p, r in self.teacher_pairs()]

    def teacher_pairs(self) -> list[tuple[list[int], list[int]]]:
        return [(r["teacher_prompt_ids"], r["response_ids"]) for r in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = self.rows[index]
        row = {
            "response_ids": source["response_ids"],
            **self.inputs(source["key"], source["path"], source["cues"]),
        }
        if self.states is not None:
            name = "teacher_top_k" if "top_k" in self.states.description else "teacher_hidden"
            row[name] = self.states[teacher_key(source["teacher_prompt_ids"], source["response_ids"])]
        elif "teacher_prompt_ids" in source:
            row["teacher_prompt_ids"] = source["teacher_prompt_ids"]
        return row


@dataclass(frozen=True)
class Pair:
    """A clip's utterance and two captions of it, the first preferred; `line` of the pairs file."""

    utterance: Utterance
    chosen: str
    rejected: str
    line: int


def manifest_of_pairs(path: str, named: str | None) -> str:
    """The manifest of the pairs' clips: `named`, else the one that the rows themselves name.

    Raises:
        UserError: the rows name none, or several.
    """
    if named:
        return named
    found = {row.get("manifest") for row in read_jsonl(path)}
    if len(found) != 1 or None in found:
        raise UserError(f"{path}: names {len(found - {None})} manifests; name one with --train_manifest")
    return str(Path(path).parent / str(found.pop()))


def read_pairs(
    path: str, manifest: str, utterances: list[Utterance], kinds: Sequence[str] | None
) -> list[Pair]:
    """Pairs of the wanted kinds (None: all), in the order of the file.

    Args:
        utterances: of `manifest`.

    Raises:
        UserErrors: lines without id, chosen or rejected, equal captions, clips that are not in the manifest.
        UserError: the file is empty, or holds no pair of a wanted kind.
    """
    by_id = {u.id: u for u in utterances}
    errors, pairs, there = [], [], set()
    for number, row in enumerate(read_jsonl(path), 1):
        texts = [row.get(name) for name in ("id", "chosen", "rejected")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            errors.append(
                f'{path}:{number}: "id", "chosen" and "rejected" must be text; run `aligncap pairs`'
            )
        elif texts[1] == texts[2]:
            errors.append(f"{path}:{number}: chosen and rejected are the same caption; delete the line")
        elif texts[0] not in by_id:
            errors.append(f"{path}:{number}: id {texts[0]!r} is not in {manifest}; name its manifest")
        else:
            there.add(str(row.get("kind")))
            if kinds is None or row.get("kind") in kinds:
                pairs.append(Pair(by_id[str(texts[0])], str(texts[1]), str(texts[2]), number))
    if errors:
        raise UserErrors(errors)
    if missing := set(kinds or ()) - there:
        raise UserError(
            f"{path}: no pair of kind {', '.join(sorted(missing))}; it holds {', '.join(sorted(there))}"
        )
    if not pairs:
        raise UserError(f"{path}: holds no pair; see its report")
    return pairs


def reference_key(row: dict[str, Any], side: str, show_cues: bool) -> str:
    """Key of a reference log-probability: clip's hash, its cues where they are shown, caption's tokens.

    Args:
        row: of `PreferenceRows.rows`; side: "chosen_ids" or "rejected_ids".
    """
    return digest(row["key"], row[side], *([row["cues"]] if show_cues else []))


class PreferenceRows(Dataset):
    """One row a pair: the clip's inputs, chosen and rejected response tokens.

    With `reference` set, also the summed log-probabilities of both under the reference.
    """

    def __init__(
        self,
        pairs: list[Pair],
        keys: list[str],
        paths: dict[str, Path],
        processor: AlignCapProcessor,
        *,
        limit: int,
        features: TensorCache | None,
        voices: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.inputs = ClipInputs(processor, features, voices)
        self.reference: TensorCache | None = None
        tokenizer = processor.tokenizer
        self.rows: list[dict[str, Any]] = [
            {
                "key": key,
                "path": paths[key],
                "cues": measured_cues(pair.utterance.cue_words),
                "chosen_ids": response_ids(tokenizer, pair.chosen, limit),
                "rejected_ids": response_ids(tokenizer, pair.rejected, limit),
            }
            for pair, key in zip(pairs, keys, strict=True)
        ]

    def lengths(self) -> list[tuple[int, int]]:
        """Tokens of each pair's prompt and of its longer caption; no audio is read."""
        return [
            (
                self.inputs.prompt_length(r["key"], r["path"], r["cues"]),
                max(len(r["chosen_ids"]), len(r["rejected_ids"])),
            )
            for r in self.rows
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = self.rows[index]
        row = {
            **self.inputs(source["key"], source["path"], source["cues"]),
            "chosen_ids": source["chosen_ids"],
            "rejected_ids": source["rejected_ids"],
        }
        if self.reference is not None:
            for side in ("chosen", "rejected"):
                key = reference_key(source, f"{side}_ids", self.inputs.processor.show_cues)
                row[f"ref_{side}_logps"] = self.reference[key]
        return row


@dataclass
class PreferenceCollator:
    """Batches in trl's layout: all chosen rows, then all rejected rows. The audio stands once.

    A batch of one clip of two audio tokens (A), chosen [7, 8], rejected [9]:
        input_ids         [[5, A, A, 6, 7, 8], [5, A, A, 6, 9, 0]]
        attention_mask    [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
        completion_mask   [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0]]
        audio_frames      (1, frames, width), audio_frames_mask (1, frames)
        ref_chosen_logps  [-3.2], ref_rejected_logps [-5.1]: where the reference is cached
    """

    processor: AlignCapProcessor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        twice = rows + rows
        responses = [row[f"{side}_ids"] for side in ("chosen", "rejected") for row in rows]
        batch = join_prompt_and_response(
            [row["prompt_ids"] for row in twice], responses, self.processor.tokenizer.pad_token_id
        )
        batch["completion_mask"] = (batch.pop("labels") >= 0).long()
        batch.update(audio_batch(rows, self.processor))
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.stack([row[name] for row in rows]).reshape(-1)
        return batch
