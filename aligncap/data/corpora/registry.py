"""Corpora by name, and what their readers are given.

A reader turns a folder into utterances. This is a whole one:

    @Corpus("theatre", "f1/gioia-f1-03.wav", language="it", labels={"gioia": "happy", "ira": "angry"})
    def read(folder: CorpusFolder) -> Iterator[Utterance]:
        for path, name in folder.match(r"(?P<emotion>[a-z]+)-(?P<speaker>[fm]\d)-\d+"):
            gender = "female" if name["speaker"][0] == "f" else "male"
            yield folder.clip(path, speaker=name["speaker"], gender=gender, emotion=name["emotion"])

Once its module is imported, `prepare("theatre", ...)` knows it. An installed package whose entry points of
the group "aligncap.corpora" name the module adds the corpus to `aligncap prepare` too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from aligncap.data.corpora.files import by_name, canonical, sound_files
from aligncap.data.manifest import Utterance
from aligncap.utils.errors import UserError, natural, nearest
from aligncap.utils.io import load_data

T = TypeVar("T")

_VIDEO = (".mp4", ".avi", ".mkv", ".mov")


class Problem(NamedTuple):
    """Something in a corpus folder that gave no utterance."""

    kind: str  # "missing": listed without a file; "name": not understood; "label"; "audio": not decodable
    what: str


@dataclass
class CorpusFolder:
    """The folder that a reader reads, and what it leaves out."""

    path: Path
    corpus: str
    language: str = "en"
    columns: Mapping[str, str] = field(default_factory=dict)  # of a table of the user's own
    problems: list[Problem] = field(default_factory=list)

    def sound_files(self) -> list[Path]:
        """Sound files anywhere below, in natural order."""
        return sound_files(self.path)

    def inside(self, path: Path) -> str:
        """The path relative to the folder, with forward slashes."""
        return path.relative_to(self.path).as_posix()

    def leave_out(self, kind: str, what: str | Path) -> None:
        """Report something that gives no utterance; `kind` is one of `Problem`."""
        self.problems.append(Problem(kind, self.inside(what) if isinstance(what, Path) else what))

    def pair(
        self,
        rows: Iterable[tuple[str, T]],
        name_of: Callable[[Path], str] = lambda path: path.stem,
        *,
        inside: str = "",
    ) -> Iterator[tuple[Path, T]]:
        """Rows of a table, each with the clip that it names; rows and clips that stand alone are left out.

        Args:
            rows: (name of the clip, row); the name may be a path or have an ending.
            name_of: name of a sound file; that of the file without its ending.
            inside: a folder; sound files that do not lie in one of that name are none of the corpus's.
        """
        paths = self.sound_files()
        clips = by_name((p for p in paths if not inside or f"/{inside}/" in f"/{self.inside(p)}"), name_of)
        for name, row in rows:
            if path := clips.pop(name, None) or clips.pop(Path(name).stem, None):
                yield path, row
            else:
                self.leave_out("missing", name)
        for path in clips.values():
            self.leave_out("name", f"{self.inside(path)}: in no table")

    def match(self, pattern: str) -> Iterator[tuple[Path, re.Match[str]]]:
        """Sound files whose path ends in `pattern`, the ending such as .wav left out; others are left out.

        A pattern without a slash is the whole name of the file.
        """
        whole = re.compile(f"(?:.*/)?(?:{pattern})", re.DOTALL)
        for path in self.sound_files():
            if found := whole.fullmatch(path.parent.joinpath(path.stem).as_posix()):
                yield path, found
            else:
                self.leave_out("name", path)

    def clip(
        self, path: Path, *, name: str | None = None, speaker: str | None = None, **fields: Any
    ) -> Utterance:
        """The utterance of a sound file.

        Args:
            name: of the clip within the corpus; the file's own, without ending, when None.
            speaker: as the corpus names the person.
            fields: others of `Utterance`. `emotion` is in the corpus's own words, or a label; it is looked
                up when the corpus is read.
        """
        return Utterance(
            id=f"{self.corpus}-{name or path.stem}",
            root=str(self.path),
            audio=self.inside(path),
            corpus=self.corpus,
            speaker=f"{self.corpus}-{speaker}" if speaker is not None else None,
            **{"language": self.language} | fields,
        )


Reader = Callable[[CorpusFolder], Iterable[Utterance]]


@dataclass(frozen=True)
class Corpus:
    """Register the decorated reader under `name`.

    Args:
        layout: what the folder must hold, such as the path of a clip, for the error when it does not.
        language: of the clips that say no other, as a two-letter code.
        labels: the corpus's own words for emotions -> label of data/labels.yaml, or None for no label. When
            None, the map of that file is taken, or else labels and their aliases are understood.
        is_table: whether a single file can be given, and a map of its columns.
        makes_folder: whether the folder may be absent.
    """

    name: str
    layout: str
    language: str = "en"
    labels: Mapping[str, str | None] | None = None
    is_table: bool = False
    makes_folder: bool = False

    def __call__(self, read: Reader) -> Reader:
        _corpora[self.name] = self, read
        return read

    def label(self, code: str | None) -> str | None:
        """Label for the corpus's own word; a KeyError for one that it does not know."""
        labels = load_data("labels.yaml")["corpora"].get(self.name) if self.labels is None else self.labels
        if code is None or labels is None:
            return code and canonical(code)
        label: str | None = labels[code]
        return label


