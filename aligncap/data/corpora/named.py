"""Corpora whose files' names say all, or nearly all, that is known of a clip."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from aligncap.data.corpora.files import read_table, read_text
from aligncap.data.corpora.registry import Corpus, CorpusFolder
from aligncap.data.manifest import Utterance
from aligncap.utils.io import load_data


def by_name(folder: CorpusFolder) -> Iterator[Utterance]:
    """What the file names say, by the pattern of the corpus in data/corpora.yaml."""
    known = load_data("corpora.yaml")["by_name"][folder.corpus]
    for path, found in folder.match(known["name"]):
        group = found.groupdict()
        yield folder.clip(
            path,
            name=known["clip"].format(**group) if "clip" in known else None,
            speaker=group["speaker"],
            gender="female" if re.fullmatch(known["women"], group["speaker"]) else "male",
            transcript=known.get("sentences", {}).get(group.get("sentence")),
            emotion=group["emotion"],
            intensity=known.get("intensities", {}).get(group.get("intensity")),
            extra={k: int(group[k]) if group[k].isdigit() else group[k] for k in known.get("extra", ())},
        )


def ravdess(folder: CorpusFolder) -> Iterator[Utterance]:
    """RAVDESS, speech part; songs and films' sound are left out."""
    yield from by_name(folder)
    for i, problem in enumerate(folder.problems):
        if re.search(r"(^|/)0[123]-0[12](-\d\d){5}\.\w+$", problem.what):
            why = f"{problem.what}: a song or a film's sound, speech is 03-01-..."
            folder.problems[i] = problem._replace(what=why)


def crema_d(folder: CorpusFolder) -> Iterator[Utterance]:
    """CREMA-D; genders from `VideoDemographics.csv` where it is there."""
    tables = [*folder.path.rglob("VideoDemographics.csv"), *folder.path.parent.glob("VideoDemographics.csv")]
    rows = read_table(tables[0]) if tables else []
    genders = {row.get("ActorID"): row.get("Sex", "").lower() for row in rows}
    for u in by_name(folder):
        listed = genders.get(str(u.speaker).removeprefix("crema-d-"))
        u.gender = listed if listed in ("female", "male") else u.gender
        yield u


def esd(folder: CorpusFolder) -> Iterator[Utterance]:
    """ESD: speakers 0001 to 0010 are Chinese, the rest English; transcripts are in `0011/0011.txt`.

    Their lines are `0011_000001<tab>text<tab>emotion`; some speakers' have spaces in place of tabs.
    """
    transcripts: dict[str, str] = {}
    for table in sorted(folder.path.rglob("00[0-2][0-9].txt")):
        for line in read_text(table).splitlines():
            name, _, rest = line.strip().partition("\t" if "\t" in line else " ")
            transcripts[name.strip()] = re.sub(r"[\t ]+\S+$", "", rest.strip())  # without the emotion
    for u in by_name(folder):
        path = folder.path / u.audio
        u.transcript = transcripts.get(path.stem) or None
        u.language = "zh" if path.stem < "0011" else "en"
        if path.parent.name in ("train", "evaluation", "test"):
            u.extra["part"] = path.parent.name
        yield u


def jl_corpus(folder: CorpusFolder) -> Iterator[Utterance]:
    """JL-Corpus (New Zealand English): a clip's words are in a .txt of the same name."""
    for u in by_name(folder):
        words = (folder.path / u.audio).with_suffix(".txt")
        u.transcript = read_text(words).strip() or None if words.is_file() else None
        yield u


def tess(folder: CorpusFolder) -> Iterator[Utterance]:
    """TESS: two Canadian women, "Say the word back."."""
    for u in by_name(folder):
        u.speaker = f"{u.speaker}F"
        u.transcript = f"Say the word {u.id.split('_')[1].lower()}."
        yield u


_READERS: dict[str, Callable[[CorpusFolder], Iterable[Utterance]]] = {
    "ravdess": ravdess,
    "crema-d": crema_d,
    "esd": esd,
    "jl-corpus": jl_corpus,
    "tess": tess,
}
for _name, _known in load_data("corpora.yaml")["by_name"].items():
    _corpus = Corpus(_name, _known["layout"], _known.get("language", "en"), _known.get("labels"))
    _corpus(_READERS.get(_name, by_name))
