"""The command `judge`: captions in, verdicts out, by whichever judge.

Scoring reads a candidates file and writes a scored file. Comparing (`--compare`) puts two captions of a clip
to a language model in both orders and writes, one line a pair:
    {"id", "audio", "a": caption, "b": caption, "candidate_a", "candidate_b",
     "winner_ab": "a"|"b"|"tie"    with a shown first,
     "winner_ba": "a"|"b"|"tie"    with b shown first; the names stay with the captions, not with the places,
     "consistent": winner_ab == winner_ba, "reasons": [of ab, of ba],
     "judge", "version", "prompt_hash", "manifest"}
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar, Literal

from aligncap.models.hub import DEFAULT_LLM
from aligncap.models.precision import best_dtype
from aligncap.preferences.judges import CRITERIA, Item, Verdict, read_items, weighted_overall
from aligncap.preferences.judges.endpoint import OpenAIOptions
from aligncap.preferences.judges.human import judge_human, write_form
from aligncap.preferences.judges.openai import ask_all, plan_lines, question
from aligncap.preferences.judges.rubric import judge_rubric
from aligncap.utils.distributed import launched
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, write_jsonl
from aligncap.utils.journal import journaled
from aligncap.utils.options import Config, NaturalInt, option

_MOST_LISTED = 20


@dataclass(kw_only=True)
class _Judging(Config):
    """Options of every judge; they come first in the help."""

    candidates: str = option(help="Candidates file.")
    judge: Literal["rubric", "openai", "human"] = option("rubric", "Who judges.")
    out: str | None = option(None, "Scored file to write.")
    manifest: str | None = option(None, "Manifest of the clips. Default: the one that the candidates name.")
    references: NaturalInt = option(1, "Reference captions of each clip that are judged too.")
    seed: int = option(0, "Seed of the pairs of --compare and of the order in --form.")


@dataclass(kw_only=True)
class JudgeConfig(OpenAIOptions, _Judging):
    """Score candidates by rules and a small LLM (rubric), an LLM behind an API (openai) or people (human).

    A stopped run goes on where it stopped. The openai judge asks any OpenAI-compatible endpoint; its key is
    read from OPENAI_API_KEY, and no answer is paid twice.

    Examples:
        aligncap judge candidates.jsonl --judge rubric --out scored.jsonl
        aligncap judge candidates.jsonl --judge openai --model gpt-4.1-mini --dry_run
        aligncap judge candidates.jsonl --judge openai --model gpt-4.1-mini --max_cost 5 --out gpt.jsonl
        aligncap judge candidates.jsonl --judge openai --model gpt-4.1-mini --compare --out compared.jsonl
        aligncap judge candidates.jsonl --judge human --form sheet.csv
        aligncap judge candidates.jsonl --judge human --filled sheet.csv --rater ann --out ann.jsonl
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("candidates",)
    MANY_PROCESSES: ClassVar[bool] = True

    fluency: bool = option(True, "rubric: judge fluency by a language model; otherwise by rules alone.")
    fluency_model: str = option(DEFAULT_LLM, "rubric: the language model that judges fluency.")
    form: str | None = option(None, "human: blank sheet to write.")
    filled: str | None = option(None, "human: filled sheet to read.")
    rater: str = option("", "human: who filled the sheet.")

    def own_errors(self) -> list[str]:
        own = {
            "openai": {f.name for f in fields(OpenAIOptions)},
            "human": {"form", "filled", "rater"},
            "rubric": {"fluency", "fluency_model"},
        }
        errors = [
            f"--{f.name}: is for --judge {judge}"
            for f in fields(self)
            for judge, names in own.items()
            if judge != self.judge and f.name in names and getattr(self, f.name) != f.default
        ]
        if self.judge == "openai":
            errors += self.missing()
        elif self.judge == "human" and self.form is None:
            if self.filled is None:
                errors.append(
                    "--judge human needs --form SHEET.csv (to write) or --filled SHEET.csv (to read)"
                )
            elif not self.rater.strip():
                errors.append("--rater: say who judged, a name or initials")
        if self.out is None and not self.dry_run and self.form is None:
            errors.append("--out is missing: say where the verdicts go")
        return errors

    @property
    def journal(self) -> Path | None:
        """The journal of paid answers."""
        name = self.cache or (f"{self.out}.verdicts.jsonl" if self.out else None)
        return Path(name) if name else None

    @property
    def name(self) -> str:
        """The judge as verdicts name it."""
        return {"openai": f"openai:{self.model}", "human": f"human:{self.rater.strip()}"}.get(
            self.judge, "rubric"
        )


@dataclass
class JudgeSummary:
    """What a run of a judge came to: `wanted` captions or comparisons, `scored` of them written to `out`.

    `unscored` says of each other one why, `notes` what the run did and cost. `out` None: nothing was written.
    """

    judge: str
    out: str | None
    wanted: int
    scored: int = 0
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


