"""The verb `judge`: captions in, verdicts out, by whichever judge.

Scoring reads a candidates file and writes a scored file. Comparing (`compare_candidates`) puts two captions
of a clip to a language model in both orders and writes, one line a pair:
    {"id", "audio", "a": caption, "b": caption, "candidate_a", "candidate_b",
     "winner_ab": "a"|"b"|"tie"    with a shown first,
     "winner_ba": "a"|"b"|"tie"    with b shown first; the names stay with the captions, not with the places,
     "consistent": winner_ab == winner_ba, "reasons": [of ab, of ba],
     "judge", "version", "prompt_hash", "manifest"}
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from aligncap.models.hub import DEFAULT_LLM
from aligncap.models.precision import best_dtype
from aligncap.preferences.judges.human import judge_human, write_form
from aligncap.preferences.judges.openai import (
    Ask,
    Endpoint,
    Limits,
    Session,
    comparing_question,
    journal_of,
    plan_lines,
    run_questions,
    scoring_question,
    verdict_of,
)
from aligncap.preferences.verdicts import Item, Verdict, read_items
from aligncap.utils.distributed import launched
from aligncap.utils.errors import UserError
from aligncap.utils.io import write_jsonl
from aligncap.utils.journal import journaled

Say = Callable[[str], None]
_MOST_LISTED = 20


@dataclass
class JudgeSummary:
    """What a run of a judge came to: `wanted` captions or comparisons, `scored` of them written to `out`.

    `unscored` says of each other one why, `notes` what the run did and cost. `out` None: nothing was written.
    """

    judge: str
    out: Path | None
    wanted: int
    scored: int
    what: str = "captions"
    unscored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mean: float | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is left; the command exits 1 otherwise."""
        return not self.unscored

    def lines(self) -> list[str]:
        """Lines to print."""
        if self.out is None:
            return self.notes
        mean = "" if self.mean is None else f", mean overall {self.mean:.2f}"
        found = [f"{self.out}: {self.scored} of {self.wanted} {self.what} judged by {self.judge}{mean}"]
        found += self.notes
        if self.unscored:
            left = f"{len(self.unscored)} of {self.wanted} {self.what}"
            found.append(f"without a verdict: {left}; the same command goes on with them")
            found += [f"  {line}" for line in self.unscored[:_MOST_LISTED]]
            if (rest := len(self.unscored) - _MOST_LISTED) > 0:
                found.append(f"  and {rest} more")
        return found


