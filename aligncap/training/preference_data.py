"""Preference pairs as training rows, and the reference's log-probabilities of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration
from aligncap.models.precision import autocast
from aligncap.text.prompts import measured_cues
from aligncap.training.clips import Clips, read_clips
from aligncap.training.collators import Row, SpeechCollator
from aligncap.training.config import RunConfig
from aligncap.training.data import ClipInputs
from aligncap.training.responses import TokenLists, refuse_special_tokens, tokenize_responses
from aligncap.training.shared_prefix import score_responses
from aligncap.utils.distributed import ALONE, Group
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import read_jsonl
from aligncap.utils.tensor_cache import AUDIO_VERSION, TensorCache, digest, fill, fingerprint

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """Two captions of a clip, the first preferred.

    clip: the clip's place in its manifest; line: the pair's own in the pairs file.
    """

    clip: int
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
        raise UserError(f"{path}: names {len(found - {None})} manifests; name one with train_manifest")
    return str(Path(path).parent / str(found.pop()))


def read_pairs(path: str, clips: Clips, kinds: Sequence[str] | None) -> list[Pair]:
    """Pairs of the wanted kinds (None: all), in the order of the file.

    Raises:
        UserErrors: lines without id, chosen or rejected, equal captions, clips that are not in the manifest.
        UserError: the file is empty, or holds no pair of a wanted kind.
    """
    place = {u.id: i for i, u in enumerate(clips.utterances)}
    errors, pairs, there = [], [], set()
    for number, row in enumerate(read_jsonl(path), 1):
        texts = [row.get(name) for name in ("id", *SIDES)]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            errors.append(
                f'{path}:{number}: "id", "chosen" and "rejected" must be text; run `aligncap pairs`'
            )
        elif texts[1] == texts[2]:
            errors.append(f"{path}:{number}: chosen and rejected are the same caption; delete the line")
        elif texts[0] not in place:
            errors.append(f"{path}:{number}: id {texts[0]!r} is not in {clips.manifest}; name its manifest")
        else:
            there.add(str(row.get("kind")))
            if kinds is None or row.get("kind") in kinds:
                pairs.append(Pair(place[str(texts[0])], str(texts[1]), str(texts[2]), number))
    if errors:
        raise UserErrors(errors)
    if missing := set(kinds or ()) - there:
        raise UserError(
            f"{path}: no pair of kind {', '.join(sorted(missing))}; it holds {', '.join(sorted(there))}"
        )
    if not pairs:
        raise UserError(f"{path}: holds no pair; see its report")
    return pairs


@dataclass(frozen=True, eq=False)
class PreferenceDataset(Dataset[Row]):
    """One row a pair: the clip's inputs, chosen and rejected response tokens.

    places: of each pair's clip in the manifest; chosen, rejected: tokens of its captions. With `reference`
    (`cached_reference`) a row holds the summed log-probabilities of both under the reference too.
    """

    clips: Clips
    places: np.ndarray
    chosen: TokenLists
    rejected: TokenLists
    inputs: ClipInputs
    reference: TensorCache | None = None

    @classmethod
    def of(
        cls, path: str, pairs: Sequence[Pair], clips: Clips, inputs: ClipInputs, limit: int
    ) -> PreferenceDataset:
        """The rows of the pairs of the file `path`, captions of at most `limit` tokens.

        Raises:
            UserErrors: a caption holds a control token of the LLM.
            UserError: captions are too long, see `responses.tokenize_responses`.
        """
        tokenizer, half = inputs.processor.tokenizer, len(pairs)
        texts = ((p.line, clips.utterances[p.clip].id, (p.chosen, p.rejected)) for p in pairs)
        refuse_special_tokens(path, texts, tokenizer)
        captions = [p.chosen for p in pairs] + [p.rejected for p in pairs]
        remedy = "train the model that you start from with max_response_tokens"
        ids = list(tokenize_responses(tokenizer, captions, limit, path, remedy))
        places = np.array([p.clip for p in pairs])
        return cls(clips, places, TokenLists(ids[:half]), TokenLists(ids[half:]), inputs)

    @classmethod
    def from_pairs(
        cls, path: str | Path, inputs: ClipInputs, manifest: str | Path | None = None
    ) -> PreferenceDataset:
        """The pairs of a file that `aligncap pairs` wrote; `manifest`: of their clips, if they name none.

        Raises:
            UserError, UserErrors: the file, the manifest or its sound cannot be used.
        """
        named = None if manifest is None else str(manifest)
        clips = read_clips(manifest_of_pairs(str(path), named), captions=False)
        pairs = read_pairs(str(path), clips, None)
        return cls.of(str(path), pairs, clips, inputs, RunConfig.max_response_tokens)

    def lengths(self) -> np.ndarray:
        """(rows, 2): tokens of each pair's prompt and of its longer caption; no audio is read."""
        prompts = self.inputs.lengths(self.clips, self.places)
        return np.stack([prompts, np.maximum(self.chosen.lengths, self.rejected.lengths)], axis=1)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shards(self) -> np.ndarray | None:
        """As `SpeechDataset.shards`."""
        shards = self.clips.shards
        return None if shards is None or self.inputs.features is not None else shards[self.places]

    def responses(self, index: int) -> dict[str, list[int]]:
        """Tokens of both captions of a pair, by side."""
        return {"chosen": self.chosen[index], "rejected": self.rejected[index]}

    def key(self, index: int, response: list[int]) -> str:
        """Key of a reference log-probability: hash of the clip, caption, cues where they are shown."""
        place = self.places[index]
        cues = self.clips.utterances[place].cue_words
        shown = [measured_cues(cues)] if self.inputs.processor.show_cues else []
        return digest(self.clips.keys[place], response, *shown)

    def __getitem__(self, index: int) -> Row:
        row = self.inputs(self.clips, self.places[index])
        for side, ids in self.responses(index).items():
            row[f"{side}_ids"] = ids
            if self.reference is not None:
                row[f"ref_{side}_logps"] = self.reference[self.key(index, ids)]
        return row


