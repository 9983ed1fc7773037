"""nEMO (Polish): `samples/{speaker}_{emotion}_{sentence}.wav` and `data.tsv`."""

from __future__ import annotations

from pathlib import Path

from aligncap.data.corpora.common import (
    Problem,
    Reading,
    by_stem,
    inside,
    label,
    need_columns,
    not_the_corpus,
    read_table,
    sound_files,
)
from aligncap.data.manifest import Utterance


def read(folder: Path) -> Reading:
    """Rows of data.tsv whose clip is there in any sound format; the others are problems."""
    tables = sorted(folder.rglob("data.tsv"))
    if not tables:
        raise not_the_corpus("nemo", folder, "data.tsv beside samples/")
    rows = read_table(tables[0], delimiter="\t")
    need_columns(rows, {"file_id", "emotion", "raw_text", "speaker_id", "gender"}, tables[0])
    clips = by_stem(sound_files(folder))
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for row in rows:
        stem = Path(row["file_id"]).stem
        path = clips.pop(stem, None)
        if path is None:
            problems.append(Problem("missing", row["file_id"]))
            continue
        try:
            emotion = label("nemo", row["emotion"])
        except KeyError:
            problems.append(Problem("label", f'{row["file_id"]}: unknown emotion "{row["emotion"]}"'))
            continue
        utterances.append(
            Utterance(
                id=f"nemo-{stem}",
                root=str(folder),
                audio=inside(folder, path),
                corpus="nemo",
                language="pl",
                speaker=f"nemo-{row['speaker_id']}",
                gender=row["gender"] if row["gender"] in ("female", "male") else None,
                transcript=row["raw_text"],
                emotion=emotion,
                extra={"age": int(row["age"])} if row.get("age", "").isdigit() else {},
            )
        )
    problems += [Problem("name", f"{inside(folder, path)}: not in data.tsv") for path in clips.values()]
    if not utterances:
        raise not_the_corpus("nemo", folder, "clips named in data.tsv, such as samples/" + rows[0]["file_id"])
    return utterances, problems