def judge_candidates(
    candidates: str | Path,
    out: str | Path | None,
    judge: str = "rubric",
    *,
    manifest: str | Path | None = None,
    references: int = 0,
    model: str | None = None,
    temperature: float | None = 0.0,
    max_tokens: int = 400,
    limits: Limits | None = None,
    endpoint: Endpoint | None = None,
    cache: str | Path | None = None,
    batch: bool = False,
    dry_run: bool = False,
    form: str | Path | None = None,
    filled: str | Path | None = None,
    rater: str = "",
    seed: int = 0,
    say: Say = lambda line: None,
    **options: Any,
) -> JudgeSummary:
    """Judge every caption of a candidates file and write a scored file, in the same order.

    Under `accelerate launch` or torchrun the processes share the rubric judge's language model; all return
    the same, the first one writes.

    Args:
        out: scored file; None with `dry_run` or `form`, which write no verdicts.
        judge: "rubric", "openai" or "human".
        manifest: instead of the one that the rows name.
        references: reference captions a clip that are judged beside the candidates.
        model, temperature, max_tokens, limits, endpoint, cache, batch: of the judge "openai"; see `Ask`,
            `Limits`, `Endpoint`. `cache` is the journal of paid verdicts, OUT.verdicts.jsonl by default.
        dry_run: send nothing, say what would be sent and cost.
        form, filled, rater, seed: of the judge "human": a blank sheet to write, or a filled one to read.
        say: is told what will happen before it does.
        options: of the rubric judge.

    Raises:
        UserError: what is missing or wrong, in one message.
    """
    if judge != "rubric":
        _refuse_processes(judge)
    items = read_items(candidates, manifest, references, out)
    if judge == "human" and form is not None:
        write_form(items, form, seed)
        note = f"{form}: {len(items)} captions to score, 0 to 10; then give the filled sheet with --filled"
        return JudgeSummary("human", None, len(items), 0, notes=[note])
    if judge == "openai":
        ask = _ask(model, temperature, max_tokens)
        questions = [scoring_question(item, ask) for item in items]
        session = Session(ask, limits or Limits(), endpoint or Endpoint(), batch)
        if dry_run:
            notes = plan_lines(questions, session, journal_of(out, cache), prompt=True)
            return JudgeSummary(f"openai:{ask.model}", None, len(items), 0, notes=notes)
        done = run_questions(questions, session, journal_of(_needed(out), cache), say)
        answers = [done.answers.get(q.key) for q in questions]
        verdicts: Sequence[Verdict | None] = [
            verdict_of(paid.answer, paid.served, q.prompt_hash, ask) if paid else None
            for q, paid in zip(questions, answers, strict=True)
        ]
        reasons = [done.reason(q) for q in questions]
        return _write(items, verdicts, reasons, _needed(out), f"openai:{ask.model}", done.notes)
    if dry_run:
        raise UserError(f"--dry-run is for --judge openai; --judge {judge} costs nothing")
    _needed(out)
    if judge == "rubric":
        return _by_rubric(items, _needed(out), options)
    if judge == "human":
        if filled is None:
            raise UserError("--judge human needs --form SHEET.csv (to write) or --filled SHEET.csv (to read)")
        verdicts, label = judge_human(items, filled, rater), f"human:{rater.strip()}"
    else:
        raise UserError(f"--judge {judge}: unknown; the judges are rubric, openai and human")
    return _write(items, verdicts, ["no score in the sheet"] * len(items), _needed(out), label, [])


def _by_rubric(items: Sequence[Item], out: Path, options: dict[str, Any]) -> JudgeSummary:
    from aligncap.preferences.judges.rubric import judge_rubric

    group, device = launched()
    options = {"device": None if device == "auto" else device, "fluency_model": DEFAULT_LLM} | options
    settings = {"fluency": [options["fluency_model"], str(best_dtype(options["device"]))]}
    with journaled(out, settings, group) as journal:
        verdicts = judge_rubric(items, store=journal, group=group, **options)
        return _write(items, verdicts, [""] * len(items), out, "rubric", [], write=group.rank == 0)


def compare_candidates(
    candidates: str | Path,
    out: str | Path | None,
    *,
    model: str | None = None,
    manifest: str | Path | None = None,
    references: int = 0,
    pairs_per_clip: int = 1,
    temperature: float | None = 0.0,
    max_tokens: int = 400,
    limits: Limits | None = None,
    endpoint: Endpoint | None = None,
    cache: str | Path | None = None,
    batch: bool = False,
    dry_run: bool = False,
    seed: int = 0,
    say: Say = lambda line: None,
) -> JudgeSummary:
    """Compare pairs of captions of each clip in both orders; rows as the module says. Arguments as above.

    Raises:
        UserError: what is missing or wrong, or no clip has two different captions.
    """
    _refuse_processes("openai")
    ask = _ask(model, temperature, max_tokens)
    pairs = _pairs(read_items(candidates, manifest, references, out), pairs_per_clip, seed)
    if not pairs:
        raise UserError(f"{candidates}: no clip has two different captions to compare")
    orders = [(comparing_question(a, b, ask), comparing_question(b, a, ask)) for a, b in pairs]
    questions = [question for order in orders for question in order]
    session = Session(ask, limits or Limits(), endpoint or Endpoint(), batch)
    label = f"openai:{ask.model}"
    if dry_run:
        notes = plan_lines(questions, session, journal_of(out, cache), prompt=True)
        return JudgeSummary(label, None, len(pairs), 0, "comparisons", notes=notes)
    done = run_questions(questions, session, journal_of(_needed(out), cache), say)
    rows, unscored = [], []
    for (a, b), (ab, ba) in zip(pairs, orders, strict=True):
        answers = [done.answers.get(ab.key), done.answers.get(ba.key)]
        if answers[0] is None or answers[1] is None:
            missing = ab if answers[0] is None else ba
            unscored.append(f"{a.id}, {_name(a)} and {_name(b)}: {done.reason(missing)}")
            continue
        first, second = answers[0], answers[1]
        row = {
            "id": a.id,
            "audio": a.audio,
            "a": a.caption,
            "b": b.caption,
            "candidate_a": a.row.get("candidate"),
            "candidate_b": b.row.get("candidate"),
            "winner_ab": {"first": "a", "second": "b", "tie": "tie"}[first.answer["winner"]],
            "winner_ba": {"first": "b", "second": "a", "tie": "tie"}[second.answer["winner"]],
            "reasons": [first.answer["reason"], second.answer["reason"]],
            "judge": label,
            "version": first.served,
            "prompt_hash": ab.prompt_hash,
            "manifest": a.row["manifest"],
        }
        rows.append(row | {"consistent": row["winner_ab"] == row["winner_ba"]})
    write_jsonl(_needed(out), rows)
    agreeing = sum(bool(row["consistent"]) for row in rows)
    notes = [f"the same winner in both orders: {agreeing} of {len(rows)}", *done.notes]
    return JudgeSummary(label, _needed(out), len(pairs), len(rows), "comparisons", unscored, notes)


