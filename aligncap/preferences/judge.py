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
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar, Literal

from aligncap.models.hub import DEFAULT_LLM
from aligncap.preferences.judges import CRITERIA, Item, Verdict, read_items, weighted_overall
from aligncap.preferences.judges.endpoint import OpenAIOptions
from aligncap.preferences.judges.human import judge_human, write_form
from aligncap.preferences.judges.openai import ask_all, plan_lines, question
from aligncap.text import rubric
from aligncap.utils.distributed import ALONE, Group, Store, launched
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
        aligncap judge candidates.jsonl --judge human --form sheet.html
        aligncap judge candidates.jsonl --judge human --filled sheet.csv --rater ann --out ann.jsonl
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("candidates",)
    MANY_PROCESSES: ClassVar[bool] = True

    fluency: bool = option(True, "rubric: judge fluency by a language model; otherwise by rules alone.")
    fluency_model: str = option(DEFAULT_LLM, "rubric: the language model that judges fluency.")
    form: str | None = option(None, "human: blank sheet to write, or as .html a page with the sound.")
    filled: str | None = option(None, "human: filled sheet to read.")
    rater: str = option("", "human: who filled the sheet.")

    def own_errors(self) -> list[str]:
        owners = {f: f.metadata["help"].partition(": ")[0] for f in fields(self)}  # the help says whose it is
        errors = [
            f"--{f.name}: is for --judge {owner}"
            for f, owner in owners.items()
            if owner in ("rubric", "openai", "human")
            and owner != self.judge
            and getattr(self, f.name) != f.default
        ]
        if self.judge == "openai" and not self.model:
            errors.append("--judge openai needs --model, like gpt-4.1-mini, or a model of your own endpoint")
        elif self.judge == "openai" and not self.prices and self.max_cost is not None:
            price = "give --price_in and --price_out in dollars per million tokens (0 for a local server)"
            errors.append(f"no price is known for {self.model!r}, so --max_cost cannot be kept; {price}")
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
        detail = {"openai": f":{self.model}", "human": f":{self.rater.strip()}"}
        return self.judge + detail.get(self.judge, "")


