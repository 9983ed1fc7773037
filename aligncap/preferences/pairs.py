"""Preference pairs of scored captions, filtered so that a pair teaches what is heard and not how it is put.

Best against worst candidate is the prose of AlignCap (arXiv 2410.19134), reference against worst candidate
its formula; flipped captions and captions of other clips are counterfactual negatives, which no style
gives away.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from aligncap.data.manifest import Utterance, read_manifest
from aligncap.preferences.pair_kinds import (
    JUDGED,
    KINDS,
    Clip,
    Option,
    Pair,
    Sources,
    check_candidates,
    check_options,
    emotion_named,
    one_judge,
    read_clips,
    same,
    some,
    words_of_text,
)
from aligncap.preferences.reports import Outcome, report_of
from aligncap.preferences.verdicts import manifest_of, read_scored
from aligncap.text.claims import manner_claims, relative_cues
from aligncap.text.emotions import emotion_of
from aligncap.utils.errors import UserError
from aligncap.utils.io import write_json, write_jsonl
from aligncap.utils.run_record import file_hashes

TOLERANCE = 0.01  # of the mean log ratio of lengths, one percent


def make_pairs(
    rows: Sequence[Mapping[str, Any]],
    utterances: Sequence[Utterance],
    *,
    kinds: Sequence[str] = ("best-worst",),
    chosen: str = "reference",
    min_margin: float = 1.0,
    max_similarity: float = 0.9,
    max_length_ratio: float = 2.0,
    per_clip: int = 1,
    balance_lengths: bool = True,
    balance_emotions: bool = False,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Pairs of a scored file's rows, and the report of what was kept and why.

    Length balance, by kind: of captions that fit a pair equally well (any reference, candidates of equal
    score) the one is taken that brings the running sum of log(words of chosen / words of rejected) nearest to
    zero; then the pair whose log ratio is nearest to that sum is dropped, again and again, until the mean is
    within one percent of zero or no drop brings it nearer.

    Args:
        rows: rows of a scored file (`verdicts.read_scored`), one judge's.
        utterances: those of the manifest that the rows were made from.
        kinds: any of best-worst, reference-worst, flipped-emotion, flipped-claim, other-clip.
        chosen: what flips and other clips' captions are set against: a "reference" or the "best" candidate.
        min_margin: points of 0 to 10 between the two, where both were judged. A pair that the judge orders
            the other way, or not at all, is dropped whatever the margin.
        max_similarity: best-worst and reference-worst pairs whose words match more than this (difflib ratio)
            are dropped, unless they name different emotions or acoustic claims.
        max_length_ratio: words of the longer over words of the shorter.
        per_clip: pairs a clip of each kind, at most.
        balance_lengths: see above.
        balance_emotions: of each kind, as many pairs of every emotion label as the rarest label has; the
            length balance comes after it and may drop some of those.

    Returns:
        Rows of a pairs file in the order of the scored file, and the report (`pair_report`). Every pair that
        a clip could have given and did not is counted there with its reason.

    Raises:
        UserError: unknown kind or option out of range, no scored candidate, verdicts of several judges, or no
            pair left.
        UserErrors: clips that the utterances do not hold.
    """
    kinds = list(dict.fromkeys(kinds))
    check_options(kinds, chosen, min_margin, max_similarity, max_length_ratio, per_clip)
    judge = one_judge(rows)
    clips = read_clips(rows, utterances)
    check_candidates(clips, kinds, chosen)
    others: dict[tuple[str | None, str], list[tuple[Utterance, str]]] = defaultdict(list)
    if "other-clip" in kinds:
        for u in utterances:
            emotion = emotion_named(u)
            if emotion and u.captions:
                others[u.gender, u.language].append((u, emotion))
    relative = {u.id: cues for u, cues in zip(utterances, relative_cues(utterances), strict=True)}
    labels = {u.emotion for u in utterances if u.emotion} or {c.emotion for c in clips if c.emotion}
    sources = Sources(frozenset(labels), others, chosen, per_clip, relative)
    refuse = partial(
        refusal, min_margin=min_margin, max_similarity=max_similarity, max_length_ratio=max_length_ratio
    )
    outcomes: dict[str, Outcome] = {}
    former: set[tuple[str, str, str]] = set()
    for kind in kinds:
        outcome = outcomes[kind] = _collect(kind, clips, sources, refuse, former, balance_lengths, seed)
        if balance_emotions:
            _balance_emotions(outcome, Random(f"{seed}|{kind}|emotions"))
        if balance_lengths:
            _balance_lengths(outcome)
        former |= {_key(pair) for pair in outcome.kept}
    place = {clip.utterance.id: i for i, clip in enumerate(clips)}
    kept = sorted((p for o in outcomes.values() for p in o.kept), key=lambda p: place[p.id])
    if not kept:
        reasons = sum((outcome.dropped for outcome in outcomes.values()), Counter[str]())
        why = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        raise UserError(f"no pair is left ({why}); lower --min-margin, or choose other --kinds")
    return [pair.row() for pair in kept], report_of(
        outcomes,
        judge,
        len(clips),
        {
            "kinds": kinds,
            "chosen": chosen,
            "min_margin": min_margin,
            "max_similarity": max_similarity,
            "max_length_ratio": max_length_ratio,
            "per_clip": per_clip,
            "balance_lengths": balance_lengths,
            "balance_emotions": balance_emotions,
            "seed": seed,
        },
    )


