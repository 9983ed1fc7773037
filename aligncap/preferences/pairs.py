"""Preference pairs of scored captions, filtered so that a pair teaches what is heard and not how it is put.

Best against worst candidate is the prose of AlignCap (arXiv 2410.19134), reference against worst candidate
its formula; flipped captions and captions of other clips are counterfactual negatives, which no style
gives away.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from aligncap.data.manifest import Utterance, read_manifest
from aligncap.preferences.judges import manifest_of, read_scored, relative_name
from aligncap.preferences.pair_kinds import KINDS, Clip, Option, Pair, Sources, Text, read_clips, same, some
from aligncap.text.claims import manner_claims
from aligncap.text.coherence import contradictions, frame, repetitions
from aligncap.text.emotions import emotion_of
from aligncap.text.lexicon import caption_words
from aligncap.utils.errors import UserError, nearest
from aligncap.utils.io import Row, write_json, write_jsonl
from aligncap.utils.options import Config, PositiveInt, Range, option
from aligncap.utils.run_record import file_hashes

JUDGED = ("best-worst", "reference-worst")
TOLERANCE = 0.01  # of the mean log ratio of lengths, one percent
QUANTILES = {"least": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "most": 1.0}
COMMON, FRAME_RATIO, MANY = 0.03, 0.5, 100  # of frames: share of captions, chosen by rejected, fewest pairs
GIVEN_AWAY = 0.75  # guessed from the text alone more often than this: a warning


@dataclass
class PairsConfig(Config):
    """Preference pairs of scored captions, and a report of what was kept and why beside them.

    A pair that the judge orders the other way, or not at all, is dropped whatever the margin, and so is one
    whose chosen caption contradicts or repeats itself. Lengths are balanced by kind: of captions that fit a
    pair equally well (any reference, candidates of equal score) the one is taken that brings the running sum
    of log(length of chosen / length of rejected) nearest to zero; then the pair whose log ratio is nearest to
    that sum is dropped, again and again, until the mean is within one percent of zero or no drop helps.
    Common frames of sentences (3 % of the captions) are chosen half as often as they are rejected, so that
    training does not end in one frame for all.

    Examples:
        aligncap pairs scored.jsonl --out pairs.jsonl
        aligncap pairs scored.jsonl --kinds best-worst flipped-emotion other-clip --out pairs.jsonl
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("scored",)

    scored: str = option(help="Scored file, of one judge.")
    out: str = option(help="Pairs file to write; the report stands beside it as .report.json.")
    manifest: str | None = option(None, "Manifest of the clips. Default: the one that the rows name.")
    kinds: list[str] = option(
        ["best-worst"], "best-worst, reference-worst, flipped-emotion, flipped-claim, other-clip."
    )
    chosen: Literal["reference", "best"] = option(
        "reference",
        "What flips and captions of other clips are set against: a reference or the best candidate.",
    )
    min_margin: Annotated[float, Range(0, 10)] = option(
        1.0, "Points of 10 between the two, where both have any."
    )
    max_similarity: Annotated[float, Range(0, 1, open_low=True)] = option(
        0.9,
        "Judged pairs whose words match more than this (difflib ratio) are dropped, unless they name "
        "different emotions or acoustic claims.",
    )
    max_length_ratio: Annotated[float, Range(1, open_low=True)] = option(
        2.0, "Length of the longer by that of the shorter: words, Chinese characters."
    )
    per_clip: PositiveInt = option(2, "Most pairs of a clip of each kind.")
    balance_lengths: bool = option(True, "Balance lengths, so that length tells nothing.")
    balance_frames: bool = option(
        True, "Of 100 pairs and more: choose common frames of sentences half as often as they are rejected."
    )
    balance_emotions: bool = option(
        False, "Of each kind as many pairs of every emotion label as the rarest label has."
    )
    seed: int = option(0, "Seed of every choice.")

    def own_errors(self) -> list[str]:
        if not self.kinds:
            return [f"no kind of pair is asked for; the kinds are {', '.join(KINDS)}"]
        return [
            f'unknown kind of pair "{kind}"{nearest(kind, KINDS)}; the kinds are {", ".join(KINDS)}'
            for kind in self.kinds
            if kind not in KINDS
        ]