@dataclass
class JudgeSummary:
    """What a run of a judge came to: `wanted` captions or comparisons, `scored` of them with a verdict.

    `lines` are to be printed, `unscored` says of each other one why, `mean` is that of the overall scores.
    """

    lines: Sequence[str]
    wanted: int
    scored: int = 0
    unscored: Sequence[str] = ()
    mean: float | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is left; the command exits 1 otherwise."""
        return not self.unscored


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
    single = [(item,) for item in items]
    if config.judge == "openai":
        return _by_openai(_pairs(items, config) if config.compare else single, config)
    if config.form is not None:
        write_form(items, config.form, config.seed)
        note = f"{config.form}: {len(items)} captions to score, 0 to 10; then give the sheet with --filled"
        return JudgeSummary([note], len(items))
    if config.judge == "human":
        return _write(config, single, judge_human(items, str(config.filled), config.name))
    from aligncap.models.precision import best_dtype  # torch, which no other judge needs

    group, place = launched()
    device = None if place == "auto" else place
    model = config.fluency_model if config.fluency else None
    with journaled(Path(str(config.out)), {"fluency": [model, str(best_dtype(device))]}, group) as journal:
        verdicts = judge_rubric(items, model, device=device, store=journal, group=group)
        return _write(config, single, verdicts, write=group.rank == 0)


def judge_rubric(
    items: Sequence[Item],
    fluency_model: str | None,
    *,
    device: str | None = None,
    batch_tokens: int = 4096,
    store: Store | None = None,
    group: Group = ALONE,
) -> list[Verdict]:
    """The offline judge: one verdict an item, in order (`text.rubric` and a small language model).

    Deterministic: the same items, data files, language model and precision give the same verdicts, up to the
    rounding of bfloat16 in `fluent` where other captions share the batch. A reference is judged by the clip's
    other references (`Item.references`), so none vouches for itself. `acoustics` is left out where the clip
    has no measured cues, `emotion` where neither label nor references tell it.

    Args:
        fluency_model: text LLM whose log-probabilities make up `fluent`; None for rules alone, which needs
            no model and takes a quarter of a millisecond a caption.
        device: where the LLM runs; the GPU where there is one by default.
        batch_tokens: tokens a batch of the LLM.
        store, group: of the LLM's work, see `log_probs`; all processes return the same.

    Raises:
        UserError: no such model.
    """
    fluency: Sequence[float | None] = [None] * len(items)
    how = "rules"
    if fluency_model is not None and items:
        from aligncap.inference.fluency import log_probs
        from aligncap.models.precision import best_dtype

        captions = [item.caption for item in items]
        fluency = log_probs(
            captions, fluency_model, device=device, batch_tokens=batch_tokens, store=store, group=group
        )
        how = f"{fluency_model} in {best_dtype(device)}"
    by = ("rubric", f"{rubric.version()}, fluency by {how}", rubric.data_hash())
    verdicts = []
    for item, value in zip(items, fluency, strict=True):
        known = rubric.evidence_of(item.utterance, item.relative, item.labels, references=item.references)
        marks = rubric.score(item.caption, known, value)
        verdicts.append(Verdict(dict(marks.scores), marks.overall, marks.reason, *by))
    return verdicts


def _by_openai(groups: Sequence[tuple[Item, ...]], config: JudgeConfig) -> JudgeSummary:
    """Score captions one by one, or compare pairs in both orders."""
    orders = [[question(order, config) for order in (g, g[::-1])[: len(g)]] for g in groups]
    questions = [asked for order in orders for asked in order]
    what = "comparisons" if config.compare else "captions"
    if config.dry_run:
        return JudgeSummary(plan_lines(questions, config, config.journal), len(groups))
    assert config.journal is not None
    answers, notes = ask_all(questions, config, config.journal)
    of_question = iter(answers)
    results: list[Verdict | Row | str] = []
    for group, order in zip(groups, orders, strict=True):
        found = [next(of_question) for _ in order]
        lines = [line for line in found if not isinstance(line, str)]
        if len(lines) < len(found):
            results.append(next(line for line in found if isinstance(line, str)))
            continue
        by = {"judge": config.name, "version": lines[0]["served"], "prompt_hash": order[0].prompt_hash}
        given = [line["answer"] for line in lines]
        if config.compare:
            results.append(_compared(group, given, by))
            continue
        scores = {name: given[0][name] for name in CRITERIA}
        results.append(Verdict(scores, weighted_overall(scores), given[0]["reason"], **by))
    if config.compare:
        same = [row["consistent"] for row in results if isinstance(row, dict)]
        notes = [f"the same winner in both orders: {sum(same)} of {len(same)}", *notes]
    return _write(config, groups, results, what, notes)


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


def _write(
    config: JudgeConfig,
    groups: Sequence[tuple[Item, ...]],
    results: Sequence[Verdict | Row | str],
    what: str = "captions",
    notes: Sequence[str] = (),
    write: bool = True,
) -> JudgeSummary:
    """Write the row of every group's result; a text says why there is none."""
    rows: list[Row] = []
    unscored: list[str] = []
    for group, result in zip(groups, results, strict=True):
        if isinstance(result, str):
            unscored.append(f"{group[0].id}, {' and '.join(map(str, group))}: {result}")
        else:
            row = {**group[0].row, "verdict": asdict(result)} if isinstance(result, Verdict) else result
            rows.append(row)
    if write:
        write_jsonl(str(config.out), rows)
    marks = [result.overall for result in results if isinstance(result, Verdict)]
    mean = sum(marks) / len(marks) if marks else None
    done = f"{config.out}: {len(rows)} of {len(groups)} {what} judged by {config.name}"
    lines = [done if mean is None else f"{done}, mean overall {mean:.2f}", *notes]
    if unscored:
        left = f"{len(unscored)} of {len(groups)} {what}"
        lines.append(f"without a verdict: {left}; the same command goes on with them")
        lines += [f"  {line}" for line in unscored[:_MOST_LISTED]]
    if (rest := len(unscored) - _MOST_LISTED) > 0:
        lines.append(f"  and {rest} more")
    return JudgeSummary(lines, len(groups), len(rows), unscored, mean)


def run_judge(config: JudgeConfig) -> int:
    """Judge candidates; 1 where captions are left without a verdict."""
    done = judge_candidates(config)
    if launched()[0].rank != 0:
        return 0
    for line in done.lines:
        print(line)
    return 0 if done.complete else 1
