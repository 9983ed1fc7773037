"""Rows of a table of reproduce.py: caption files scored, pooled over seeds, compared; their sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from table_plan import ONCE, Plan, probe_path, record_of, states, subset_path
from table_steps import clock

from aligncap.data.manifest import Utterance, read_manifest
from aligncap.data.provenance import known_provenance, refuse_overlap
from aligncap.evaluation.evaluate import EXTRAS
from aligncap.evaluation.report.tables import (
    Block,
    Cell,
    Difference,
    Row,
    Table,
    cells,
    difference_text,
    differences,
    file_statistics,
    holm,
    outcome,
)
from aligncap.evaluation.run import read_probe
from aligncap.evaluation.systems import LESS_IS_BETTER, TITLES
from aligncap.utils.errors import UserError
from aligncap.utils.io import file_sha256
from aligncap.utils.statistics import Statistic, clusters_of

Runs = dict[str, Mapping[str, Statistic]]  # by seed


def build(
    spec: Any, plan: Plan, run: Path, out: Path, say: Callable[[str], None]
) -> tuple[Table | None, dict[str, Any]]:
    """The table of what stands, and the sources of its numbers; None where no captions stand."""
    blocks: list[Block] = []
    outcomes: dict[int, list[str]] = {}
    notes: list[str] = []
    sources: dict[str, Any] = {"captions": {}, "systems": _seconds(spec, plan)}
    for test in spec.tests:
        manifest = run / "data" / f"{test}.jsonl"
        utterances = read_manifest(manifest)
        label_map = spec.label_map.get(test) or {}
        runs = _scored(spec, plan, test, manifest, utterances, out, sources["captions"], notes)
        if not any(runs.values()):
            continue
        for subset, labels in {"": None, **spec.subsets.get(test, {})}.items():
            keep = None if labels is None else [u.emotion in labels for u in utterances]
            clips = utterances if keep is None else [u for u, k in zip(utterances, keep, strict=True) if k]
            if not clips:
                raise UserError(f"subset {subset} of {test}: no clip has one of {', '.join(labels or [])}")
            name = f"{test}-{subset}" if subset else test
            title = f"{test}{f', {subset}: ' + ', '.join(labels) if labels else ''} "
            title += f"({len(clips)} clips, {clusters_of(clips).note})"
            rows = _rows(spec, plan, test, runs, utterances, keep)
            rows += _probes(spec, manifest if keep is None else subset_path(out, name), run, out, notes)
            blocks.append(Block(name, title, spec.metrics, rows))
            for number, claim in enumerate(spec.claims):
                if name in claim.get("tests", [test]):
                    outcomes.setdefault(number, []).extend(_claim(spec, claim, runs, utterances, keep, name))
        if label_map:
            renamed = ", ".join(f"{a} counts as {b}" for a, b in label_map.items())
            notes.append(f"{test}: {renamed}")
    if not blocks:
        return None, sources
    say(f"scored {len(sources['captions'])} caption files")
    seeds = " ".join(str(seed) for seed in spec.seeds)
    notes = [
        f"Mean over seeds {seeds} ± standard deviation over seeds; [95 % interval by resampling speakers, "
        f"the same draw for all seeds, {spec.resamples} draws]. Bold: best of the column.",
        f"Differences are to {spec.labels[spec.against]}, over the seeds that both have. p: the larger of a "
        "bootstrap by speaker and a permutation of the two systems' captions clip by clip. Holm: corrected "
        "for the number of systems in the column; p of claims are not corrected. 3/3: in so many seeds the "
        "difference has this sign. Seeds are not resampled: chance in training shows in ± and in this count.",
        "Models that hear a clip against its speaker take the mean of up to 32 unlabelled clips of the same "
        "speaker from the test set itself; single files of an unknown speaker are heard less well.",
        "A subset is scored on its clips alone; captions that name another emotion count as wrong there."
        if any(spec.subsets.get(test) for test in spec.tests)
        else "",
        *notes,
        *(f"{spec.labels[name]}: {why}" for name, why in plan.absent.items()),
        _cost(sources["systems"]),
    ]
    claims = [line for number in sorted(outcomes) for line in outcomes[number]]
    against = spec.labels[spec.against]
    return Table(spec.name, spec.title, against, blocks, claims, [note for note in notes if note]), sources


def _scored(
    spec: Any,
    plan: Plan,
    test: str,
    manifest: Path,
    utterances: list[Utterance],
    out: Path,
    sources: dict[str, Any],
    notes: list[str],
) -> dict[str, Runs]:
    """Statistics of every caption file that stands, by system and seed.

    Raises:
        UserError: a file cannot be scored; a model has heard a test set that it must not have heard.
    """
    digest = file_sha256(manifest)
    states_now = states(plan)
    made_by = {str(step.makes): step for step in plan.steps.values()}
    runs: dict[str, Runs] = {name: {} for name in spec.labels}
    for (where, name, seed), path in plan.captions.items():
        if where != test or not path.is_file():
            continue
        step = made_by.get(str(path))
        record = record_of(step, plan.out) if step else {}
        if step and not record.get("finished"):
            continue
        if step and (what := states_now[step.id])[0] != "done":
            notes.append(f"{step.id} is of before: {what[1] or what[0]}; run the table again")
        if step and test in spec.unheard:
            model = record["words"][record["words"].index("--model") + 1]
            refuse_overlap(known_provenance([model]), [manifest])
        try:
            runs[name][seed] = file_statistics(
                path,
                utterances,
                digest,
                label_map=spec.label_map.get(test),
                extras=[metric for metric in spec.metrics if metric in EXTRAS],
                cache_folder=out / "scores",
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        sources[f"{test}/{name}-{seed}"] = {
            "captions": str(path),
            "sha256": file_sha256(path),
            "git_commit": record.get("git_commit"),
            "seconds": record.get("seconds"),
            "words": record.get("words"),
        }
    return runs


def _rows(
    spec: Any,
    plan: Plan,
    test: str,
    runs: Mapping[str, Runs],
    utterances: list[Utterance],
    keep: list[bool] | None,
) -> list[Row]:
    found: dict[str, dict[str, Cell]] = {}
    gaps: dict[str, dict[str, Difference]] = {}
    for name, by_seed in runs.items():
        if not by_seed:
            continue
        found[name] = cells(
            list(by_seed.values()), utterances, spec.metrics, keep=keep, resamples=spec.resamples
        )
        first, second = _paired(runs[spec.against], by_seed)
        if name != spec.against and first:
            gaps[name] = differences(
                first, second, utterances, spec.metrics, keep=keep, resamples=spec.resamples
            )
    for metric in spec.metrics:
        corrected = holm({name: told_[metric] for name, told_ in gaps.items() if metric in told_})
        for name, gap in corrected.items():
            if metric in found[name]:
                found[name][metric] = replace(found[name][metric], difference=gap)
    rows = []
    for name, label in spec.labels.items():
        wanted = [seed for where, system, seed in plan.captions if (where, system) == (test, name)]
        lacking = [seed for seed in wanted if seed not in runs[name]]
        note = plan.absent.get(name, "")
        if lacking:
            note = f"seed {', '.join(lacking)} missing" if len(lacking) < len(wanted) else "not run"
        if note == "" and len(wanted) < len(spec.seeds) and wanted != [ONCE]:
            note = f"seed {', '.join(wanted)} only"
        rows.append(Row(name, label, found.get(name, {}), tuple(runs[name]), note))
    return rows


def _paired(first: Runs, second: Runs) -> tuple[list[Any], list[Any]]:
    """Runs of both with the same seed; what has no seed goes with every one."""
    seeds = [s for s in dict.fromkeys([*first, *second]) if s != ONCE]
    pairs = [(first.get(s, first.get(ONCE)), second.get(s, second.get(ONCE))) for s in seeds or [ONCE]]
    whole = [(a, b) for a, b in pairs if a is not None and b is not None]
    return [a for a, _ in whole], [b for _, b in whole]


def _claim(
    spec: Any,
    claim: Mapping[str, Any],
    runs: Mapping[str, Runs],
    utterances: list[Utterance],
    keep: list[bool] | None,
    where: str,
) -> list[str]:
    first, second = _paired(runs[claim["worse"]], runs[claim["better"]])
    sign = "≥" if claim.get("at_least") else "better than"
    text = f"{where}: {spec.labels[claim['better']]} {sign} {spec.labels[claim['worse']]} on"
    if not first:
        return [f"{text} {', '.join(TITLES.get(m, m) for m in claim['by'])}: not yet known"]
    gaps = differences(first, second, utterances, claim["by"], keep=keep, resamples=spec.resamples)
    lines = []
    for metric in claim["by"]:
        if metric not in gaps:
            lines.append(f"{text} {TITLES.get(metric, metric)}: cannot be measured here")
            continue
        said = outcome(
            gaps[metric], less_is_better=metric in LESS_IS_BETTER, at_least=bool(claim.get("at_least"))
        )
        lines.append(
            f"{text} {TITLES.get(metric, metric)}: {said} ({difference_text(metric, gaps[metric])} seeds)"
        )
    return lines


def _probes(spec: Any, manifest: Path, run: Path, out: Path, notes: list[str]) -> list[Row]:
    """Rows of the linear probe: of this table's own run of it, else of the one beside the data."""
    path = probe_path(out, spec.name)
    try:
        probes = read_probe(path if path.is_file() else run / "probe.json", manifest)
    except UserError as error:
        notes.append(f"no linear probe on {manifest.stem}: {error}")
        return []
    return [
        Row(
            probe.name,
            probe.name,
            {n: Cell(v) for n, v in probe.values.items() if isinstance(v, float)},
            competes=False,
        )
        for probe in probes
    ]