def make_pairs(
    rows: Sequence[Row], utterances: Sequence[Utterance], config: PairsConfig
) -> tuple[list[Row], Row]:
    """Pairs of a scored file's rows, and the report of what was kept and why.

    Args:
        rows: rows of a scored file (`judges.read_scored`), one judge's.
        utterances: those of the manifest that the rows were made from.

    Returns:
        Rows of a pairs file in the order of the scored file, and the report (`pair_report`). Every
        pair that a clip could have given and did not is counted there with its reason.

    Raises:
        UserError: verdicts of several judges, or no pair left.
        UserErrors: clips that the utterances do not hold.
    """
    judges = sorted({row["verdict"]["judge"] for row in rows})
    if len(judges) > 1:
        raise UserError(
            f"verdicts of several judges ({', '.join(judges)}), whose scores do not compare; keep one's"
        )
    kinds = list(dict.fromkeys(config.kinds))
    clips = read_clips(rows, utterances)
    sources = Sources.of(clips, utterances, config.chosen, config.per_clip)
    considered: dict[str, list[Option]] = {}
    kept: list[Pair] = []
    for kind in kinds:
        considered[kind] = _collect(kind, clips, sources, {pair.key for pair in kept}, config)
        pairs = [found for found in considered[kind] if isinstance(found, Pair)]
        if config.balance_emotions:
            _balance_emotions(pairs, Random(f"{config.seed}|{kind}|emotions"))
        if config.balance_frames and kind in JUDGED:
            _balance_frames(
                [pair for pair in pairs if pair.dropped is None], Random(f"{config.seed}|{kind}|frames")
            )
        if config.balance_lengths:
            _balance_lengths([pair for pair in pairs if pair.dropped is None])
        kept += [pair for pair in pairs if pair.dropped is None]
    report = pair_report(considered)
    if not kept:
        why = "; ".join(f"{reason}: {count}" for reason, count in report["dropped"].items())
        remedy = "lower --min_margin, choose other --kinds, or ask `aligncap candidates` for more"
        raise UserError(f"no pair is left ({why}); {remedy}")
    place = {clip.utterance.id: i for i, clip in enumerate(clips)}
    kept.sort(key=lambda pair: place[pair.clip.utterance.id])
    versions = sorted({str(row["verdict"].get("version")) for row in rows})
    own = {name: value for name, value in asdict(config).items() if name not in ("scored", "out", "manifest")}
    if len(versions) > 1:
        report["warnings"].append(f"verdicts of several versions of the judge: {', '.join(versions)}")
    about = {"judge": judges[0], "versions": versions, "options": own | {"kinds": kinds}, "clips": len(clips)}
    return [pair.row() for pair in kept], about | report


def _collect(
    kind: str, clips: Sequence[Clip], sources: Sources, former: Set[tuple[str, str, str]], config: PairsConfig
) -> list[Option]:
    """Pairs of one kind, clips in random order; of equally good ones that which evens out lengths."""
    total = 0.0
    found: list[Option] = []
    for clip in Random(f"{config.seed}|order").sample(clips, len(clips)):
        rng = Random(f"{config.seed}|{kind}|{clip.utterance.id}")
        taken: list[Pair] = []
        for options in KINDS[kind](clip, sources, rng):
            good, reason = _sift(options, taken, former, config)
            if not good:
                found.append(reason)
                continue
            pick = rng.randrange(len(good))
            before = good[pick].log_ratio
            if config.balance_lengths:
                leanings = [abs(total + pair.log_ratio) for pair in good]
                pick = leanings.index(min(leanings))
            good[pick].log_ratio_before = before
            total += good[pick].log_ratio
            taken.append(good[pick])
            found.append(good[pick])
    return found


def _sift(
    options: Sequence[Option], taken: Sequence[Pair], former: Set[tuple[str, str, str]], config: PairsConfig
) -> tuple[list[Pair], str]:
    """Options that may be kept, and the commonest reason of the others."""
    reasons: Counter[str] = Counter()
    good: list[Pair] = []
    for option_ in options:
        if isinstance(option_, str):
            reasons[option_] += 1
        elif option_.key in former or any(_overlap(option_, other) for other in taken):
            reasons["taken already"] += 1
        elif reason := refusal(option_, config):
            reasons[reason] += 1
        else:
            good.append(option_)
    return good, reasons.most_common(1)[0][0] if reasons else "nothing to compare"


