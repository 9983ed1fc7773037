"""The paper's tables, one command each: every system trained over seeds, captioned, scored and compared.

    bash scripts/quickstart.sh --corpus ravdess RAVDESS_FOLDER
    python scripts/reproduce.py table-alignment --run runs/ravdess

Tables are files of configs/tables (docs/tables.md): systems as chains of `aligncap` commands, each with the
file that it makes. As with `make`, a command runs where its file is missing. A killed run goes on; a failed
command stops what needs it and nothing else. RUN/tables/NAME/table.md and others show what there is.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import pandas as pd
import yaml
from pydantic import BaseModel, PositiveFloat, ValidationError

from aligncap.data.manifest import Utterance, read_manifest, rebase, write_manifest
from aligncap.data.provenance import known_provenance, refuse_overlap
from aligncap.evaluation.metrics import EXTRAS, SCORES
from aligncap.evaluation.probe import read_probe
from aligncap.evaluation.report import tables
from aligncap.evaluation.report.html import Baseline
from aligncap.evaluation.scoring import score_rows
from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import config_path, file_sha256, read_jsonl, write_json, write_text
from aligncap.utils.options import Config, option, parse, read_config, usage
from aligncap.utils.run_record import git_commit, write_run_record
from aligncap.utils.statistics import FEWEST, Run, clusters_of

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "configs/tables"
PROGRAM = [sys.executable, "-m", "aligncap"]
M = TypeVar("M", bound=BaseModel)


@dataclass
class ReproduceConfig(Config):
    """Train, caption and score what a table shows, and write it.

    Examples:
        python scripts/reproduce.py table-ablation --run runs/ravdess --dry_run
        python scripts/reproduce.py table-zero-shot --systems distill sft --seeds 0
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("table",)

    table: str = option(help="table-NAME of configs/tables/NAME.yaml: table-alignment, table-ablation, …")
    run: str = option("runs/ravdess", "Folder of the quickstart: data, teacher, probe.")
    seeds: list[int] = option([], "Default: those of the table.")
    systems: list[str] = option([], "Run these only; the table shows all that were run.")
    tests: list[str] = option([], "Default: those of the table.")
    dry_run: bool = option(False, "Print the commands and their states, run nothing.")
    redo: bool = option(False, "Delete and run again what another command or other inputs made.")
    no_run: bool = option(False, "Write the table of what there is, run nothing.")


class Command(BaseModel, extra="forbid"):
    """A line of a chain: words with {placeholders}, and the file that exists when it is done."""

    run: list[str]
    makes: str


class System(BaseModel, extra="forbid"):
    """An entry of systems.yaml (docs/tables.md)."""

    label: str = ""
    like: str = ""
    needs: list[str] = []
    once: bool = False
    seeds: list[int] = []
    tests: list[str] = []
    values: dict[str, str | list[str]] = {}
    steps: list[Command | list[Command]] = []
    more: list[str] = []
    model: str = ""

    def commands(self) -> list[Command]:
        parts = [step if isinstance(step, list) else [step] for step in self.steps]
        return [command.model_copy() for part in parts for command in part]


class Claim(BaseModel, extra="forbid"):
    """ "better" is better than "worse" by these metrics; by those with a margin, not worse by so much."""

    better: str
    worse: str
    by: list[str]
    margin: dict[str, PositiveFloat] = {}
    tests: list[str] = []


class Table(BaseModel, extra="forbid"):
    """A table file (docs/tables.md)."""

    title: str
    tests: list[str]
    metrics: list[str]
    systems: list[str | dict[str, str]]
    against: str
    seeds: list[int] = [0]
    claims: list[Claim] = []
    label_map: dict[str, dict[str, str]] = {}
    subsets: dict[str, dict[str, list[str]]] = {}
    unheard: list[str] = []
    probe: bool = False
    folds: int = 0
    teacher: list[str] = []  # of folds: further words of `train teacher`
    dev: int | None = None  # of folds: `split --dev`

    @property
    def labels(self) -> dict[str, str]:
        """What the systems are called in this table, in the order of rows."""
        rows = [row if isinstance(row, dict) else {"name": row} for row in self.systems]
        return {row["name"]: row.get("label", "") for row in rows}