_corpora: dict[str, tuple[Corpus, Reader]] = {}


def corpora() -> list[str]:
    """Names of all corpora: the package's own, registered ones, and those of installed packages."""
    for point in entry_points(group="aligncap.corpora"):
        if point.name not in _corpora:
            point.load()
    return list(_corpora)


def read_corpus(
    name: str, folder: str | Path, columns: Mapping[str, str] | None = None
) -> tuple[list[Utterance], list[Problem]]:
    """Utterances of a corpus, with labels of data/labels.yaml, and what was left out.

    Raises:
        UserError: unknown corpus, no such folder, or not a folder of this corpus.
    """
    known = corpora()
    if name not in known:
        raise UserError(f'unknown corpus "{name}"{nearest(name, known)}; there are {", ".join(known)}')
    (found, read), path = _corpora[name], Path(folder)
    if columns and not found.is_table:
        raise UserError(f"{name} has a fixed layout; columns are for csv and jsonl")
    if not path.exists() and not found.makes_folder:
        raise UserError(f"{path}: no such folder; give the folder of the {name} corpus")
    if path.is_file() and not found.is_table:
        raise UserError(f"{path}: is a file; give the folder of the {name} corpus, unpacked")
    source = CorpusFolder(path.resolve(), name, found.language, columns or {})
    utterances = []
    for u in read(source):
        try:
            u.emotion = found.label(u.emotion)
        except KeyError:
            source.leave_out("label", f'{u.audio}: unknown emotion "{u.emotion}"')
            continue
        utterances.append(u)
    if not utterances:
        raise _not_the_corpus(source, found.layout)
    return utterances, source.problems


def _not_the_corpus(folder: CorpusFolder, layout: str) -> UserError:
    """The error for a folder that is not the corpus: what was looked for and what is there."""
    names = [p.name + "/" * p.is_dir() for p in folder.path.iterdir() if not p.name.startswith(".")]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    shown = ", ".join(sorted(names, key=natural)[:5]) + more or "an empty folder"
    clips = folder.sound_files()
    example = f", such as {folder.inside(clips[0])}" if clips else ""
    films = 0 if clips else sum(path.suffix.lower() in _VIDEO for path in folder.path.rglob("*"))
    hint = f" and {films} films: take out their sound as .wav first, under the same names" if films else ""
    return UserError(
        f"{folder.path}: not the {folder.corpus} corpus: looked for {layout}; found {shown} "
        f"({len(clips)} sound files{example}){hint}. "
        "Nothing was written; give the folder that holds the corpus"
    )
