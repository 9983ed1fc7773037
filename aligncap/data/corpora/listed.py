"""Corpora whose clips are listed in tables beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from aligncap.data.corpora.files import by_name, canonical, read_json, read_table, read_text
from aligncap.data.corpora.registry import Corpus, CorpusFolder
from aligncap.data.manifest import Utterance
from aligncap.text.voice_tags import tag_caption
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, load_data

_DATA = load_data("corpora.yaml")
_GENDERS: dict[str, str] = _DATA["genders"]


@Corpus("nemo", "data.tsv beside samples/, with the clips that it names", language="pl")
def nemo(folder: CorpusFolder) -> Iterator[Utterance]:
    """nEMO: `samples/{speaker}_{emotion}_{sentence}.wav`, in any sound format, and `data.tsv`."""
    if not (tables := sorted(folder.path.rglob("data.tsv"))):
        return
    rows = read_table(tables[0], "\t", ("file_id", "emotion", "raw_text", "speaker_id", "gender"))
    for path, row in folder.pair((row["file_id"], row) for row in rows):
        yield folder.clip(
            path,
            speaker=row["speaker_id"],
            gender=_GENDERS.get(row["gender"]),
            transcript=row["raw_text"],
            emotion=row["emotion"],
            extra={"age": int(row["age"])} if row.get("age", "").isdigit() else {},
        )


_C1 = str.maketrans(
    {"\x91": "'", "\x92": "'", "\x93": '"', "\x94": '"', "\x85": "...", "\x96": "-", "\x97": "-"}
)


@Corpus("meld", "train_sent_emo.csv and train/dia0_utt0.wav")
def meld(folder: CorpusFolder) -> Iterator[Utterance]:
    """MELD: `train_sent_emo.csv` and `train/dia0_utt0.wav` (the films' sound), likewise dev and test.

    A clip's part is told by its folder, whose name holds the part's.
    """
    parts = ("train", "dev", "test")

    def name_of(path: Path) -> str:
        folders = folder.inside(path.parent).lower()
        part = next((part for part in parts if part in folders), "")
        return f"{part}/{path.stem.removeprefix('final_videos_test')}"

    columns = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
    rows: list[tuple[str, dict[str, str]]] = []
    for part in parts:
        tables = sorted(folder.path.rglob(f"{part}_sent_emo.csv"))
        for row in read_table(tables[0], columns=columns) if tables else ():
            name = f"{part}/dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            rows.append((name, row | {"name": name, "part": part}))
    for path, row in folder.pair(rows, name_of):
        yield folder.clip(
            path,
            name=row["name"].replace("/", "-"),
            speaker=row["Speaker"],
            gender=_DATA["meld_genders"].get(row["Speaker"]),
            transcript=row["Utterance"].translate(_C1),
            emotion=row["Emotion"],
            extra={"part": row["part"], "sentiment": row.get("Sentiment", "")},
        )


_IEMOCAP_LABEL = re.compile(
    r"\[[\d.]+ - [\d.]+\]\t(Ses0(\d)[FM]_\w+_([FM])\w*\d+)\t([a-z]{3})\t\[([\d., ]+)\]"
)
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
    tables = sorted(folder.path.rglob("EmoEvaluation/Ses*.txt"))
    labels = {found[1]: found for table in tables for found in _IEMOCAP_LABEL.finditer(read_text(table))}
    words: dict[str, str] = {}
    for table in sorted(folder.path.rglob("transcriptions/Ses*.txt")):
        lines = map(_IEMOCAP_WORDS.match, read_text(table).splitlines())
        words.update((line[1], line[2].strip()) for line in lines if line)
    for path, (name, session, sex, code, scores) in folder.pair(
        ((name, found.groups()) for name, found in labels.items()), inside="sentences"
    ):
        axes = zip(("valence", "activation", "dominance"), map(float, scores.split(",")), strict=False)
        yield folder.clip(
            path,
            speaker=f"{session}{sex}",
            gender="female" if sex == "F" else "male",
            transcript=words.get(name),
            emotion=code,
            extra={"code": code, **dict(axes)},
        )


@Corpus("secap", "fid2captions.json, text.txt, wav.scp and wav/", language="zh")
def secap(folder: CorpusFolder) -> Iterator[Utterance]:
    """SECap's test set: `wav.scp`, `text.txt` and `fid2captions.json`, a caption or several a clip.

    The paths in wav.scp are another machine's: clips are found by name. The group in a name, such as
    `tx_emotion_002`, is the nearest that there is to a speaker.
    """
    tables = sorted(folder.path.rglob("fid2captions.json"))
    if not tables:
        return
    captions = read_json(tables[0])
    if not isinstance(captions, dict):
        raise UserError(f"{tables[0]}: an object of captions by clip is needed; copy it again from SECap")
    words = _named_lines(tables[0].with_name("text.txt"))
    listed = _named_lines(tables[0].with_name("wav.scp"))
    clips = by_name(folder.sound_files())
    for name, given in captions.items():
        path = clips.get(_stem(str(listed.get(name, name)))) or clips.get(Path(name).stem)
        if path is None:
            folder.leave_out("missing", f"{name}: no clip")
        elif not (texts := _texts(given)):
            folder.leave_out("missing", f"{name}: empty caption")
        else:
            group = re.match(r"tx_emotion_\d{3}|tx_[a-z]+_\d{2}", Path(name).stem)
            yield folder.clip(
                path,
                name=Path(name).stem,
                speaker=group[0] if group else None,
                transcript=words.get(name),
                captions=texts,
            )


def _named_lines(path: Path) -> dict[str, str]:
    """Lines `name text`, separated by a space or a tab."""
    lines = read_text(path).splitlines() if path.is_file() else []
    return {
        name: rest[0] for name, *rest in (line.split(maxsplit=1) for line in lines if line.strip()) if rest
    }


def _stem(path: str) -> str:
    return Path(path.replace("\\", "/")).stem


def _texts(given: object) -> list[str]:
    texts = (str(text).strip() for text in (given if isinstance(given, list) else [given]))
    return [text for text in texts if text]


@Corpus("emosec", "data.json and the clips that it names", language="zh")
def emosec(folder: CorpusFolder) -> Iterator[Utterance]:
    """EMOSEC: `data.json` with Chinese and English captions; the Chinese ones go to `extra["captions_zh"]`.

    The layout of the release is not fixed anywhere public, so the usual spellings of its keys are accepted; a
    row whose clip or captions cannot be told is an error that names the keys found.
    """
    tables = sorted(folder.path.rglob("data.json"))
    clips = by_name(folder.sound_files()) if tables else {}
    for number, row in enumerate(_emosec_rows(tables[0]) if tables else (), 1):
        told = {
            what: str(row[key])
            for what in ("audio", "speaker", "transcript", "emotion")
            for key in reversed(_DATA["emosec"][what])
            if row.get(key) not in (None, "")
        }
        both = row.get("captions", row.get("caption"))
        captions = both if isinstance(both, dict) else row
        english, chinese = (_emosec_captions(captions, language) for language in ("english", "chinese"))
        if "audio" not in told or not (english or chinese):
            raise UserError(
                f"{tables[0]}: entry {number}: no clip or no captions under the keys known "
                f"(found {', '.join(row)}); rename them to audio, captions_en and captions_zh"
            )
        if (path := clips.get(_stem(told["audio"]))) is None:
            folder.leave_out("missing", told["audio"])
            continue
        label = None
        try:
            label = canonical(told["emotion"]) if "emotion" in told else None
        except KeyError as error:  # the captions are worth keeping
            folder.leave_out("label", f"{told['audio']}: {error.args[0]}")
        yield folder.clip(
            path,
            speaker=told.get("speaker"),
            gender=_GENDERS.get(str(row.get("gender", "")).lower()),
            transcript=told.get("transcript"),
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


def _emosec_captions(row: Row, language: str) -> list[str]:
    """Captions under one of the keys, or numbered (`en_1`, `caption_en_2`)."""
    keys = _DATA["emosec"][language]
    numbered = [row[key] for key in sorted(row) if key.rstrip("0123456789").rstrip("_") in keys]
    return _texts(next((row[key] for key in keys if row.get(key) not in (None, "")), numbered))


@Corpus("librittsp", "LibriSpeech/train-clean-100/26/495/26-495-0000.flac and data/df1_en.csv")
def librittsp(folder: CorpusFolder) -> Iterator[Utterance]:
    """LibriTTS-P, clips as in LibriSpeech: each annotator's words for the speaker go to `extra["voice"]`, and
    make a caption.

    LibriSpeech's `SPEAKERS.TXT` and `*.trans.txt` say genders and transcripts where they are there.
    """
    voices: dict[str, dict[str, list[str]]] = {}
    places: dict[str, str] = {}  # of the words for speakers of whom no clip was found yet
    errors = []
    for table in sorted(folder.path.rglob("df[123]_en.csv")):
        for number, line in enumerate(read_text(table).splitlines(), 1):
            speaker, _, rest = line.strip().partition("|")
            voice, words = voices.get(speaker, {}), [word.strip() for word in rest.split(",")]
            if speaker.isdecimal() and all(words) and table.stem[:3] not in voice:
                voices[speaker] = voice | {table.stem[:3]: words}
                places.setdefault(speaker, f"{table}:{number}")
            elif line.strip():
                needed = "one line speaker|word,word a speaker is needed"
                errors.append(f'{table}:{number}: {needed}, found "{line:.60}"; copy the table again')
    if errors:
        raise UserErrors(errors)
    sexes = (re.findall(r"(?m)^(\d+) *\| *([FM])", read_text(p)) for p in folder.path.rglob("SPEAKERS.TXT"))
    genders = {speaker: _GENDERS[sex.lower()] for found in sexes for speaker, sex in found}
    texts = {k: v for path in folder.path.rglob("*.trans.txt") for k, v in _named_lines(path).items()}
    pattern = r"(?P<part>[^/]+)/(?P<speaker>\d+)/(?P<chapter>\d+)/(?P=speaker)-(?P=chapter)-\d+"
    for path, name in folder.match(pattern) if voices else ():
        speaker, said = name["speaker"], texts.get(path.stem, "").capitalize() or None
        places.pop(speaker, None)
        if speaker in voices:
            extra = {"part": name["part"], "voice": voices[speaker]}
            gender = genders.get(speaker)
            told = [tag_caption(words) for words in voices[speaker].values()]
            yield folder.clip(
                path, speaker=speaker, gender=gender, transcript=said, captions=told, extra=extra
            )
        else:
            folder.leave_out("name", f"{folder.inside(path)}: speaker {speaker} is in no table")
    for speaker, place in places.items():
        folder.leave_out("missing", f"{place}: speaker {speaker} has no clip")


@Corpus("synthetic", "synthetic.jsonl beside the clips, or an empty folder to fill", makes_folder=True)
def synthetic(folder: CorpusFolder) -> Iterator[Utterance]:
    """Synthetic speech; an absent or empty folder is filled first."""
    from aligncap.data.synthetic import speech

    if not folder.path.exists() or not any(folder.path.iterdir()):
        speech.make_speech(folder.path)
    yield from speech.read_speech(folder.path)