def checked(kind: type[M], content: Any, where: str) -> M:
    """`content` as `kind`.

    Raises:
        UserErrors: every error in it, with its place.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [f"{where}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserErrors(lines) from error


def read_systems(path: Path) -> dict[str, System]:
    """Systems by name, with what `like` takes over from another and `more` appends to the last training."""
    content = read_config(str(path))
    systems: dict[str, System] = {}
    for name, row in content.items():
        own = checked(System, row, f"{path}: {name}")
        if missing := [*(n for n in own.needs if n not in content), *({own.like} - {"", *systems})]:
            raise UserError(
                f"{path}: {name}: {missing[0]}: no such system above{nearest(missing[0], content)}"
            )
        base = systems[own.like] if own.like else System()
        steps = (own if own.steps else base).commands()
        if own.more:
            trained = [step for step in steps if step.run[0] == "train"]
            if not trained:
                raise UserError(f"{path}: {name}: more: there is no training to add to")
            trained[-1].run = trained[-1].run + own.more
        merged = {"steps": steps, "needs": own.needs or base.needs, "values": base.values | own.values}
        systems[name] = own.model_copy(update=merged | {"model": own.model or base.model})
    return systems


def read_table(table: str, systems: dict[str, System]) -> Table:
    """The table file of "table-NAME", its names checked."""
    path = TABLES / f"{table.removeprefix('table-')}.yaml"
    known = [f"table-{p.stem}" for p in sorted(TABLES.glob("*.yaml")) if p.stem != "systems"]
    if table not in known:
        raise UserError(f"{table}: no such table; choose one of {', '.join(known)}")
    spec = checked(Table, read_config(str(path)), str(path))
    shown = {name for name, system in systems.items() if system.model}
    parties = [name for claim in spec.claims for name in (claim.better, claim.worse)]
    errors = [f"{n}: no system with a model{nearest(n, shown)}" for n in spec.labels if n not in shown]
    errors += [f"{n}: no system of this table" for n in (spec.against, *parties) if n not in spec.labels]
    errors += [f"margin of {n}: not in by" for c in spec.claims for n in c.margin if n not in c.by]
    for metric in [*spec.metrics, *(metric for claim in spec.claims for metric in claim.by)]:
        if metric not in SCORES:
            errors.append(f"metric {metric}: none of {', '.join(SCORES)}{nearest(metric, SCORES)}")
        elif metric.startswith("distinct_"):
            errors.append(f"metric {metric}: is no sum over clips, so seeds cannot be compared by it")
    if errors:
        raise UserErrors([f"{path}: {error}" for error in errors])
    named = [{"name": n, "label": label or systems[n].label or n} for n, label in spec.labels.items()]
    return spec.model_copy(update={"systems": named})


@dataclass(frozen=True)
class Step:
    """One command and the file that it makes, with a record of the command, its inputs and its time."""

    name: str
    argv: list[str]
    makes: Path
    folder: Path  # of records and logs
    after: tuple[str, ...]  # steps that must have ended well

    def record(self) -> dict[str, Any]:
        path = self.folder / f"{self.name}.json"
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}

    def inputs(self) -> dict[str, str]:
        """What the files that the command names hold: weights by time, recipes without their remarks."""
        found = {}
        for before, word in zip(("", *self.argv), self.argv, strict=False):
            path = config_path(word) if before == "--config" else Path(word)
            if before in ("--out", "--output_dir") or os.sep not in str(path) or not path.exists():
                continue
            if path.is_dir():
                found[word] = str([f.stat().st_mtime_ns for f in sorted(path.glob("*.safetensors"))])
            elif path.suffix == ".yaml":
                found[word] = str(yaml.safe_load(path.read_text("utf-8")))
            else:
                found[word] = file_sha256(path)
        return found

    def state(self) -> str:
        """ "to do", "begun" (goes on), "done", or "changed: …" by another command or other inputs."""
        record = self.record()
        if not record or ("seconds" in record and not self.makes.exists()):
            return "to do"
        if record["argv"] != self.argv:
            return f"changed: was {shlex.join(record['argv'])}"
        now = self.inputs()
        if other := [name for name, value in record["inputs"].items() if now.get(name) != value]:
            return f"changed: another content now: {', '.join(other)}"
        return "done" if "seconds" in record else "begun"

    def owns(self) -> Path:
        """What to delete for it to start over: a training's whole folder, else what it makes."""
        flags = [i for i, word in enumerate(self.argv) if word in ("--output_dir", "--out")]
        return Path(self.argv[flags[0] + 1]) if flags else self.makes

    def run(self, lock: int) -> str:
        """Run it where it is not done; why it failed, or nothing."""
        if (state := self.state()) == "done":
            return ""
        if state.startswith("changed"):
            if not self.owns().resolve().is_relative_to(self.folder.parent.resolve()):
                return f"was made otherwise; delete {self.owns()}, which lies outside {self.folder.parent}"
            shutil.rmtree(self.owns(), ignore_errors=True)
            self.makes.unlink(missing_ok=True)
        training = self.argv[0] == "train"
        if state == "begun" and not training and self.owns().is_dir():  # written whole, but not noted
            shutil.rmtree(self.owns())
        begun = training and ((self.owns() / "run.json").exists() or (self.owns() / "base").exists())
        argv = [*self.argv, "--resume_from_checkpoint", "true"] if begun else self.argv
        record = {"argv": self.argv, "inputs": self.inputs(), "commit": git_commit()}
        write_json(self.folder / f"{self.name}.json", record)
        self.makes.parent.mkdir(parents=True, exist_ok=True)
        print(f"{self.name} {'goes on' if begun else 'begins'}", flush=True)
        start = time.monotonic()
        with (self.folder / f"{self.name}.log").open("ab") as log:
            log.write(f"$ aligncap {shlex.join(argv)}\n".encode())
            log.flush()
            # The lock is the command's too: when this process is killed, the next waits for its end.
            process = subprocess.Popen(
                [*PROGRAM, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,
            )
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)  # a training keeps a checkpoint
                process.wait()
                raise
        seconds = round(time.monotonic() - start, 2)
        if code or not self.makes.exists():
            print(f"{self.name} FAILED after {seconds} s", flush=True)
            return f"ended with {code}" if code else f"made no {self.makes}"
        write_json(self.folder / f"{self.name}.json", record | {"seconds": seconds})
        print(f"{self.name} done in {seconds} s", flush=True)
        return ""


