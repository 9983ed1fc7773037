"""Corpora whose files' names say all, or nearly all, that is known of a clip."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aligncap.data.corpora.files import read_table, read_text
from aligncap.data.corpora.registry import Corpus, CorpusFolder
from aligncap.data.manifest import Utterance
from aligncap.utils.io import Row, load_data

_ESD_CLIP = r"(?P<speaker>00(?:0[1-9]|1\d|20))_\d{6}"


def _known(name: str) -> Row:
    """Sentences by code, and a pattern of the women among the speakers, of data/corpora.yaml."""
    found: Row = load_data("corpora.yaml")[name]
    return found


def _gender(name: str, speaker: str) -> str:
    return "female" if re.fullmatch(_known(name)["women"], speaker) else "male"


@Corpus("ravdess", "Actor_01/03-01-01-01-01-01-01.wav (or .flac)")
def ravdess(folder: CorpusFolder) -> Iterator[Utterance]:
    """RAVDESS, speech part: `Actor_XX/03-01-EE-II-SS-RR-AA.wav`; songs and films' sound are left out."""
    pattern = r"03-01-(?P<emotion>0[1-8])-(0[12])-(0[12])-(0[12])-(?P<actor>\d\d)"
    for path, name in folder.match(pattern):
        emotion, intensity, sentence, repetition, actor = name.groups()
        yield folder.clip(
            path,
            speaker=actor,
            gender=_gender("ravdess", actor),
            transcript=_known("ravdess")["sentences"][sentence],
            emotion=emotion,
            intensity="strong" if intensity == "02" else "normal",
            extra={"repetition": int(repetition)},
        )
    for i, problem in enumerate(folder.problems):
        if re.search(r"(^|/)0[123]-0[12](-\d\d){5}\.\w+$", problem.what):
            why = f"{problem.what}: a song or a film's sound, speech is 03-01-..."
            folder.problems[i] = problem._replace(what=why)


@Corpus("crema-d", "AudioWAV/1001_DFA_ANG_XX.wav")
def crema_d(folder: CorpusFolder) -> Iterator[Utterance]:
    """CREMA-D: `AudioWAV/1001_DFA_ANG_XX.wav`; genders from `VideoDemographics.csv` where it is there."""
    tables = [*folder.path.rglob("VideoDemographics.csv"), *folder.path.parent.glob("VideoDemographics.csv")]
    rows = read_table(tables[0]) if tables else []
    genders = {row.get("ActorID"): row.get("Sex", "").lower() for row in rows}
    sentences = _known("crema-d")["sentences"]
    for path, name in folder.match(rf"(1\d{{3}})_({'|'.join(sentences)})_([A-Z]{{3}})_(LO|MD|HI|XX|X)"):
        actor, sentence, emotion, level = name.groups()
        listed = genders.get(actor)
        yield folder.clip(
            path,
            speaker=actor,
            gender=listed if listed in ("female", "male") else _gender("crema-d", actor),
            transcript=sentences[sentence],
            emotion=emotion,
            # LO is weaker than the manifest's scale and stays in extra
            intensity={"MD": "normal", "HI": "strong"}.get(level),
            extra={"level": level},
        )


@Corpus("emodb", "wav/03a01Fa.wav", language="de")
def emodb(folder: CorpusFolder) -> Iterator[Utterance]:
    """EmoDB (Berlin): `wav/03a01Fa.wav`, speaker, sentence, emotion, version."""
    sentences = _known("emodb")["sentences"]
    for path, name in folder.match(rf"(03|08|09|1[0-6])({'|'.join(sentences)})([WLEAFTN])([a-z])"):
        speaker, sentence, emotion, version = name.groups()
        yield folder.clip(
            path,
            speaker=speaker,
            gender=_gender("emodb", speaker),
            transcript=sentences[sentence],
            emotion=emotion,
            extra={"version": version},
        )


@Corpus("esd", "0011/Angry/0011_000351.wav")
def esd(folder: CorpusFolder) -> Iterator[Utterance]:
    """ESD: `0011/Angry/0011_000351.wav`, or in train/, evaluation/ or test/ below it, and `0011/0011.txt`.

    Speakers 0001 to 0010 are Chinese, the rest English.
    """
    transcripts = _esd_transcripts(folder)
    for path, name in folder.match(
        rf"(?P<emotion>Angry|Happy|Neutral|Sad|Surprise)/(?:([^/]+)/)?{_ESD_CLIP}"
    ):
        speaker, part = name["speaker"], name[2]
        yield folder.clip(
            path,
            speaker=speaker,
            language="zh" if int(speaker) <= 10 else "en",
            gender=_gender("esd", speaker),
            transcript=transcripts.get(path.stem),
            emotion=name["emotion"],
            extra={"part": part} if part in ("train", "evaluation", "test") else {},
        )


def _esd_transcripts(folder: CorpusFolder) -> dict[str, str]:
    """Lines `0011_000001<tab>text<tab>emotion`; some speakers' files have spaces in place of tabs."""
    found: dict[str, str] = {}
    for path in sorted(folder.path.rglob("00[0-2][0-9].txt")):
        for line in read_text(path).splitlines():
            name, _, rest = line.strip().partition("\t" if "\t" in line else " ")
            text = re.sub(r"[\t ]+\S+$", "", rest.strip())  # the last column is the emotion
            if re.fullmatch(_ESD_CLIP, name.strip()) and text:
                found[name.strip()] = text
    return found


@Corpus("jl-corpus", "female1_angry_10a_1.wav")
def jl_corpus(folder: CorpusFolder) -> Iterator[Utterance]:
    """JL-Corpus (New Zealand English): `female1_angry_10a_1.wav`, its words in a .txt of the same name."""
    for path, name in folder.match(r"((female|male)[12])_([a-z]+)_(\d+[ab])_([12])"):
        speaker, gender, emotion, sentence, repetition = name.groups()
        words = path.with_suffix(".txt")
        yield folder.clip(
            path,
            speaker=speaker,
            gender=gender,
            transcript=read_text(words).strip() or None if words.is_file() else None,
            emotion=emotion,
            extra={"sentence": sentence, "repetition": int(repetition), "code": emotion},
        )


@Corpus("savee", "DC_a01.wav or AudioData/DC/a01.wav")
def savee(folder: CorpusFolder) -> Iterator[Utterance]:
    """SAVEE: four British men, `DC_a01.wav` or `AudioData/DC/a01.wav`."""
    for path, name in folder.match(r"(DC|JE|JK|KL)[_/](sa|su|[adfhn])(\d\d)"):
        speaker, emotion, number = name.groups()
        clip = f"{speaker}_{emotion}{number}"
        yield folder.clip(path, name=clip, speaker=speaker, gender="male", emotion=emotion)


@Corpus("tess", "OAF_angry/OAF_back_angry.wav")
def tess(folder: CorpusFolder) -> Iterator[Utterance]:
    """TESS: two Canadian women, `OAF_angry/OAF_back_angry.wav`, "Say the word back"."""
    # One clip of the release is named OA_bite_neutral.
    for path, name in folder.match(r"(OAF?|YAF)_([A-Za-z]+)_(angry|disgust|fear|happy|neutral|ps|sad)"):
        speaker, word, emotion = name.groups()
        speaker = "YAF" if speaker == "YAF" else "OAF"
        yield folder.clip(
            path,
            name=f"{speaker}_{word}_{emotion}",
            speaker=speaker,
            gender="female",
            transcript=f"Say the word {word.lower()}.",
            emotion=emotion,
        )
