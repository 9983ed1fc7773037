"""`aligncap senses ck`: CK+48, the extended Cohn-Kanade pictures cut to 48 x 48, as a file of moments."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from aligncap.senses.moments import label_of
from aligncap.utils.errors import UserError, natural
from aligncap.utils.io import Row, write_jsonl
from aligncap.utils.options import Config, NaturalInt, option

_LEFT_OUT = "contempt"  # none of the seven


@dataclass
class CKConfig(Config):
    """Moments of CK+48 (folders of labels that hold `S010_004_00000017.png`: subject, sequence, frame).

    A moment is a sequence, its pictures the last frames of it; the speaker is the subject. It has no neutral
    faces, and contempt is left out and counted. With --dev and --test so many subjects, the last in natural
    order, go into files of their own beside it, ck-dev.jsonl and ck-test.jsonl.

    Examples:
        aligncap senses ck corpora/faces/CK+48 --out ck.jsonl
        aligncap senses ck corpora/faces/CK+48 --dev 16 --test 36 --out ck.jsonl
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str = option(help="Folder of CK+48.")
    out: str = option(help="File of moments to write.")
    dev: NaturalInt = option(0, "Subjects in a file of their own, to choose by.")
    test: NaturalInt = option(0, "Subjects in a file of their own, to measure on.")


def run_ck(config: CKConfig) -> int:
    """`aligncap senses ck`. Raises UserError: the folder is not CK+48."""
    folder, out = Path(config.folder), Path(config.out)
    sequences: dict[tuple[str, str, str], list[Path]] = defaultdict(list)
    left = 0
    for path in sorted(folder.glob("*/S*_*_*.png"), key=lambda p: natural(p.name)):
        subject, sequence, _ = path.stem.split("_", 2)
        if path.parent.name == _LEFT_OUT:
            left += 1
        elif label := label_of(path.parent.name):
            sequences[subject, sequence, label].append(path)
        else:
            raise UserError(f"{path.parent}: {path.parent.name!r} is no label of CK+48")
    if not sequences:
        raise UserError(f"{folder}: holds no LABEL/S010_004_00000017.png, so it is not CK+48")
    root = os.path.relpath(folder.resolve(), out.resolve().parent)
    rows: list[Row] = [
        {
            "id": f"ck-{subject}-{sequence}",
            "root": root,
            "pictures": [path.relative_to(folder).as_posix() for path in paths],
            "corpus": "ck",
            "speaker": f"ck-{subject}",
            "emotion": label,
        }
        for (subject, sequence, label), paths in sorted(sequences.items())
    ]
    subjects = sorted({str(row["speaker"]) for row in rows}, key=natural)
    if config.dev + config.test >= len(subjects):
        raise UserError(f"{folder}: {len(subjects)} subjects; dev and test leave none to train on")
    first = len(subjects) - config.dev - config.test
    parts = {
        "": subjects[:first],
        "-dev": subjects[first : first + config.dev],
        "-test": subjects[first + config.dev :],
    }
    for name, own in parts.items():
        if own:
            part = [row for row in rows if row["speaker"] in own]
            path = out.with_stem(out.stem + name)
            write_jsonl(path, part)
            pictures = sum(len(row["pictures"]) for row in part)
            print(f"{path}: {len(part)} moments of {len(own)} subjects, {pictures} pictures")
    print(f"left out: {left} pictures of {_LEFT_OUT}, which is none of the seven")
    return 0
