"""From manifest to training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from aligncap.audio.files import SAMPLE_RATE, info, load_audio
from aligncap.errors import Faults
from aligncap.io import file_sha256
from aligncap.manifest import Utterance, audio_path, read_manifest
from aligncap.models.processing_aligncap import AlignCapProcessor
from aligncap.prompts.acoustic import measured_cues
from aligncap.prompts.templates import response_ids, teacher_prompt
from aligncap.tensor_cache import TensorCache
from aligncap.training.teacher_cache import teacher_key


def read_captioned(path: str, need_p_act: bool) -> list[Utterance]:
    """Utterances with captions (and acoustic prompts).

    Raises:
        Faults: utterances without captions or acoustic prompts, all of them.
    """
    utterances = read_manifest(Path(path))
    faults = []
    for number, u in enumerate(utterances, 1):
        if not u.captions:
            faults.append(f"{path}:{number}: {u.id} has no captions; run `aligncap annotate` on it")
        elif need_p_act and len(u.p_act) != len(u.captions):
            faults.append(f"{path}:{number}: {u.id} has no acoustic prompts; run `aligncap clues` on it")
    if not utterances:
        faults.append(f"{path}: the manifest is empty")
    if faults:
        raise Faults(faults)
    return utterances


def refuse_special_tokens(path: str, texts: Iterable[tuple[int, str, Sequence[str]]], tokenizer: Any) -> None:
    """A caption or transcript that holds a control token would end a turn, or put audio where there is none.

    Args:
        texts: line of `path`, id and texts of each.

    Raises:
        Faults: every such text.
    """
    # Llama 3 lists its turns' marks among the added tokens alone.
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    special = [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if token.strip()]
    faults = [
        f"{path}:{number}: {name}: {token!r} in its texts is a control token of the LLM; take it out"
        for number, name, said in texts
        for token in special
        if any(token in text for text in said)
    ]
    if faults:
        raise Faults(faults)


def texts_of(utterances: list[Utterance]) -> list[tuple[int, str, list[str]]]:
    """What of each utterance the LLM reads or writes, for `refuse_special_tokens`."""
    return [(n, u.id, [u.transcript or "", *u.captions, *u.p_act]) for n, u in enumerate(utterances, 1)]


def audio_files(manifest: str, utterances: list[Utterance]) -> tuple[list[str], dict[str, Path]]:
    """Feature key of each utterance, and the file behind each key.

    Raises:
        Faults: files that are missing or have changed since `prepare`.
    """
    keys, paths, faults = [], {}, []
    for number, u in enumerate(utterances, 1):
        path = audio_path(Path(manifest), u)
        if not path.is_file():
            faults.append(f"{manifest}:{number}: {path}: no such file")
            continue
        key = file_sha256(path)
        if u.sha256 and u.sha256 != key:
            faults.append(
                f"{manifest}:{number}: {path}: has changed since `aligncap prepare`; prepare it again"
            )
        keys.append(key)
        paths[key] = path
    if faults:
        raise Faults(faults)
    return keys, paths


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