def _seconds(spec: Any, plan: Plan) -> dict[str, Any]:
    """Seconds and commits of each system, summed over its own steps and seeds that are done."""
    found: dict[str, Any] = {}
    for step in plan.steps.values():
        record = record_of(step, plan.out)
        if record.get("finished"):
            row = found.setdefault(
                step.system, {"seconds": {}, "git_commit": [], "attempts": 0, "threads": []}
            )
            row["seconds"][step.seed] = row["seconds"].get(step.seed, 0.0) + record["seconds"]
            row["attempts"] += record["attempts"]
            for key, value in (("git_commit", record["git_commit"]), ("threads", record["threads"])):
                if value not in row[key]:
                    row[key].append(value)
    return found


def _cost(systems: Mapping[str, Any]) -> str:
    total = sum(seconds for row in systems.values() for seconds in row["seconds"].values())
    made_by = {str(c).partition("+") for row in systems.values() for c in row["git_commit"] if c}
    commits = sorted(commit[:12] + plus + changes for commit, plus, changes in made_by)
    if not total:
        return ""
    by_system = ", ".join(
        f"{name} {clock(sum(row['seconds'].values()) / len(row['seconds']))}" for name, row in systems.items()
    )
    where = ", ".join(commits) or "unknown"
    return f"Time of all steps together {clock(total)}; of one seed: {by_system}. Commit {where}."