@torch.no_grad()
def cached_reference(
    root: Path,
    model: AlignCapForConditionalGeneration,
    rows: PreferenceDataset,
    *,
    dtype: torch.dtype,
    batch: int = 16,
    group: Group = ALONE,
) -> TensorCache:
    """The filled cache of the reference's summed log-probability of every caption.

    Its key is a hash of all that can change it: the reference's weights, precision, the clip, prompt and
    caption.

    Args:
        model: the reference, which is the model that training starts from, without adapters.
    """
    inputs = rows.inputs
    description = {
        "kind": "reference log-probabilities",
        "model": fingerprint(model),
        "dtype": str(dtype),
        "audio_version": AUDIO_VERSION,
        "prompt": inputs.processor.prompt,
    }
    cache = TensorCache(root / f"reference-{digest(description)}", description)
    places: dict[str, tuple[int, list[int]]] = {}
    for index in range(len(rows)):
        for ids in rows.responses(index).values():
            places.setdefault(rows.key(index, ids), (index, ids))
    collate = SpeechCollator(inputs.processor)
    score_responses(model, shared_prefix=False)
    model.eval()

    def compute(keys: Sequence[str]) -> dict[str, Tensor]:
        chosen = [places[key] for key in keys]
        made = collate([inputs(rows.clips, rows.places[i]) | {"response_ids": ids} for i, ids in chosen])
        batch = {name: value.to(model.device) for name, value in made.items()}
        with autocast(model.device.type, dtype):
            output = model(**batch, fused_lm_head=True, use_cache=False)
        return {k: v.reshape(1).cpu() for k, v in zip(keys, output.log_probs.sum(1), strict=True)}

    fill(cache, sorted(places, key=lambda k: len(places[k][1])), compute, batch, "reference reads", group)
    return cache