def captions_path(out: Path, test: str, system: str, seed: int) -> Path:
    return out / "captions" / test / f"{system}-{seed}.jsonl"


def caption_files(spec: Table, run: Path, test: str, system: str, seed: int) -> list[Path]:
    """Where a system's captions of a test set are: one file, or one a fold."""
    runs = [run / f"folds/{fold}" for fold in range(spec.folds)] or [run]
    return [captions_path(own / "tables", test, system, seed) for own in runs]


def fill(word: str, values: dict[str, str | list[str]]) -> list[str]:
    """A word with {placeholders} replaced, whose values may have some too; a list stands for its words."""
    found = values.get(word[1:-1])
    if isinstance(found, list):
        return [part for one in found for part in fill(one, values)]
    for _ in range(2):
        for name, value in values.items():
            word = word.replace(f"{{{name}}}", str(value))
    if "{" in word:
        raise UserError(f"{word}: unknown placeholder; known are {', '.join(values)}")
    return [word]


def make_plan(systems: dict[str, System], names: Sequence[str], spec: Table, run: Path) -> dict[str, Step]:
    """What the systems take, with those they need, one seed after the other; of every fold, a run of its own.

    A fold's captions are joined into those of all clips by `scored`.
    """
    if not spec.folds:
        return plan_of_run(systems, names, spec, run)
    plan = {}
    for fold in range(spec.folds):
        own, done = run / f"folds/{fold}", run / f"folds/{fold}/done"
        argv = ["split", f"{run}/clued.jsonl", "--folds", str(spec.folds), "--fold", str(fold)]
        argv += [] if spec.dev is None else ["--dev", str(spec.dev)]
        split = Step(f"fold-{fold}.split", [*argv, "--out", f"{own}/data"], own / "data/test.jsonl", done, ())
        argv = ["train", "teacher", "--config", "teacher", "--train_manifest", f"{own}/data/train.jsonl"]
        argv += ["--output_dir", f"{own}/teacher", *spec.teacher]
        teacher = Step(f"fold-{fold}.teacher", argv, own / "teacher/config.json", done, (split.name,))
        plan |= {split.name: split, teacher.name: teacher}
        plan |= plan_of_run(systems, names, spec, own, f"fold-{fold}.", (teacher.name,))
    return plan