def _refuse_processes(judge: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        remedy = "; --concurrency sets its requests at a time" if judge == "openai" else ""
        raise UserError(f"--judge {judge} runs in one process: start it without a launcher{remedy}")


def _ask(model: str | None, temperature: float | None, max_tokens: int) -> Ask:
    if not model:
        raise UserError("--judge openai needs --model, like gpt-4.1-mini, or a model of your own endpoint")
    if max_tokens < 1:
        raise UserError(f"--max-tokens {max_tokens}: must be above 0")
    return Ask(model, temperature, max_tokens)


def _needed(out: str | Path | None) -> Path:
    if out is None:
        raise UserError("--out is missing: say where the verdicts go")
    return Path(out)


def _pairs(items: Iterable[Item], per_clip: int, seed: int) -> list[tuple[Item, Item]]:
    clips: dict[str, dict[str, Item]] = {}
    for item in items:
        clips.setdefault(item.id, {}).setdefault(item.caption, item)
    chosen: list[tuple[Item, Item]] = []
    for name, by_caption in clips.items():
        # Both captions would be judged against evidence: no reference that is compared may be part of it.
        shown = {i.caption for i in by_caption.values() if i.kind == "reference"}
        every = [
            (replace(a, references=_without(a, shown)), replace(b, references=_without(b, shown)))
            for a, b in combinations(by_caption.values(), 2)
        ]
        random.Random(f"{seed} {name}").shuffle(every)
        chosen += every[:per_clip]
    return chosen


def _without(item: Item, captions: set[str]) -> tuple[str, ...]:
    return tuple(caption for caption in item.references if caption not in captions)


def _name(item: Item) -> str:
    return f"{item.kind} {item.number}"


def _write(
    items: Sequence[Item],
    verdicts: Sequence[Verdict | None],
    reasons: Sequence[str],
    out: Path,
    judge: str,
    notes: list[str],
    write: bool = True,
) -> JudgeSummary:
    rows: list[Mapping[str, Any]] = []
    unscored = []
    for item, verdict, reason in zip(items, verdicts, reasons, strict=True):
        if verdict is None:
            unscored.append(f"{item.id}, {_name(item)}: {reason}")
        else:
            rows.append({**item.row, "verdict": verdict.to_dict()})
    if write:
        write_jsonl(out, rows)
    mean = sum(row["verdict"]["overall"] for row in rows) / len(rows) if rows else None
    return JudgeSummary(judge, out, len(items), len(rows), unscored=unscored, notes=notes, mean=mean)