def pairs_file(
    scored: str | Path, out: str | Path, *, manifest: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """Read a scored file, write its pairs to `out` and the report beside it (`out` with .report.json).

    Args:
        manifest: instead of the manifest that the rows name.
        **options: those of `make_pairs`.

    Raises:
        UserError: as `make_pairs`, and where a file is missing or cannot be written.
    """
    rows, out = read_scored(scored), Path(out)
    utterances: dict[str, Utterance] = {}
    rebased, read = [], dict[Path, set[str]]()
    for row in rows:
        source = manifest_of(row, scored, manifest)
        if source not in read:
            found = {u.id: u for u in read_manifest(source)}
            if twice := sorted(found.keys() & utterances.keys()):
                raise UserError(
                    f"{scored}: {source} and another manifest both hold {some(twice)}; "
                    "make pairs of one manifest at a time"
                )
            utterances |= found
            read[source] = set(found)
        relative = os.path.relpath(source.resolve(), out.resolve().parent)
        rebased.append({**row, "manifest": Path(relative).as_posix()})
    try:
        pairs, report = make_pairs(rebased, list(utterances.values()), **options)
    except UserError as error:
        raise UserError(f"{scored}: {error}") from None
    report["files"] = file_hashes([scored, *read])
    write_jsonl(out, pairs)
    write_json(out.with_suffix(".report.json"), report)
    return report


def _collect(
    kind: str,
    clips: Sequence[Clip],
    sources: Sources,
    refuse: Callable[[Pair], str | None],
    former: Set[tuple[str, str, str]],
    balance_lengths: bool,
    seed: int,
) -> Outcome:
    """Pairs of one kind, clips in random order; of equally good ones that which evens out lengths."""
    outcome, total = Outcome(), 0.0
    for clip in Random(f"{seed}|order").sample(clips, len(clips)):
        rng = Random(f"{seed}|{kind}|{clip.utterance.id}")
        taken: list[Pair] = []
        for options in KINDS[kind](clip, sources, rng):
            good, reason = _sift(options, taken, refuse, former)
            outcome.considered += 1
            if not good:
                outcome.dropped[reason] += 1
                continue
            pick = rng.randrange(len(good))
            outcome.before.append(good[pick].log_ratio)
            if balance_lengths:
                leanings = [abs(total + pair.log_ratio) for pair in good]
                pick = leanings.index(min(leanings))
            total += good[pick].log_ratio
            taken.append(good[pick])
        outcome.kept += taken
    return outcome


def _key(pair: Pair) -> tuple[str, str, str]:
    return pair.id, pair.chosen.caption, pair.rejected.caption


def _sift(
    options: Sequence[Option],
    taken: Sequence[Pair],
    refuse: Callable[[Pair], str | None],
    former: Set[tuple[str, str, str]],
) -> tuple[list[Pair], str]:
    """Options that may be kept, and the commonest reason of the others."""
    reasons: Counter[str] = Counter()
    good: list[Pair] = []
    for option in options:
        if isinstance(option, str):
            reasons[option] += 1
        elif _key(option) in former or any(_overlap(option, other) for other in taken):
            reasons["taken already"] += 1
        elif reason := refuse(option):
            reasons[reason] += 1
        else:
            good.append(option)
    return good, reasons.most_common(1)[0][0] if reasons else "nothing to compare"


def refusal(pair: Pair, min_margin: float, max_similarity: float, max_length_ratio: float) -> str | None:
    """Why a pair is not kept; None when it is."""
    chosen, rejected = pair.chosen.caption, pair.rejected.caption
    if not words_of_text(chosen) or not words_of_text(rejected):
        return "empty caption"
    if same(chosen, rejected):
        return "same caption"
    if pair.kind in JUDGED and _alike(chosen, rejected, max_similarity):
        return "near-duplicate"
    if pair.margin is not None:
        if pair.margin < 0:
            return "the judge prefers the other"
        if pair.margin == 0:
            return "judged equal"
        if pair.margin < min_margin:
            return f"margin below {min_margin:g}"
    if abs(pair.log_ratio) > math.log(max_length_ratio):
        return f"length ratio above {max_length_ratio:g}"
    return None


def _alike(a: str, b: str, limit: float) -> bool:
    # two captions that differ in the emotion alone are the best pair there is, not a duplicate
    ratio = SequenceMatcher(None, words_of_text(a), words_of_text(b), autojunk=False).ratio()
    return ratio > limit and emotion_of(a) == emotion_of(b) and manner_claims([a]) == manner_claims([b])


def _overlap(pair: Pair, other: Pair) -> bool:
    """Whether two pairs of a clip and kind share a caption (other clips' may stand against the same one)."""
    shares_chosen = pair.chosen is other.chosen and pair.kind != "other-clip"
    return shares_chosen or same(pair.rejected.caption, other.rejected.caption)


# ---- balance


def _balance_lengths(outcome: Outcome) -> None:
    order = sorted(outcome.kept, key=lambda pair: pair.log_ratio)
    ratios = [pair.log_ratio for pair in order]
    total = sum(ratios)
    dropped: set[int] = set()
    while len(ratios) > 1 and abs(total) / len(ratios) > TOLERANCE:
        i = bisect_left(ratios, total)
        i = min((j for j in (i - 1, i) if 0 <= j < len(ratios)), key=lambda j: abs(total - ratios[j]))
        if abs(total - ratios[i]) / (len(ratios) - 1) >= abs(total) / len(ratios):
            break
        total -= ratios.pop(i)
        dropped.add(id(order.pop(i)))
    outcome.dropped["length balance"] += len(dropped)
    outcome.kept = [pair for pair in outcome.kept if id(pair) not in dropped]


def _balance_emotions(outcome: Outcome, rng: Random) -> None:
    counts = Counter(pair.emotion for pair in outcome.kept)
    least = min(counts.values(), default=0)
    kept: set[int] = set()
    for label in counts:
        kept |= {id(pair) for pair in rng.sample([p for p in outcome.kept if p.emotion == label], least)}
    outcome.dropped["emotion balance"] += len(outcome.kept) - len(kept)
    outcome.kept = [pair for pair in outcome.kept if id(pair) in kept]
