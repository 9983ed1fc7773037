"""Corpora whose clips are listed in tables beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from aligncap.data.corpora.files import by_stem, canonical, read_json, read_table, read_text
from aligncap.data.corpora.registry import Corpus, CorpusFolder
from aligncap.data.manifest import Utterance
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row

_GENDERS = {"f": "female", "female": "female", "m": "male", "male": "male"}


@Corpus("nemo", "data.tsv beside samples/, with the clips that it names", language="pl")
def nemo(folder: CorpusFolder) -> Iterator[Utterance]:
    """nEMO: `samples/{speaker}_{emotion}_{sentence}.wav`, in any sound format, and `data.tsv`."""
    tables = sorted(folder.path.rglob("data.tsv"))
    columns = ("file_id", "emotion", "raw_text", "speaker_id", "gender")
    clips = by_stem(folder.sound_files()) if tables else {}
    for row in read_table(tables[0], "\t", columns) if tables else ():
        path = clips.pop(Path(row["file_id"]).stem, None)
        if path is None:
            folder.leave_out("missing", row["file_id"])
            continue
        yield folder.clip(
            path,
            speaker=row["speaker_id"],
            gender=_GENDERS.get(row["gender"]),
            transcript=row["raw_text"],
            emotion=row["emotion"],
            extra={"age": int(row["age"])} if row.get("age", "").isdigit() else {},
        )
    for path in clips.values():
        folder.leave_out("name", f"{folder.inside(path)}: not in data.tsv")


_MELD_GENDERS = {
    **dict.fromkeys(("Monica", "Phoebe", "Rachel"), "female"),
    **dict.fromkeys(("Chandler", "Joey", "Ross"), "male"),
}
_C1 = str.maketrans(
    {"\x91": "'", "\x92": "'", "\x93": '"', "\x94": '"', "\x85": "...", "\x96": "-", "\x97": "-"}
)


@Corpus("meld", "train_sent_emo.csv and train/dia0_utt0.wav")
def meld(folder: CorpusFolder) -> Iterator[Utterance]:
    """MELD: `train_sent_emo.csv` and `train/dia0_utt0.wav` (the films' sound), likewise dev and test.

    A clip's part is told by its folder, whose name holds the part's.
    """
    parts = ("train", "dev", "test")
    clips: dict[tuple[str, str], Path] = {}
    errors = []
    for path in folder.sound_files():
        match = re.fullmatch(r"(?:final_videos_test)?(dia\d+_utt\d+)", path.stem)
        folders = folder.inside(path.parent).lower()
        key = next((p for p in parts if p in folders), ""), match[1] if match else path.stem
        if key in clips:
            errors.append(f"{path}: same clip as {clips[key]}; leave one of them out")
        clips[key] = path
    if errors:
        raise UserErrors(errors)
    columns = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
    for part in parts:
        tables = sorted(folder.path.rglob(f"{part}_sent_emo.csv"))
        for row in read_table(tables[0], columns=columns) if tables else ():
            name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            found = clips.pop((part, name), None)
            if found is None:
                folder.leave_out("missing", f"{part}/{name}")
                continue
            yield folder.clip(
                found,
                name=f"{part}-{name}",
                speaker=row["Speaker"],
                gender=_MELD_GENDERS.get(row["Speaker"]),
                transcript=row["Utterance"].translate(_C1),
                emotion=row["Emotion"],
                extra={"part": part, "sentiment": row.get("Sentiment", "")},
            )
    for path in clips.values():
        folder.leave_out("name", f"{folder.inside(path)}: in no table")


_IEMOCAP_LABEL = re.compile(r"\[[\d.]+ - [\d.]+\]\t(Ses\S+)\t([a-z]{3})\t\[([\d., ]+)\]")
_IEMOCAP_WORDS = re.compile(r"(Ses\S+) \[[\d.]+-[\d.]+\]: (.*)")


@Corpus(
    "iemocap",
    "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt and "
    "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav",
)
def iemocap(folder: CorpusFolder) -> Iterator[Utterance]:
    """IEMOCAP: `Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav`, labels and transcripts.

    Where the annotators did not agree the emotion is left open.
    """
    labels: dict[str, tuple[str, list[float]]] = {}
    words: dict[str, str] = {}
    for table in sorted(folder.path.rglob("EmoEvaluation/Ses*.txt")):
        for name, code, scores in _IEMOCAP_LABEL.findall(read_text(table)):
            labels[name] = code, [float(score) for score in scores.split(",")]
    for table in sorted(folder.path.rglob("transcriptions/Ses*.txt")):
        lines = map(_IEMOCAP_WORDS.match, read_text(table).splitlines())
        words.update((line[1], line[2].strip()) for line in lines if line)
    paths = (p for p in folder.sound_files() if "sentences" in p.relative_to(folder.path).parts)
    clips = by_stem(paths)
    for name, (code, values) in labels.items():
        match = re.fullmatch(r"Ses0(\d)[FM]_\w+_([FM])\w*\d+", name)
        path = clips.pop(name, None)
        if match is None or path is None:
            folder.leave_out("missing" if match else "name", name)
            continue
        axes = zip(("valence", "activation", "dominance"), values, strict=False)
        yield folder.clip(
            path,
            speaker=f"{match[1]}{match[2]}",
            gender="female" if match[2] == "F" else "male",
            transcript=words.get(name),
            emotion=code,
            extra={"code": code, **dict(axes)},
        )
    for path in clips.values():
        folder.leave_out("name", f"{folder.inside(path)}: has no label")


@Corpus("secap", "fid2captions.json, text.txt, wav.scp and wav/", language="zh")
def secap(folder: CorpusFolder) -> Iterator[Utterance]:
    """SECap's test set: `wav.scp`, `text.txt` and `fid2captions.json`, a caption or several a clip.

    The paths in wav.scp are another machine's: clips are found by name.
    """
    tables = sorted(folder.path.rglob("fid2captions.json"))
    if not tables:
        return
    captions = read_json(tables[0])
    if not isinstance(captions, dict):
        raise UserError(f"{tables[0]}: an object of captions by clip is needed; copy it again from SECap")
    words = _secap_lines(tables[0].with_name("text.txt"))
    listed = _secap_lines(tables[0].with_name("wav.scp"))
    clips = by_stem(folder.sound_files())
    for name, given in captions.items():
        path = clips.get(_stem(listed.get(name, name))) or clips.get(Path(name).stem)
        if path is None:
            folder.leave_out("missing", f"{name}: no clip")
        elif not (texts := _texts(given)):
            folder.leave_out("missing", f"{name}: empty caption")
        else:
            yield folder.clip(path, name=Path(name).stem, transcript=words.get(name), captions=texts)


def _secap_lines(path: Path) -> dict[str, str]:
    """Lines `name text`, separated by a space or a tab."""
    lines = read_text(path).splitlines() if path.is_file() else []
    return {
        name: rest[0] for name, *rest in (line.split(maxsplit=1) for line in lines if line.strip()) if rest
    }


def _stem(path: object) -> str:
    return Path(str(path).replace("\\", "/")).stem


def _texts(given: object) -> list[str]:
    texts = (str(text).strip() for text in (given if isinstance(given, list) else [given]))
    return [text for text in texts if text]


_EMOSEC_KEYS = {
    "audio": ("audio", "wav", "path", "file", "filename", "audio_path", "wav_path", "id", "name"),
    "english": ("captions_en", "caption_en", "en_captions", "en_caption", "en", "english"),
    "chinese": ("captions_zh", "caption_zh", "zh_captions", "zh_caption", "zh", "chinese"),
    "transcript": ("transcript", "text", "transcription", "sentence"),
    "speaker": ("speaker", "speaker_id", "spk"),
    "emotion": ("emotion", "label", "emo"),
}


@Corpus("emosec", "data.json and the clips that it names", language="zh")
def emosec(folder: CorpusFolder) -> Iterator[Utterance]:
    """EMOSEC: `data.json` with Chinese and English captions; the Chinese ones go to `extra["captions_zh"]`.

    The layout of the release is not fixed anywhere public, so the usual spellings of its keys are accepted; a
    row whose clip or captions cannot be told is an error that names the keys found.
    """
    tables = sorted(folder.path.rglob("data.json"))
    clips = by_stem(folder.sound_files()) if tables else {}
    for number, row in enumerate(_emosec_rows(tables[0]) if tables else (), 1):
        name = _first(row, "audio")
        both = row.get("captions", row.get("caption"))
        captions = both if isinstance(both, dict) else row
        english, chinese = (_emosec_captions(captions, language) for language in ("english", "chinese"))
        if name is None or not (english or chinese):
            raise UserError(
                f"{tables[0]}: entry {number}: no clip or no captions under the keys known "
                f"(found {', '.join(row)}); rename them to audio, captions_en and captions_zh"
            )
        path = clips.get(_stem(name))
        if path is None:
            folder.leave_out("missing", str(name))
            continue
        label = None
        if (emotion := _first(row, "emotion")) is not None:
            try:
                label = canonical(str(emotion))
            except KeyError as error:  # the captions are worth keeping
                folder.leave_out("label", f"{name}: {error.args[0]}")
        speaker, text = _first(row, "speaker"), _first(row, "transcript")
        yield folder.clip(
            path,
            speaker=str(speaker) if speaker is not None else None,
            gender=_GENDERS.get(str(row.get("gender", "")).lower()),
            transcript=str(text) if text is not None else None,
            emotion=label,
            captions=english or chinese,
            extra={"captions_zh": chinese} if english and chinese else {},
        )


def _emosec_rows(path: Path) -> list[Row]:
    data = read_json(path)
    if isinstance(data, dict) and len(data) == 1 and isinstance(next(iter(data.values())), list):
        data = next(iter(data.values()))
    if isinstance(data, dict) and all(isinstance(row, dict) for row in data.values()):
        data = [{"id": name, **row} for name, row in data.items()]
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise UserError(f"{path}: a list of clips is needed; copy it again from EMOSEC")
    return data


def _first(row: Row, what: str) -> object:
    return next((row[key] for key in _EMOSEC_KEYS[what] if row.get(key) not in (None, "")), None)


def _emosec_captions(row: Row, language: str) -> list[str]:
    """Captions under one of the keys, or numbered (`en_1`, `caption_en_2`)."""
    keys = _EMOSEC_KEYS[language]
    numbered = [row[key] for key in sorted(row) if key.rstrip("0123456789").rstrip("_") in keys]
    return _texts(next((row[key] for key in keys if row.get(key) not in (None, "")), numbered))


@Corpus("synthetic", "synthetic.jsonl beside the clips, or an empty folder to fill", makes_folder=True)
def synthetic(folder: CorpusFolder) -> Iterator[Utterance]:
    """Synthetic speech; an absent or empty folder is filled first."""
    from aligncap.data.synthetic import speech

    if not folder.path.exists() or not any(folder.path.iterdir()):
        speech.make_speech(folder.path)
    yield from speech.read_speech(folder.path)
