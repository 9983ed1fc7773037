"""SECap's test set (Chinese): `wav.scp`, `text.txt` and `fid2captions.json`, a caption or several a clip."""

from __future__ import annotations

from pathlib import Path

from aligncap.data.corpora.common import (
    Problem,
    Reading,
    by_stem,
    inside,
    not_the_corpus,
    read_json,
    read_text,
    sound_files,
)
from aligncap.data.manifest import Utterance
from aligncap.utils.errors import UserError


def read(folder: Path) -> Reading:
    """Clips that have a caption. The paths in wav.scp are another machine's: clips are found by name."""
    found = sorted(folder.rglob("fid2captions.json"))
    if not found:
        raise not_the_corpus("secap", folder, "fid2captions.json, text.txt, wav.scp and wav/")
    captions = read_json(found[0])
    if not isinstance(captions, dict):
        raise UserError(f"{found[0]}: an object of captions by clip is needed; copy it again from SECap")
    words = _pairs(found[0].with_name("text.txt"))
    listed = _pairs(found[0].with_name("wav.scp"))
    clips = by_stem(sound_files(folder))
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for name, given in captions.items():
        stem = Path(str(listed.get(name, name)).replace("\\", "/")).stem
        path = clips.get(stem) or clips.get(Path(name).stem)
        texts = [str(c).strip() for c in (given if isinstance(given, list) else [given]) if str(c).strip()]
        if path is None or not texts:
            problems.append(
                Problem("missing", f"{name}: " + ("no clip" if path is None else "empty caption"))
            )
            continue
        utterances.append(
            Utterance(
                id=f"secap-{Path(name).stem}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="secap",
                language="zh",
                transcript=words.get(name),
                captions=texts,
            )
        )
    if not utterances:
        raise not_the_corpus("secap", folder, "the clips that fid2captions.json names")
    return utterances, problems


def _pairs(path: Path) -> dict[str, str]:
    """Lines `name text`, separated by a space or a tab."""
    if not path.is_file():
        return {}
    cut = (line.strip().split(maxsplit=1) for line in read_text(path).splitlines())
    return {pair[0]: pair[1] for pair in cut if len(pair) == 2}