def _overlap(pair: Pair, other: Pair) -> bool:
    """Whether two pairs of a clip and kind share a caption (other clips' may stand against the same one)."""
    shares_chosen = pair.chosen is other.chosen and pair.kind != "other-clip"
    return shares_chosen or same(pair.rejected.caption, other.rejected.caption)


def refusal(pair: Pair, config: PairsConfig) -> str | None:
    """Why a pair is not kept; None when it is."""
    chosen, rejected = (caption_words(text.caption) for text in (pair.chosen, pair.rejected))
    if not chosen or not rejected:
        return "empty caption"
    if chosen == rejected:
        return "same caption"
    own = pair.chosen.caption
    if wrong := "contradicts" if contradictions(own) else "repeats" if repetitions(own) else "":
        return f"the chosen caption {wrong} itself"
    if pair.kind in JUDGED:
        ratio = SequenceMatcher(None, chosen, rejected, autojunk=False).ratio()
        # Two captions that differ in the emotion alone are the best pair there is, not a duplicate.
        if ratio > config.max_similarity and _claims(pair.chosen) == _claims(pair.rejected):
            return "near-duplicate"
    if pair.margin is not None:
        if pair.margin < 0:
            return "the judge prefers the other"
        if pair.margin == 0:
            return "judged equal"
        if pair.margin < config.min_margin:
            return f"margin below {config.min_margin:g}"
    if abs(pair.log_ratio) > math.log(config.max_length_ratio):
        return f"length ratio above {config.max_length_ratio:g}"
    return None


def _claims(text: Text) -> tuple[str | None, set[tuple[str, str]]]:
    return emotion_of(text.caption), manner_claims([text.caption])


def _balance_lengths(pairs: Sequence[Pair]) -> None:
    order = sorted(pairs, key=lambda pair: pair.log_ratio)
    ratios = [pair.log_ratio for pair in order]
    total = sum(ratios)
    while len(ratios) > 1 and abs(total) / len(ratios) > TOLERANCE:
        i = bisect_left(ratios, total)
        i = min((j for j in (i - 1, i) if 0 <= j < len(ratios)), key=lambda j: abs(total - ratios[j]))
        if abs(total - ratios[i]) / (len(ratios) - 1) >= abs(total) / len(ratios):
            break
        total -= ratios.pop(i)
        order.pop(i).dropped = "length balance"


def _balance_frames(pairs: Sequence[Pair], rng: Random) -> None:
    """Drop pairs that choose a common frame and reject another, until it is chosen FRAME_RATIO times as often
    as it is rejected, or in COMMON of the pairs."""
    if len(pairs) < MANY:
        return
    frames = {id(pair): (frame(pair.chosen.caption), frame(pair.rejected.caption)) for pair in pairs}
    found = Counter(of for both in frames.values() for of in both)
    for common in (of for of, count in found.most_common() if count > 2 * COMMON * len(pairs)):
        left = [pair for pair in pairs if pair.dropped is None]
        chosen = [pair for pair in left if frames[id(pair)][0] == common]
        rejected = sum(frames[id(pair)][1] == common for pair in left)
        over = len(chosen) - max(FRAME_RATIO * rejected, COMMON * len(left))
        alone = [pair for pair in chosen if frames[id(pair)][1] != common]
        for pair in rng.sample(alone, min(len(alone), max(0, math.ceil(over)))):
            pair.dropped = "frame balance"


