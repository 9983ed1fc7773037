"""What pairs are made from: the clips of a scored file, and every reason to refuse them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aligncap.errors import Faults, UserError
from aligncap.manifest import Utterance
from aligncap.naming import nearest
from aligncap.preferences.pair_kinds import KINDS, Clip, Text, emotion_named

CHOSEN = ("reference", "best")
JUDGED = ("best-worst", "reference-worst")
_SHOWN = 5  # clips named in a message


def read_clips(rows: Sequence[Mapping[str, Any]], utterances: Sequence[Utterance]) -> list[Clip]:
    """Clips in the order of the rows, their candidates best first.

    Raises:
        Faults: clips that the utterances do not hold.
        UserError: a judged reference that the manifest no longer has.
    """
    by_id = {u.id: u for u in utterances}
    missing = sorted({row["id"] for row in rows} - by_id.keys())
    if missing:
        raise Faults([f"the manifest does not hold {some(missing)}; name the right one with --manifest"])
    clips: dict[str, Clip] = {}
    judged: dict[tuple[str, int], float] = {}
    for row in rows:
        utterance = by_id[row["id"]]
        clip = clips.setdefault(
            row["id"], Clip(utterance, row["audio"], row.get("manifest"), emotion=emotion_named(utterance))
        )
        score = float(row["verdict"]["overall"])
        if row["kind"] == "candidate":
            clip.candidates.append(Text(row["caption"], score, False))
        else:
            judged[row["id"], row["reference"]] = score
            if row["caption"] != dict(enumerate(utterance.captions)).get(row["reference"]):
                raise UserError(
                    f"reference {row['reference']} of {row['id']!r} is not the manifest's; "
                    "the manifest has changed since: judge again"
                )
    for clip in clips.values():
        # a stable sort: of equal scores the first candidate stays first
        clip.candidates.sort(key=lambda text: -(text.score or 0.0))
        clip.references = [
            Text(caption, judged.get((clip.utterance.id, i)), True)
            for i, caption in enumerate(clip.utterance.captions)
        ]
    return list(clips.values())


def check_candidates(clips: Sequence[Clip], kinds: Sequence[str], chosen: str) -> None:
    """Raise UserError where the kinds need more candidates than there are."""
    needing = [k for k in kinds if k in JUDGED or chosen == "best"]
    if needing and not any(clip.candidates for clip in clips):
        raise UserError(f"no scored candidate, which {', '.join(needing)} need; run `aligncap candidates`")
    least = 2 if "best-worst" in kinds else 1 if needing else 0
    if not any(len(clip.candidates) >= least for clip in clips):
        raise UserError(
            f"{'best-worst' if least > 1 else needing[0]} needs at least {least} scored candidates a clip, "
            "which no clip has; ask `aligncap candidates` for more, or choose other --kinds"
        )


def one_judge(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The judge's name and versions; UserError where there are several judges."""
    judges = sorted({row["verdict"]["judge"] for row in rows})
    if len(judges) > 1:
        raise UserError(
            f"verdicts of several judges ({', '.join(judges)}), whose scores do not compare; keep one's"
        )
    return {
        "judge": judges[0] if judges else None,
        "versions": sorted({str(row["verdict"].get("version")) for row in rows}),
    }


def check_options(
    kinds: Sequence[str],
    chosen: str,
    min_margin: float,
    max_similarity: float,
    max_length_ratio: float,
    per_clip: int,
) -> None:
    """Raise Faults for every option out of range."""
    faults = [
        f'unknown kind of pair "{kind}"{nearest(kind, KINDS)}; the kinds are {", ".join(KINDS)}'
        for kind in kinds
        if kind not in KINDS
    ]
    if not kinds:
        faults.append(f"no kind of pair is asked for; the kinds are {', '.join(KINDS)}")
    if chosen not in CHOSEN:
        faults.append(f'--chosen "{chosen}"{nearest(chosen, CHOSEN)}; choose {" or ".join(CHOSEN)}')
    if not 0 <= min_margin <= 10:
        faults.append(f"--min-margin {min_margin}: a number of points from 0 to 10 is needed")
    if not 0 < max_similarity <= 1:
        faults.append(f"--max-similarity {max_similarity}: a number above 0 and up to 1 is needed")
    if not 1 < max_length_ratio < math.inf:
        faults.append(f"--max-length-ratio {max_length_ratio}: a number above 1 is needed, like 2")
    if per_clip < 1:
        faults.append(f"--per-clip {per_clip}: at least one pair a clip is needed")
    if faults:
        raise Faults(faults)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(f'"{name}"' for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more clips" if len(names) > _SHOWN else "")