def plan_of_run(
    systems: dict[str, System],
    names: Sequence[str],
    spec: Table,
    run: Path,
    prefix: str = "",
    first: tuple[str, ...] = (),
) -> dict[str, Step]:
    """The steps of one run; `first` are those that all others follow."""
    plan: dict[str, Step] = {}
    out = run / "tables"

    def add(name: str, seed: int, asked: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Add the steps of a system; the last of them."""
        system = systems[name]
        if name in asked:
            raise UserError(f"systems need each other: {' → '.join((*asked, name))}")

        def place(of: str) -> str:
            return f"{of}-once" if systems[of].once else f"{of}-{seed}"

        after = (*first, *(last for need in system.needs for last in add(need, seed, (*asked, name))))
        key = place(name)
        values = system.values | {"run": str(run), "seed": str(seed), "at": str(out / "systems" / key)}
        values |= {part: str(run / f"data/{part}.jsonl") for part in ("train", "dev", "test")}
        values |= {f"system:{need}": str(out / "systems" / place(need)) for need in system.needs}
        for number, command in enumerate(system.commands(), 1):
            argv = [word for given in command.run for word in fill(given, values)]
            step = Step(
                f"{prefix}{key}.{number}", argv, Path(*fill(command.makes, values)), out / "done", after
            )
            plan.setdefault(step.name, step)
            after = (step.name,)
        for test in spec.tests if name in spec.labels else ():
            if test in (system.tests or spec.tests):
                made = captions_path(out, test, name, seed)
                argv = ["caption", "--model", *fill(system.model, values), "--dtype", "auto"]
                argv += ["--prior", "equal"]  # acted corpora have about as many clips of each emotion
                argv += ["--manifest", str(run / f"data/{test}.jsonl"), "--out", str(made)]
                step = Step(f"{prefix}{key}.caption-{test}", argv, made, out / "done", after)
                plan.setdefault(step.name, step)
        return after

    for seed in spec.seeds:
        for name in names:
            if seed in (systems[name].seeds or spec.seeds):
                add(name, seed)
    return plan


def run_steps(steps: Sequence[Step], lock: int) -> dict[str, str]:
    """Run what is not done, in order; why steps failed, by name. What needs a failed step is left out."""
    failed: dict[str, str] = {}
    for step in steps:
        if needed := [name for name in step.after if name in failed]:
            failed[step.name] = f"needs {needed[0]}"
        elif error := step.run(lock):
            failed[step.name] = error
    return failed


class Block(NamedTuple):
    """A test set, or its clips with some labels, with a manifest of just these."""

    test: str
    name: str
    title: str
    manifest: Path
    clips: list[Utterance]
    keep: list[bool]  # of the clips of the test set


def test_blocks(spec: Table, run: Path, out: Path) -> list[Block]:
    """Each test set and its subsets, whose manifests are written for the linear probe."""
    blocks = []
    for test in spec.tests:
        source = run / ("clued.jsonl" if spec.folds else f"data/{test}.jsonl")
        utterances = read_manifest(source)
        subsets: dict[str, list[str]] = {"": [], **spec.subsets.get(test, {})}
        for subset, labels in subsets.items():
            keep = [not labels or u.emotion in labels for u in utterances]
            clips = [u for u, kept in zip(utterances, keep, strict=True) if kept]
            if not clips:
                raise UserError(f"subset {subset} of {test}: no clip has one of {', '.join(labels)}")
            name, title, manifest = test, test, source
            if subset:
                name, title = f"{test}-{subset}", f"{test}, {subset}: {', '.join(labels)}"
                manifest = out / f"probe/{name}.jsonl"
                write_manifest(manifest, rebase(clips, source, manifest))
            title += f" ({len(clips)} clips, {clusters_of(clips).note})"
            blocks.append(Block(test, name, title, manifest, clips, keep))
    return blocks


def scored(
    spec: Table, steps: dict[Path, Step], block: Block, run: Path, notes: list[str]
) -> dict[str, dict[int, Run]]:
    """Scores of a test set by system and seed, of caption files that exist; of folds, of all at once."""
    found: dict[str, dict[int, Run]] = {name: {} for name in spec.labels}
    for name, seed in ((name, seed) for name in found for seed in spec.seeds):
        paths = caption_files(spec, run, block.test, name, seed)
        made = [steps[p] for p in paths if p in steps and p.is_file() and "seconds" in steps[p].record()]
        if len(made) < len(paths):
            if made:
                notes.append(f"{name}, seed {seed}: {len(made)} of {len(paths)} folds, not in the table")
            continue
        for step, state in ((step, step.state()) for step in made):
            if state != "done":
                notes.append(f"{step.name}: {state}; run the table again")
            if block.test in spec.unheard:
                model = step.argv[step.argv.index("--model") + 1]
                refuse_overlap(known_provenance([model]), [block.manifest])
        extras = [metric for metric in spec.metrics if metric in EXTRAS]
        try:
            found[name][seed] = score_rows(
                [row for path in paths for row in read_jsonl(path)],
                block.clips,
                label_map=spec.label_map.get(block.test),
                similarity="auto" if "similarity" in extras else "none",
                coco=[metric for metric in extras if metric != "similarity"],
            ).statistics
        except UserError as error:
            raise UserError(f"{', '.join(map(str, paths))}: {error}") from error
    return found


def probes(path: Path, block: Block, notes: list[str]) -> list[Baseline]:
    """The linear probe on one block; where there is none, a note."""
    try:
        return read_probe(path, block.manifest)
    except UserError as error:
        notes.append(f"no linear probe on {block.name}: {error}")
        return []


NOTES = (
    "Mean over seeds {seeds} ± standard deviation over seeds; [95 % interval by the jackknife over speakers, "
    "left out of all seeds at once]. Bold: best of the column.",
    "Differences are to {against}, over the seeds that both have. p: of exchanging the two systems' captions "
    "speaker by speaker (with a margin: t test), corrected by Holm for all differences of the test set, or "
    "all claims; it holds below 0.05. Of fewer than {fewest} speakers there is no p and no claim. 3/3: in so "
    "many seeds the difference has this sign; other seeds are not in interval and p.",
    "A subset is scored on its clips alone; captions that name another emotion count as wrong there.",
)


def write_table(spec: Table, name: str, plan: dict[str, Step], blocks: list[Block], run: Path) -> None:
    """Score what there is; write table.md, table.tex, table.csv, table.json and run.json, and print it."""
    out, notes = run / "tables", list[str]()
    frames: list[pd.DataFrame] = []
    claims: list[tables.Claimed] = []
    steps = {step.makes: step for step in plan.values()}
    whole: dict[str, dict[str, dict[int, Run]]] = {}
    for block in blocks:
        if block.test not in whole:
            whole[block.test] = scored(spec, steps, block, run, notes)
        runs = {
            system: {
                seed: {metric: replace(s, sums=s.sums[block.keep]) for metric, s in one.items()}
                for seed, one in seeds.items()
            }
            for system, seeds in whole[block.test].items()
        }
        if not any(runs.values()):
            continue
        labels: dict[str, tuple[str, str]] = {}
        for system, label in spec.labels.items():
            wanted = [s for s in spec.seeds if caption_files(spec, run, block.test, system, s)[0] in steps]
            lacking = ", ".join(str(seed) for seed in wanted if seed not in runs[system])
            note = "" if wanted == spec.seeds else f"seed {', '.join(map(str, wanted))} only"
            if lacking:
                note = f"seed {lacking} missing" if runs[system] else "not run"
            if wanted:
                labels[system] = (label, note)
        rows = tables.rows_of(runs, labels, spec.against, block.clips, spec.metrics)
        for i, row in enumerate(probes(out / f"probe/{name}.json", block, notes) if spec.probe else ()):
            head = {"system": f"probe-{i}", "label": row.name, "seeds": "", "note": "", "baseline": True}
            rows += [head | tables.line(metric, row.cells, {}) for metric in spec.metrics]
        frames.append(pd.DataFrame(rows, dtype=object).assign(block=block.name, title=block.title))
        for claim in (c for c in spec.claims if block.name in (c.tests or spec.tests)):
            gaps = tables.differences(runs, claim.worse, claim.better, block.clips, claim.by, claim.margin)
            names = block.name, spec.labels[claim.better], spec.labels[claim.worse]
            claims += [(*names, m, claim.margin.get(m, 0.0), gaps.get(m)) for m in claim.by]
    if not frames:
        print("no system has captions yet, so there is no table to write")
        return
    seconds: Counter[str] = Counter()
    for step in plan.values():
        seconds[step.name.rpartition(".")[0]] += step.record().get("seconds", 0)
    values = {"against": spec.labels[spec.against], "fewest": FEWEST}
    notes = [
        *(note.format(**values, seeds=" ".join(map(str, spec.seeds))) for note in NOTES),
        *(f"{test}: {a} counts as {b}" for test, words in spec.label_map.items() for a, b in words.items()),
        *notes,
        "Seconds: " + ", ".join(f"{key} {value:.0f}" for key, value in seconds.items() if value),
    ]
    frame, folder, remarks = (
        pd.concat(frames),
        out / name,
        {"Claims": tables.outcomes(claims), "Notes": notes},
    )
    text = tables.markdown(frame, spec.title, spec.labels[spec.against], remarks)
    write_text(folder / "table.md", text)
    write_text(folder / "table.tex", tables.latex(frame, name, spec.title, remarks))
    write_text(folder / "table.csv", frame.drop(columns=["title", "baseline"]).to_csv(index=False))
    sources = {str(p): step.record() | {"sha256": file_sha256(p)} for p, step in steps.items() if p.is_file()}
    record = {"rows": json.loads(frame.to_json(orient="records")), **remarks, "sources": sources}
    write_json(folder / "table.json", record)
    manifests: list[str | Path] = [block.manifest for block in blocks if block.name == block.test]
    write_run_record(folder, "reproduce", spec.model_dump() | {"run": str(run)}, manifests, seed=spec.seeds)
    print(f"{text}\n{folder}/table.md, table.tex, table.csv, table.json")


def reproduce(config: ReproduceConfig) -> int:
    """Run the steps of a table and write it: 0, or 1 where steps failed."""
    run, out, name = Path(config.run), Path(config.run) / "tables", config.table.removeprefix("table-")
    systems = read_systems(TABLES / "systems.yaml")
    spec = read_table(config.table, systems)
    spec.seeds, spec.tests = config.seeds or spec.seeds, config.tests or spec.tests
    for system in config.systems:
        if system not in spec.labels:
            raise UserError(f"--systems {system}: no system of this table{nearest(system, spec.labels)}")
    needed = [f"data/{part}.jsonl" for part in (*spec.tests, *(("train", "dev") if spec.probe else ()))]
    for part in ["clued.jsonl"] if spec.folds else needed:
        if not (run / part).is_file():
            raise UserError(f"{run}/{part}: no such manifest; make it, or choose others by --tests")
    blocks = test_blocks(spec, run, out)
    plan = make_plan(systems, list(spec.labels), spec, run)
    jobs = make_plan(systems, config.systems, spec, run) if config.systems else plan
    if spec.probe:
        made = out / f"probe/{name}.json"
        argv = ["probe", "--train", f"{run}/data/train.jsonl", "--dev", f"{run}/data/dev.jsonl", "--test"]
        argv += [*(str(block.manifest) for block in blocks), "--out", str(made)]
        jobs = {"probe": Step(f"probe-{name}", argv, made, out / "done", ())} | jobs
    steps = [(step, step.state()) for step in jobs.values()]
    if config.dry_run:
        for step, state in steps:
            print(f"{state:8} {step.name}: aligncap {shlex.join(step.argv)}")
        return 0
    changed = [f"{step.name}: {state}; {step.owns()}" for step, state in steps if state.startswith("changed")]
    if changed and not (config.redo or config.no_run):
        raise UserErrors([*changed, "delete these files and folders, or let --redo do so"])
    failed: dict[str, str] = {}
    if not config.no_run:
        for folder in {step.folder for step in jobs.values()} | {out}:
            folder.mkdir(parents=True, exist_ok=True)
        with (out / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{out}: another process is at work there; wait for it or stop it") from error
            failed = run_steps(list(jobs.values()), lock.fileno())
    write_table(spec, name, plan, blocks, run)
    for key, why in failed.items():
        print(f"reproduce: {key} {why}", file=sys.stderr)
        if not why.startswith("needs "):
            lines = (jobs[key].folder / f"{key}.log").read_text("utf-8", errors="replace").splitlines()[-8:]
            print("\n".join(f"    {line}" for line in lines), file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """0, 1 (steps failed), 2 (a mistake of the user's) or 130 (stopped)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        print(f"{__doc__}\n{usage('reproduce', ReproduceConfig)}")
        return 0
    # A shell that starts this in the background leaves SIGINT ignored, here and in what is started from here.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return reproduce(parse(ReproduceConfig, words))
    except UserError as error:
        print("\n".join(f"reproduce: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reproduce: stopped; the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