def _balance_emotions(pairs: Sequence[Pair], rng: Random) -> None:
    by_label: dict[str | None, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_label[pair.clip.emotion].append(pair)
    least = min(map(len, by_label.values()), default=0)
    for group in by_label.values():
        kept = {id(pair) for pair in rng.sample(group, least)}
        for pair in group:
            pair.dropped = None if id(pair) in kept else "emotion balance"


def pair_report(considered: Mapping[str, Sequence[Option]]) -> Row:
    """What was kept of the pairs that clips could have given, by kind, and why others were dropped.

    For every kind and for all: "considered" = "kept" + the sum of "dropped". "length.mean_log_before" is the
    mean log ratio of a random choice of every pair before balancing.
    """
    every = [found for options in considered.values() for found in options]
    kept = [found for found in every if isinstance(found, Pair) and found.dropped is None]
    by_kind = {kind: _summary(options) for kind, options in considered.items()}
    return {
        "clips_with_pairs": len({pair.clip.utterance.id for pair in kept}),
        **_summary(every),
        "by_emotion": dict(Counter(str(pair.clip.emotion) for pair in kept).most_common()),
        "by_kind": by_kind,
        "warnings": [line for kind, part in by_kind.items() for line in _warnings(kind, part)],
    }


def _summary(considered: Sequence[Option]) -> Row:
    possible = [found for found in considered if isinstance(found, Pair)]
    pairs = [pair for pair in possible if pair.dropped is None]
    dropped = Counter(found if isinstance(found, str) else found.dropped for found in considered)
    del dropped[None]  # those that were kept
    ratios = np.array([pair.log_ratio for pair in pairs])
    margins = [pair.margin for pair in pairs if pair.margin is not None]

    def mean(values: Sequence[float] | np.ndarray) -> float | None:
        return float(np.mean(values)) if len(values) else None

    return {
        "considered": len(considered),
        "kept": len(pairs),
        "dropped": dict(dropped.most_common()),
        "margin": {
            "unknown": len(pairs) - len(margins),
            **{name: float(np.quantile(margins, q)) if margins else None for name, q in QUANTILES.items()},
        },
        "length": {
            "mean_log_before": mean([pair.log_ratio_before for pair in possible]),
            "mean_log_after": mean(ratios),
            "chosen_longer": mean(ratios > 0),
            "equal": mean(ratios == 0),
        },
        "chosen_is_reference": mean([pair.chosen.reference for pair in pairs]),
        "distinct_chosen": len({pair.chosen.caption for pair in pairs}),
        "distinct_rejected": len({pair.rejected.caption for pair in pairs}),
        "guessed_from_text": guessed_from_text(pairs),
    }


def guessed_from_text(pairs: Sequence[Pair]) -> float | None:
    """Share of pairs whose chosen caption is told from the words alone, without the clip; ties count half.

    Naive Bayes over words: a word counts log((chosen captions with it + 1) / (rejected ones with it + 1)),
    counted on one half of the clips and tried on the other. 0.5 is no shortcut at all; 1 means that training
    can succeed without listening. None for fewer than 20 pairs.
    """
    if len(pairs) < 20:
        return None
    halves: list[list[tuple[set[str], set[str]]]] = [[], []]
    for pair in pairs:
        chosen, rejected = (set(caption_words(text.caption)) for text in (pair.chosen, pair.rejected))
        halves[zlib.crc32(pair.clip.utterance.id.encode()) % 2].append((chosen - rejected, rejected - chosen))
    right = 0.0
    for learnt, tried in (halves, halves[::-1]):
        good = Counter(word for more, _ in learnt for word in more)
        bad = Counter(word for _, less in learnt for word in less)
        weight = {w: math.log((good[w] + 1) / (bad[w] + 1)) for w in good.keys() | bad.keys()}
        for more, less in tried:
            score = math.fsum(weight.get(w, 0.0) for w in more) - math.fsum(weight.get(w, 0.0) for w in less)
            right += 0.5 if abs(score) < 1e-12 else float(score > 0)
    return right / len(pairs)


def _warnings(kind: str, part: Row) -> list[str]:
    kept, considered, rejected = part["kept"], part["considered"], part["distinct_rejected"]
    if not kept:
        return [f"{kind}: no pair is left"]
    found = []
    if kept < considered / 2:
        reason, count = next(iter(part["dropped"].items()))
        found.append(
            f'{considered - kept} of {considered} pairs were dropped, most of them for "{reason}" ({count})'
        )
    if abs(part["length"]["mean_log_after"]) > 0.05:
        ratio = math.expm1(part["length"]["mean_log_after"])
        than = f"{abs(ratio):.0%} {'longer' if ratio > 0 else 'shorter'} than rejected ones"
        found.append(f"chosen captions are {than}; length is a shortcut here")
    if (guessed := part["guessed_from_text"]) is not None and guessed > GIVEN_AWAY:
        share = f"the words alone tell the chosen caption in {guessed:.0%} of pairs"
        found.append(f"{share}; mix it with kinds that need the clip")
    if rejected < kept / 4:
        few = f"only {rejected} different rejected captions in {kept} pairs"
        found.append(f"{few}; candidates at a higher --temperature vary more")
    return [f"{kind}: {line}" for line in found]


def pair_tables(report: Row) -> list[Table | str]:
    """The report for a terminal: one table by kind, one of what was dropped, emotions and warnings."""
    kinds = {**report["by_kind"], "all": report} if len(report["by_kind"]) > 1 else report["by_kind"]
    kept = Table(title=f"{report['kept']} pairs of {report['clips']} clips, judged by {report['judge']}")
    kept.add_column("")
    columns = []
    for kind, part in kinds.items():
        kept.add_column(kind, justify="right")
        margin, length = part["margin"], part["length"]
        longer, equal = length["chosen_longer"], length["equal"]
        shorter = None if longer is None else 1 - longer - equal
        before, after = length["mean_log_before"], length["mean_log_after"]
        rows: dict[str, tuple[Any, ...]] = {  # a format and its values
            "considered": ("", part["considered"]),
            "kept": ("", part["kept"]),
            "margin: least / median / most": (".1f", margin["least"], margin["median"], margin["most"]),
            "margin unknown": ("", margin["unknown"]),
            "mean log length ratio: before / after": ("+.3f", before, after),
            "chosen longer / equal / shorter": (".0%", longer, equal, shorter),
            "chosen is a reference": (".0%", part["chosen_is_reference"]),
            "different chosen / rejected": ("", part["distinct_chosen"], part["distinct_rejected"]),
            "told by the words alone": (".0%", part["guessed_from_text"]),
        }
        columns.append(rows)
    for title in columns[0]:
        cells = (column[title] for column in columns)
        kept.add_row(title, *(" / ".join("–" if v is None else format(v, f) for v in vs) for f, *vs in cells))
    found: list[Table | str] = [kept]
    if report["dropped"]:
        dropped = Table("why dropped", *kinds, title="Pairs not kept")
        for reason in report["dropped"]:
            dropped.add_row(reason, *(str(part["dropped"].get(reason, 0)) for part in kinds.values()))
        found.append(dropped)
    found.append("pairs by emotion: " + ", ".join(f"{k} {n}" for k, n in report["by_emotion"].items()))
    return found + [f"warning: {line}" for line in report["warnings"]]


def pairs_file(config: PairsConfig) -> Row:
    """Read a scored file, write its pairs to `out` and the report beside it (`out` with .report.json).

    Raises:
        UserError: as `make_pairs`, and where a file is missing or cannot be written.
    """
    utterances: dict[str, Utterance] = {}
    rebased, sources = [], set[Path]()
    for row in read_scored(config.scored):
        source = manifest_of(row, config.scored, config.manifest)
        if source not in sources:
            found = {u.id: u for u in read_manifest(source)}
            if twice := sorted(found.keys() & utterances.keys()):
                raise UserError(
                    f"{config.scored}: {source} and another manifest both hold {some(twice)}; "
                    "make pairs of one manifest at a time"
                )
            utterances |= found
            sources.add(source)
        rebased.append({**row, "manifest": relative_name(source, config.out)})
    try:
        pairs, report = make_pairs(rebased, list(utterances.values()), config)
    except UserError as error:
        raise UserError(f"{config.scored}: {error}") from None
    report["files"] = file_hashes([config.scored, *sorted(sources)])
    write_jsonl(config.out, pairs)
    write_json(Path(config.out).with_suffix(".report.json"), report)
    return report


def run_pairs(config: PairsConfig) -> int:
    """Write pairs and print their report."""
    console = Console(markup=False, emoji=False)
    for part in (*pair_tables(pairs_file(config)), f"pairs: {config.out}"):
        console.print(part)
    return 0
