"""SECap's published outputs as caption files, one for each of its five captions a clip, and a floor.

    python scripts/secap_outputs.py SECAP/secap_outputs.txt runs/secap/clued.jsonl --out runs/secap/published

The floor, constant.jsonl, says one caption of every clip of a group: that of the other groups which is most
like all of theirs (ROUGE-L). They are then systems of a report, SECap's as five seeds of one:

    aligncap evaluate ours.jsonl --references runs/secap/clued.jsonl --out report \
        --system SECap=runs/secap/published/1.jsonl SECap=runs/secap/published/2.jsonl … \\
        constant=runs/secap/published/constant.jsonl
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aligncap.data.corpora.files import read_text
from aligncap.data.manifest import Utterance, read_manifest
from aligncap.evaluation.metrics.ngram import rouge_l
from aligncap.evaluation.metrics.tokens import tokenize
from aligncap.utils.errors import UserError
from aligncap.utils.io import write_jsonl


def published(path: Path) -> dict[str, dict[str, str]]:
    """Captions by clip and by number, "1" to "5", of blocks of lines `file: …`, `result: …`, `result2: …`.

    Raises:
        UserError: the file has no such blocks.
    """
    found: dict[str, dict[str, str]] = {}
    for block in re.split(r"\n\s*\n", read_text(path)):
        lines = dict(re.findall(r"(?m)^(\w+): *(.*)$", block))
        if "file" in lines:
            own = {key[6:] or "1": text.strip() for key, text in lines.items() if key.startswith("result")}
            found[Path(lines["file"]).stem] = own
    if not found:
        raise UserError(f"{path}: no blocks of `file:` and `result:` lines; give SECap's own file of outputs")
    return found


def constants(clips: Sequence[Utterance]) -> dict[str, str]:
    """For each group (`speaker`) the caption of the other groups with the highest mean ROUGE-L to theirs."""
    chosen = {}
    for group in sorted({str(u.speaker) for u in clips}):
        others = Counter(caption for u in clips if u.speaker != group for caption in u.captions)
        texts = [tokenize(caption, "characters") for caption in others]
        weights = list(others.values())
        means = [
            np.average(rouge_l([said] * len(texts), [[t] for t in texts]), weights=weights) for said in texts
        ]
        chosen[group] = list(others)[int(np.argmax(means))] if texts else ""
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outputs", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for 1.jsonl to 5.jsonl and constant.jsonl"
    )
    args = parser.parse_args()
    try:
        captions, clips = published(args.outputs), read_manifest(args.manifest)
        stems = {u.id: Path(u.audio).stem for u in clips}
        if missing := [name for name, stem in stems.items() if stem not in captions]:
            raise UserError(f"{args.outputs}: no outputs for {len(missing)} clips, such as {missing[0]}")
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    same = constants(clips)
    for number in (*sorted({n for own in captions.values() for n in own}), "constant"):
        said = [
            same[str(u.speaker)] if number == "constant" else captions[stems[u.id]].get(number, "")
            for u in clips
        ]
        rows = [{"id": u.id, "audio": u.audio, "caption": text} for u, text in zip(clips, said, strict=True)]
        write_jsonl(args.out / f"{number}.jsonl", rows)
        print(f"{args.out / f'{number}.jsonl'}: {len(rows)} captions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
