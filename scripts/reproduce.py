"""The paper's tables, one command each: every system trained over seeds, captioned, scored and compared.

    bash scripts/quickstart.sh --corpus ravdess RAVDESS_FOLDER
    python scripts/reproduce.py table-alignment --run runs/ravdess
    python scripts/reproduce.py table-ablation | table-zero-shot | table-llms

Tables are files of configs/tables (docs/tables.md). What stands is reused, a killed run goes on, and what is
missing is named: a table is written of what there is. It goes to RUN/tables/NAME as Markdown, LaTeX and CSV
with run.json. Paths are relative to the repository.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from table_plan import (  # noqa: E402
    Plan,
    clear,
    make_plan,
    probe_step,
    record_of,
    states,
    subset_path,
)
from table_steps import clock, log_path, run_steps, take  # noqa: E402
from table_systems import read_systems, read_yaml  # noqa: E402

from aligncap.data.manifest import read_manifest, rebase, write_manifest  # noqa: E402
from aligncap.utils.errors import (  # noqa: E402
    UserError,
    UserErrors,
    nearest,
)
from aligncap.utils.io import write_text  # noqa: E402

TABLE_KEYS = set(
    "title seeds tests metrics against label_map subsets claims systems resamples probe unheard".split()
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="reproduce.py"
    )
    top.add_argument(
        "table", help="table-NAME of configs/tables/NAME.yaml: table-alignment, table-ablation, …"
    )
    top.add_argument("--run", default="runs/ravdess", help="folder of the quickstart: data, teacher, probe")
    top.add_argument("--out", help="default: RUN/tables")
    top.add_argument("--tables", default=str(ROOT / "configs/tables"), help="folder of table files")
    top.add_argument("--seeds", nargs="+", type=int, help="default: those of the table")
    top.add_argument("--systems", nargs="+", help="run these only; the table shows all that stand")
    top.add_argument("--tests", nargs="+", help="default: those of the table")
    top.add_argument("--workers", type=int, default=2, help="steps at a time; cores are shared out")
    top.add_argument("--dry-run", action="store_true", help="print the steps and their state, run nothing")
    top.add_argument("--redo", action="store_true", help="delete and run again what was made otherwise")
    top.add_argument("--no-run", action="store_true", help="write the table of what stands, run nothing")
    return top


@dataclass(frozen=True)
class Spec:
    """A table file, checked."""

    name: str
    title: str
    seeds: list[int]
    tests: list[str]
    metrics: list[str]
    against: str
    labels: dict[str, str]  # system: text shown, in the order of rows
    label_map: Mapping[str, Mapping[str, str]]
    subsets: Mapping[str, Mapping[str, list[str]]]
    claims: list[dict[str, Any]]
    resamples: int
    probe: bool
    unheard: list[str]  # tests that must share nothing with training


def read_spec(folder: Path, table: str, systems: Mapping[str, Mapping[str, Any]]) -> Spec:
    """The table file of "table-NAME".

    Raises:
        UserErrors: everything in it that is unknown, at once.
    """
    from aligncap.evaluation.evaluate import SCORES

    name = table.removeprefix("table-")
    path = folder / f"{name}.yaml"
    known = [f"table-{p.stem}" for p in sorted(folder.glob("*.yaml")) if p.stem != "systems"]
    if not path.is_file() or name == "systems" or not table.startswith("table-"):
        raise UserError(f"{table}: no such table; choose one of {', '.join(known)}")
    content = read_yaml(path)
    errors = [f"unknown key {key!r}{nearest(key, TABLE_KEYS)}" for key in set(content) - TABLE_KEYS]
    errors += [
        f"{key} is missing" for key in ("title", "tests", "metrics", "systems") if not content.get(key)
    ]
    kinds = {"seeds": list, "tests": list, "metrics": list, "systems": list, "claims": list, "unheard": list}
    kinds |= {"label_map": dict, "subsets": dict}
    errors += [
        f"{key}: a {'list' if kind is list else 'mapping'} is needed, not {content[key]!r}"
        for key, kind in kinds.items()
        if content.get(key) is not None and not isinstance(content[key], kind)
    ]
    errors += [
        f"{key}: {test}: a mapping is needed, not {value!r}"
        for key in ("label_map", "subsets")
        for test, value in (content[key].items() if isinstance(content.get(key), dict) else ())
        if not isinstance(value, dict)
    ]
    if errors:
        raise UserErrors([f"{path}: {error}" for error in errors])
    rows = [row if isinstance(row, dict) else {"name": row} for row in content.get("systems") or []]
    names = [str(row.get("name")) for row in rows]
    errors += [f"system {n}: none of systems.yaml{nearest(n, systems)}" for n in names if n not in systems]
    errors += [f"system {n} stands twice" for n in sorted({n for n in names if names.count(n) > 1})]
    errors += [
        f"system {n} is hidden, so it has no captions" for n in names if systems.get(n, {}).get("hidden")
    ]
    for metric in content.get("metrics") or []:
        if metric not in SCORES:
            errors.append(f"metric {metric}: none of {', '.join(SCORES)}{nearest(metric, SCORES)}")
        elif metric.startswith("distinct_"):
            errors.append(
                f"metric {metric}: is no sum over clips, so seeds and systems cannot be compared by it"
            )
    claims = content.get("claims") or []
    against = content.get("against") or (names[-1] if names else "")
    for number, claim in enumerate(claims, 1):
        if not claim.get("by"):
            errors.append(f"claim {number}: by is missing: name metrics")
        if set(claim) - {"better", "worse", "by", "at_least", "tests", "paper"}:
            errors.append(f"claim {number}: keys are better, worse, by, at_least, tests, paper")
        errors += [
            f"claim {number}: {claim.get(k)}: no system of this table"
            for k in ("better", "worse")
            if claim.get(k) not in names
        ]
        errors += [
            f"claim {number}: metric {m}: none of {', '.join(SCORES)}"
            for m in claim.get("by") or ()
            if m not in SCORES
        ]
    if against not in names:
        errors.append(f"against {against}: no system of this table{nearest(against, names)}")
    if errors:
        raise UserErrors([f"{path}: {error}" for error in errors])
    labels = {
        n: str(row.get("label") or systems[n].get("label") or n) for n, row in zip(names, rows, strict=True)
    }
    return Spec(
        name,
        content["title"],
        [int(seed) for seed in content.get("seeds", [0])],
        list(content["tests"]),
        list(content["metrics"]),
        against,
        labels,
        content.get("label_map") or {},
        content.get("subsets") or {},
        claims,
        int(content.get("resamples", 2000)),
        bool(content.get("probe")),
        list(content.get("unheard") or []),
    )


def at_hand(name: str) -> str | None:
    """Why a model's weights cannot be had on this machine, or None."""
    from aligncap.models.hub import resolve

    try:
        resolve(name, fetch=False)
    except UserError:
        return "weights not at hand"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps of a table and write it: 0, 1 (steps failed), 2 (a mistake) or 130 (stopped)."""
    a = parser().parse_args(argv)
    # A shell that starts this in the background leaves SIGINT ignored, here and in what is started from here.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return reproduce(a)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"reproduce: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reproduce: stopped; the same command goes on from there", file=sys.stderr)
        return 130


def say(line: str) -> None:
    print(line, flush=True)


def reproduce(a: argparse.Namespace) -> int:
    run = Path(a.run)
    out = Path(a.out) if a.out else run / "tables"
    systems = read_systems(Path(a.tables) / "systems.yaml")
    spec = read_spec(Path(a.tables), a.table, systems)
    spec = replace(spec, seeds=a.seeds or spec.seeds, tests=a.tests or spec.tests)
    if a.workers < 1:
        raise UserError(f"--workers {a.workers}: at least 1")
    for name in a.systems or ():
        if name not in spec.labels:
            raise UserError(f"--systems {name}: no system of this table{nearest(name, spec.labels)}")
    missing = [test for test in spec.tests if not (run / "data" / f"{test}.jsonl").is_file()]
    if missing:
        made = ", ".join(f"{run}/data/{test}.jsonl" for test in missing)
        raise UserError(f"{made}: no such manifest; prepare and annotate it, or choose others by --tests")
    for name in ("train", "dev"):
        if spec.probe and not (run / "data" / f"{name}.jsonl").is_file():
            raise UserError(f"{run}/data/{name}.jsonl: no such manifest, and the linear probe needs it")
    subsets = _write_subsets(spec, run, out)  # reads every test set: errors now, not after hours of training
    whole = make_plan(systems, list(spec.labels), spec.seeds, spec.tests, run, out, at_hand)
    chosen = [name for name in spec.labels if not a.systems or name in a.systems]
    plan = make_plan(systems, chosen, spec.seeds, spec.tests, run, out, at_hand)
    if spec.probe:
        step = probe_step(spec.name, spec.tests, subsets, run, out)
        plan.steps = {step.id: step, **plan.steps}
        whole.steps = {step.id: step, **whole.steps}
    failed: dict[str, str] = {}
    if not a.no_run:
        found = states(plan)
        if a.dry_run:
            _print_steps(plan, found)
            return 0
        other = [plan.steps[name] for name, (what, _) in found.items() if what in ("changed", "stale")]
        if other and not a.redo:
            raise UserErrors(
                [
                    f"{step.id}: {found[step.id][0]}: {found[step.id][1]}; delete {step.owns} and its record "
                    f"{out}/done/{step.id}.json, or let --redo do so"
                    for step in other
                ]
            )
        clear(other, out, take)
        failed = run_steps(plan, a.workers, say)
    for sheet in _write(spec, whole, run, out):
        _print(sheet)
    for name, error in failed.items():
        log = log_path(plan.steps[name], out)
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:] if log.is_file() else []
        print(f"reproduce: {name} {error}; the end of {log}:", file=sys.stderr)
        for line in tail:
            print(f"    {line}", file=sys.stderr)
    return 1 if failed else 0


def _write_subsets(spec: Spec, run: Path, out: Path) -> list[str]:
    """Write the clips of each subset as a manifest of its own; their names."""
    names = []
    for test in spec.tests:
        source = run / "data" / f"{test}.jsonl"
        utterances = read_manifest(source)
        for subset, labels in spec.subsets.get(test, {}).items():
            chosen = [u for u in utterances if u.emotion in labels]
            if not chosen:
                raise UserError(f"subset {subset} of {test}: no clip has one of {', '.join(labels)}")
            path = subset_path(out, f"{test}-{subset}")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_manifest(path, rebase(chosen, source, path))
            names.append(path.stem)
    return names


def _print_steps(plan: Plan, found: Mapping[str, tuple[str, str]]) -> None:
    for step in plan.steps.values():
        what, why = found[step.id]
        took = record_of(step, plan.out).get("seconds")
        spent = f" ({clock(took)})" if took and what == "done" else ""
        print(f"{what:8}{spent} {step.id}: aligncap {' '.join(step.words)}{f'  [{why}]' if why else ''}")
    for name, why in plan.absent.items():
        print(f"{'absent':8} {name}: {why}")
    done = sum(what == "done" for what, _ in found.values())
    print(f"{done} of {len(found)} steps stand")


def _print(sheet: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(sheet)


def _write(spec: Spec, plan: Plan, run: Path, out: Path) -> list[Any]:
    """Score what stands, write table.md, table.tex, table.csv and run.json; what to print."""
    from table_rows import build

    from aligncap.evaluation.report.tables import csv_text, latex, markdown, terminal
    from aligncap.utils.run_record import write_run_record

    table, sources = build(spec, plan, run, out, say)
    if table is None:
        say("no system has captions yet, so there is no table to write")
        return []
    folder = out / spec.name
    write_text(folder / "table.md", markdown(table))
    write_text(folder / "table.tex", latex(table))
    write_text(folder / "table.csv", csv_text(table))
    manifests: list[str | Path] = [run / "data" / f"{test}.jsonl" for test in spec.tests]
    write_run_record(
        folder, "reproduce", vars(spec) | {"run": str(run)}, manifests, seed=spec.seeds, **sources
    )
    return [*terminal(table), *table.claims, *table.notes, f"table: {folder}/table.md, table.tex, table.csv"]


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