def judge_candidates(config: JudgeConfig) -> JudgeSummary:
    """Judge every caption of a candidates file and write a scored file, in the same order.

    Under `accelerate launch` or torchrun the processes share the rubric judge's language model; all return
    the same, the first one writes.

    Raises:
        UserError: what is missing or wrong, in one message.
    """
    if config.judge != "rubric" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        remedy = "; --concurrency sets its requests at a time" if config.judge == "openai" else ""
        raise UserError(f"--judge {config.judge} runs in one process: start it without a launcher{remedy}")
    items = read_items(config.candidates, config.manifest, config.references, config.out)
    if config.judge == "openai":
        return _by_openai(items, config)
    if config.form is not None:
        write_form(items, config.form, config.seed)
        note = f"{config.form}: {len(items)} captions to score, 0 to 10; then give the sheet with --filled"
        return JudgeSummary("human", None, len(items), notes=[note])
    if config.judge == "human":
        return _write(config, _rows(items, judge_human(items, str(config.filled), config.rater)))
    group, place = launched()
    device = None if place == "auto" else place
    model = config.fluency_model if config.fluency else None
    with journaled(Path(str(config.out)), {"fluency": [model, str(best_dtype(device))]}, group) as journal:
        verdicts = judge_rubric(items, model, device=device, store=journal, group=group)
        return _write(config, _rows(items, verdicts), write=group.rank == 0)


def _by_openai(items: Sequence[Item], config: JudgeConfig) -> JudgeSummary:
    """Score captions one by one, or compare pairs of each clip's in both orders."""
    groups = _pairs(items, config) if config.compare else [(item,) for item in items]
    orders = [[question(order, config) for order in (g, g[::-1])[: len(g)]] for g in groups]
    questions = [asked for order in orders for asked in order]
    what = "comparisons" if config.compare else "captions"
    if config.dry_run:
        notes = plan_lines(questions, config, config.journal)
        return JudgeSummary(config.name, None, len(groups), what=what, notes=notes)
    answers = ask_all(questions, config, config.journal)
    results: list[Row | str] = []
    for group, order in zip(groups, orders, strict=True):
        if missing := [asked for asked in order if asked.key not in answers.paid]:
            captions = " and ".join(map(str, group))
            results.append(f"{group[0].id}, {captions}: {answers.why_not(missing[0])}")
            continue
        found = [answers.paid[asked.key] for asked in order]
        by = {"judge": config.name, "version": found[0]["served"], "prompt_hash": order[0].prompt_hash}
        results.append((_compared if config.compare else _scored)(group, [p["answer"] for p in found], by))
    notes = answers.notes
    if config.compare:
        same = [row["consistent"] for row in results if not isinstance(row, str)]
        notes = [f"the same winner in both orders: {sum(same)} of {len(same)}", *notes]
    return _write(config, results, what, notes)


def _scored(group: Sequence[Item], answers: Sequence[Row], by: dict[str, str]) -> Row:
    scores = {name: answers[0][name] for name in CRITERIA}
    verdict = Verdict(scores, weighted_overall(scores), answers[0]["reason"], **by)
    return {**group[0].row, "verdict": asdict(verdict)}


def _compared(group: Sequence[Item], answers: Sequence[Row], by: dict[str, str]) -> Row:
    """A line of a compared file; the module says what it holds."""
    (a, b), (ab, ba) = group, (answer["winner"] for answer in answers)
    winner_ab = {"first": "a", "second": "b"}.get(ab, "tie")
    winner_ba = {"first": "b", "second": "a"}.get(ba, "tie")
    return {
        "id": a.id,
        "audio": a.row["audio"],
        "a": a.caption,
        "b": b.caption,
        "candidate_a": a.row.get("candidate"),
        "candidate_b": b.row.get("candidate"),
        "winner_ab": winner_ab,
        "winner_ba": winner_ba,
        "consistent": winner_ab == winner_ba,
        "reasons": [answer["reason"] for answer in answers],
        **by,
        "manifest": a.row["manifest"],
    }


def _pairs(items: Sequence[Item], config: JudgeConfig) -> list[tuple[Item, ...]]:
    """Pairs of different captions of each clip, drawn by the seed."""
    clips: dict[str, dict[str, Item]] = {}
    for item in items:
        clips.setdefault(item.id, {}).setdefault(item.caption, item)
    chosen: list[tuple[Item, ...]] = []
    for name, by_caption in clips.items():
        # Both captions would be judged against evidence: no reference that is compared may be part of it.
        compared = {i.caption for i in by_caption.values() if i.kind == "reference"}
        fair = [
            replace(item, references=tuple(c for c in item.references if c not in compared))
            for item in by_caption.values()
        ]
        every = list(combinations(fair, 2))
        random.Random(f"{config.seed} {name}").shuffle(every)
        chosen += every[: config.pairs_per_clip]
    if not chosen:
        raise UserError(f"{config.candidates}: no clip has two different captions to compare")
    return chosen


def _rows(items: Sequence[Item], verdicts: Sequence[Verdict | str]) -> list[Row | str]:
    return [
        f"{item.id}, {item}: {verdict}"
        if isinstance(verdict, str)
        else {**item.row, "verdict": asdict(verdict)}
        for item, verdict in zip(items, verdicts, strict=True)
    ]


def _write(
    config: JudgeConfig,
    results: Sequence[Row | str],
    what: str = "captions",
    notes: Sequence[str] = (),
    write: bool = True,
) -> JudgeSummary:
    """Write the rows among the results; each other one says why a caption has no verdict."""
    rows = [row for row in results if not isinstance(row, str)]
    unscored = [line for line in results if isinstance(line, str)]
    if write:
        write_jsonl(str(config.out), rows)
    marks = [row["verdict"]["overall"] for row in rows if "verdict" in row]
    mean = sum(marks) / len(marks) if marks else None
    return JudgeSummary(config.name, config.out, len(results), len(rows), what, unscored, [*notes], mean)


def run_judge(config: JudgeConfig) -> int:
    """Judge candidates; 1 where captions are left without a verdict."""
    done = judge_candidates(config)
    if launched()[0].rank != 0:
        return 0
    for line in done.lines():
        print(line)
    return 0 if done.complete else 1
