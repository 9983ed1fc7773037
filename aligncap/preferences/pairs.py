"""Preference pairs of scored captions, filtered so that a pair teaches what is heard and not how it is put.

Best against worst candidate is the prose of AlignCap (arXiv 2410.19134), reference against worst candidate
its formula; flipped captions and captions of other clips are counterfactual negatives, which no style
gives away.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal

from rich.console import Console

from aligncap.data.manifest import Utterance, read_manifest, rebase, write_manifest
from aligncap.preferences.judges import manifest_of, read_scored, relative_name
from aligncap.preferences.pair_kinds import KINDS, Clip, Option, Pair, Sources, Text, read_clips, same, some
from aligncap.preferences.reports import pair_report, pair_tables
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
COMMON, FRAME_RATIO, MANY = 0.03, 0.5, 100  # of frames: share of captions, chosen by rejected, fewest pairs


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
    chosen_manifest: str | None = option(
        None, "Write the clips with their chosen captions too, for `train sft`: what choosing alone is worth."
    )

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
        if config.balance_frames and kind in JUDGED:
            _balance_frames(pairs, Random(f"{config.seed}|{kind}|frames"))
        if config.balance_lengths:
            _balance_lengths(_left(pairs))
        if config.balance_emotions:  # last, since the others drop pairs of any emotion
            _balance_emotions(_left(pairs), Random(f"{config.seed}|{kind}|emotions"))
        kept += _left(pairs)
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


def _left(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.dropped is None]


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
        left = _left(pairs)
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
            target = config.chosen_manifest or source
            found = {u.id: u for u in rebase(read_manifest(source), source, target)}
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
    if config.chosen_manifest:
        write_manifest(config.chosen_manifest, with_chosen(pairs, utterances))
    return report


def with_chosen(pairs: Sequence[Row], utterances: Mapping[str, Utterance]) -> list[Utterance]:
    """The clips of pairs, by id in `utterances`, whose captions are those that were chosen, each once."""
    chosen: dict[str, dict[str, None]] = {}
    for pair in pairs:
        chosen.setdefault(pair["id"], {})[pair["chosen"]] = None
    none: dict[str, Any] = {"clues": [], "p_act": [], "instructions": []}  # of the former captions
    return [replace(utterances[name], captions=[*captions], **none) for name, captions in chosen.items()]


def run_pairs(config: PairsConfig) -> int:
    """Write pairs and print their report."""
    console = Console(markup=False, emoji=False)
    for part in (*pair_tables(pairs_file(config)), f"pairs: {config.out}"):
        console.print(part)
    return 0
