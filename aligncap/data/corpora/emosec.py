"""EMOSEC (Chinese speech): `data.json` with five Chinese and five English captions a clip.

The layout of the release is not fixed anywhere public, so the usual spellings of its keys are accepted; a row
whose clip or captions cannot be told is an error that names the keys found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligncap.data.corpora.common import (
    Problem,
    Reading,
    by_stem,
    canonical,
    inside,
    not_the_corpus,
    read_json,
    sound_files,
)
from aligncap.data.manifest import Utterance
from aligncap.utils.errors import UserError

_AUDIO = ("audio", "wav", "path", "file", "filename", "audio_path", "wav_path", "id", "name")
_ENGLISH = ("captions_en", "caption_en", "en_captions", "en_caption", "en", "english")
_CHINESE = ("captions_zh", "caption_zh", "zh_captions", "zh_caption", "zh", "chinese")
_TEXT = ("transcript", "text", "transcription", "sentence")
_SPEAKER = ("speaker", "speaker_id", "spk")
_EMOTION = ("emotion", "label", "emo")


def read(folder: Path) -> Reading:
    """Clips with their English captions; the Chinese ones are kept under `extra["captions_zh"]`."""
    found = sorted(folder.rglob("data.json"))
    if not found:
        raise not_the_corpus("emosec", folder, "data.json and the clips that it names")
    clips = by_stem(sound_files(folder))
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for number, row in enumerate(_rows(read_json(found[0]), found[0]), 1):
        name = _first(row, _AUDIO)
        english, chinese = _texts(row, _ENGLISH), _texts(row, _CHINESE)
        both = row.get("captions", row.get("caption"))
        if isinstance(both, dict):
            english, chinese = _texts(both, _ENGLISH), _texts(both, _CHINESE)
        if name is None or not (english or chinese):
            raise UserError(
                f"{found[0]}: entry {number}: no clip or no captions under the keys known "
                f"(found {', '.join(row)}); rename them to audio, captions_en and captions_zh"
            )
        path = clips.get(Path(str(name).replace("\\", "/")).stem)
        if path is None:
            problems.append(Problem("missing", str(name)))
            continue
        speaker, emotion = _first(row, _SPEAKER), _first(row, _EMOTION)
        try:
            label = canonical(str(emotion)) if emotion is not None else None
        except KeyError as error:
            problems.append(Problem("label", f"{name}: {error.args[0]}"))
            label = None
        gender = str(row.get("gender", "")).lower()
        text = _first(row, _TEXT)
        utterances.append(
            Utterance(
                id=f"emosec-{path.stem}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="emosec",
                language="zh",
                speaker=f"emosec-{speaker}" if speaker is not None else None,
                gender={"f": "female", "female": "female", "m": "male", "male": "male"}.get(gender),
                transcript=str(text) if text is not None else None,
                emotion=label,
                captions=english or chinese,
                extra={"captions_zh": chinese} if english and chinese else {},
            )
        )
    if not utterances:
        raise not_the_corpus("emosec", folder, "the clips that data.json names")
    return utterances, problems


def _rows(data: Any, path: Path) -> list[dict[str, Any]]:
    if isinstance(data, dict) and len(data) == 1 and isinstance(next(iter(data.values())), list):
        data = next(iter(data.values()))
    if isinstance(data, dict) and all(isinstance(row, dict) for row in data.values()):
        data = [{"id": name, **row} for name, row in data.items()]
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise UserError(f"{path}: a list of clips is needed; copy it again from EMOSEC")
    return data


def _first(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)


def _texts(row: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """Captions under one of the keys, or numbered (`en_1`, `caption_en_2`)."""
    given = _first(row, keys)
    if given is None:
        given = [row[key] for key in sorted(row) if key.rstrip("0123456789").rstrip("_") in keys]
    return [
        str(text).strip() for text in (given if isinstance(given, list) else [given]) if str(text).strip()
    ]
