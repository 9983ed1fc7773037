"""From pairs.jsonl to training rows, and to batches of chosen and rejected captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from aligncap.errors import Faults, UserError
from aligncap.io import read_jsonl
from aligncap.manifest import Utterance
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.prompts.acoustic import measured_cues
from aligncap.prompts.templates import response_ids
from aligncap.tensor_cache import TensorCache, digest
from aligncap.training.collators import audio_batch, join_prompt_and_response
from aligncap.training.examples import ClipInputs


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
        Faults: lines without id, chosen or rejected, equal captions, clips that are not in the manifest.
        UserError: the file is empty, or holds no pair of a wanted kind.
    """
    by_id = {u.id: u for u in utterances}
    faults, pairs, there = [], [], set()
    for number, row in enumerate(read_jsonl(path), 1):
        texts = [row.get(name) for name in ("id", "chosen", "rejected")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            faults.append(
                f'{path}:{number}: "id", "chosen" and "rejected" must be text; run `aligncap pairs`'
            )
        elif texts[1] == texts[2]:
            faults.append(f"{path}:{number}: chosen and rejected are the same caption; delete the line")
        elif texts[0] not in by_id:
            faults.append(f"{path}:{number}: id {texts[0]!r} is not in {manifest}; name its manifest")
        else:
            there.add(str(row.get("kind")))
            if kinds is None or row.get("kind") in kinds:
                pairs.append(Pair(by_id[str(texts[0])], str(texts[1]), str(texts[2]), number))
    if faults:
        raise Faults(faults)
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
