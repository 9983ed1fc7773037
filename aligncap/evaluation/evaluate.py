"""`aligncap evaluate`: caption files are read, scored, compared, and reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aligncap.data.manifest import Utterance, read_manifest, refuse_answers
from aligncap.evaluation.answers import evaluate_answers
from aligncap.evaluation.listening import HEARD, Listening, audio_gains
from aligncap.evaluation.listening import table as listening_table
from aligncap.evaluation.metrics.captions import COCO_METRICS
from aligncap.evaluation.metrics.similarity import Alike, secap_note, secap_runs
from aligncap.evaluation.metrics.tags import tags_among_people
from aligncap.evaluation.metrics.tokens import NO_SEGMENTER, Chinese
from aligncap.evaluation.probe import read_probe
from aligncap.evaluation.report.html import choose_samples, score_lines, write_report
from aligncap.evaluation.scoring import (
    Baseline,
    Rows,
    Scored,
    System,
    differences,
    score_rows,
    wrong_label_map,
)
from aligncap.utils.errors import UserErrors, nearest
from aligncap.utils.io import read_jsonl
from aligncap.utils.options import Config, NaturalInt, changed, named_values, option
from aligncap.utils.run_record import write_run_record
from aligncap.utils.statistics import compared

PROTOCOLS: dict[str, Alike] = {"secap": "encoder", "secap-words": "words"}


@dataclass
class EvaluateConfig(Config):
    """Score captions against references and write a report.

    Examples:
        aligncap evaluate captions.jsonl --references test.jsonl --out report
        aligncap evaluate distill-0.jsonl --name distill --system distill=distill-1.jsonl sft=sft-0.jsonl \\
            --references test.jsonl --listening silence=silence.jsonl --probe probe.json --out report
        aligncap evaluate answers.jsonl --answers --references test.jsonl --out report
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("captions",)

    captions: str = option(help="Captions to score, as `aligncap caption` writes them.")
    references: str = option(help="Manifest with reference captions.")
    out: str = option(help="Folder of the report.")
    name: str = option("model", "Name of the system in the report.")
    system: list[str] = option([], "NAME=CAPTIONS: further systems; a name again is another training seed.")
    against: str | None = option(None, "System that differences are to; default: the one of --name.")
    listening: list[str] = option(
        [],
        "CONDITION=CAPTIONS: captions of --name under wrong, silence, noise, same-words, same-speaker, "
        "same-emotion, whisper; a condition again is another training seed.",
    )
    probe: str | None = option(None, "Output of `aligncap probe`, as a baseline.")
    label_map: list[str] = option([], "SAID=LABEL: count an emotion as another, such as calm=neutral.")
    answers: bool = option(
        False, "Captions are answers to an instruction for a label: accuracy, UAR, F1, invalid answers."
    )
    allow_missing: bool = option(
        False, "Score only the clips that have references and, of every system, captions."
    )
    similarity: Literal["auto", "require", "none"] = option("auto", "Whether a sentence encoder is used.")
    wordnet: Literal["auto", "require", "none"] = option("auto", "Whether METEOR uses WordNet's synonyms.")
    chinese: Chinese = option(
        "characters", "What n-gram scores count in Chinese: characters, or words (jieba's; aligncap[zh])."
    )
    coco: list[str] = option([], "Java scores of aligncap[coco]: meteor_1_5, spice.")
    protocol: Literal["secap", "secap-words"] | None = option(
        None, "Captions are 8 candidates a clip: score the 5 most like the others (SECap)."
    )
    seed: NaturalInt = option(0, "Seed of the samples shown.")
    audio: Literal["copy", "link", "embed"] = option("copy", "Where the report's players take clips from.")
    title: str = option("Speech emotion captions", "Title of the report.")
    show: NaturalInt = option(3, "Captions printed beside a reference.")

    @property
    def systems(self) -> dict[str, list[str]]:
        """Caption files of each system by training seed; the one of --name comes last."""
        files = grouped(named_values(self.system, "system"))
        return {**files, self.name: [self.captions, *files.pop(self.name, [])]}

    @property
    def heard(self) -> dict[str, list[str]]:
        """Caption files of --name under each condition, by training seed."""
        return grouped(named_values(self.listening, "listening"))

    def own_errors(self) -> list[str]:
        errors = [
            f"listening={name}=…: no such condition{nearest(name, HEARD)}; choose among {', '.join(HEARD)}"
            for name in self.heard
            if name not in HEARD
        ]
        if self.chinese == "words" and not find_spec("rjieba"):
            errors.append(NO_SEGMENTER)
        choices = ", ".join(COCO_METRICS)
        errors += [f"coco={n}: choose among {choices}" for n in self.coco if n not in COCO_METRICS]
        if self.answers:
            of_captions = "listening coco protocol similarity wordnet chinese audio title show".split()
            errors += [f"{n}: has no effect on answers; leave it out" for n in changed(self, of_captions)]
        if self.against is not None and self.against not in self.systems:
            errors.append(f"against={self.against}: no such system{nearest(self.against, self.systems)}")
        return errors


@dataclass(frozen=True)
class Evaluation:
    """What was scored and compared of one manifest; the last system is what the report is about."""

    systems: list[System]
    baselines: Sequence[Baseline]
    listening: Listening
    page: Path


def run_evaluate(config: EvaluateConfig) -> int:
    """Evaluate, and print tables and some captions.

    Raises:
        UserError: files missing or not matching the manifest.
    """
    utterances = read_manifest(config.references)
    maps = dict(named_values(config.label_map, "label_map"))
    own = {u.emotion for u in utterances}
    if wrong := [e for p in maps.items() if (e := wrong_label_map(*p, own, config.references, "=".join(p)))]:
        raise UserErrors(wrong)
    baselines = read_probe(config.probe, config.references) if config.probe else []
    if config.answers:
        evaluate_answers(
            utterances,
            config.systems,
            Path(config.out),
            against=config.against,
            allow_missing=config.allow_missing,
            label_map=maps,
            baselines=baselines,
        )
    else:
        _captions(config, utterances, baselines)
    files = [path for part in (config.systems, config.heard) for paths in part.values() for path in paths]
    write_run_record(config.out, "evaluate", asdict(config), [config.references, *files], seed=config.seed)
    return 0


def _captions(config: EvaluateConfig, utterances: list[Utterance], baselines: list[Baseline]) -> None:
    refuse_answers(config.references, utterances)
    if people := tags_among_people(utterances):
        baselines.append(Baseline("people", people, "each annotator's words against each other's"))
    done = evaluate_files(config, utterances, baselines=baselines)
    console = Console()
    console.print(table(done.systems, baselines))
    if done.listening.conditions:
        console.print(listening_table(done.listening))
    console.print(Text(" ".join(done.listening.verdict)))
    for row in choose_samples(done.systems[-1:], utterances, config.show, config.seed):
        u = row["utterance"]
        print(f"{u.id} ({u.emotion or 'no label'})")
        print(f"  caption    {row['said'][0]['caption']}\n  reference  {u.captions[0]}")
    print(f"report: {done.page}")


def evaluate_files(
    config: EvaluateConfig,
    whole: list[Utterance],
    *,
    clips: list[Utterance] | None = None,
    baselines: Sequence[Baseline] = (),
) -> Evaluation:
    """Read the caption files, score every caption once, compare systems and conditions, write the report.

    Args:
        whole: the manifest, from which speakers' norms and "other clips" are taken.
        clips: those of it that are scored; by default all.

    Raises:
        UserErrors: captions and references do not match.
    """
    # read
    clips = whole if clips is None else clips
    left_out = {u.id for u in whole} - {u.id for u in clips}
    captions, heard = (
        {name: read_captions(paths, config.protocol, left_out) for name, paths in files.items()}
        for files in (config.systems, config.heard)
    )

    if config.allow_missing:  # every system on the same clips
        there = [{row.get("id") for row in rows} for runs in captions.values() for rows in runs]
        clips = [u for u in clips if u.id in set.intersection(*there)]

    # score
    lists = [("system", name, rows, clips) for name, runs in captions.items() for rows in runs]
    right, everywhere = ("system", config.name), clips
    if config.allow_missing and heard:  # only clips that were captioned under every condition
        own = captions[config.name]
        ids = [{row.get("id") for row in rows} for runs in heard.values() for rows in runs]
        everywhere = [u for u in clips if u.id in set.intersection(*ids)]
        lists += [("right", config.name, rows, everywhere) for rows in own]
        right = ("right", config.name)
    lists += [("heard", name, rows, everywhere) for name, runs in heard.items() for rows in runs]
    scored: dict[tuple[str, str], list[Scored]] = {}
    label_map = dict(named_values(config.label_map, "label_map"))
    for kind, name, rows, references in lists:
        found = score_rows(
            rows,
            references,
            allow_missing=config.allow_missing,
            whole=whole,
            label_map=label_map,
            wordnet=config.wordnet,
            similarity=config.similarity,
            coco=config.coco,
            chinese=config.chinese,
        )
        scored.setdefault((kind, name), []).append(found)

    # compare
    note = secap_note(PROTOCOLS[config.protocol]) if config.protocol else ""
    systems = [System(name, scored["system", name], note) for name in captions]
    conditions = {name: scored["heard", name] for name in heard}
    gains = audio_gains(scored[right], conditions, whole, label_map=label_map)
    runs = {name: scored["system", name] for name in captions}
    gaps = compared(runs, config.name, config.against, differences)

    # report
    page = write_report(
        Path(config.out),
        systems,
        clips,
        manifest=Path(config.references),
        baselines=baselines,
        listening=gains,
        differences=gaps,
        seed=config.seed,
        audio=config.audio,
        title=config.title,
    )
    return Evaluation(systems, baselines, gains, page)


def grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Files by name; a name again is another training seed."""
    files: dict[str, list[str]] = {}
    for name, path in pairs:
        files.setdefault(name, []).append(path)
    return files


def read_captions(paths: Sequence[str], protocol: str | None, left_out: set[str]) -> list[Rows]:
    """Rows of each file, less clips left out; of candidates under a protocol, several lists a file."""
    files: list[Rows] = [[row for row in read_jsonl(path) if row.get("id") not in left_out] for path in paths]
    if protocol is None:
        return files
    return [run for rows in files for run in secap_runs(rows, similarity=PROTOCOLS[protocol])]


def table(systems: Sequence[System], baselines: Sequence[Baseline] = ()) -> Table:
    """Systems and baselines side by side, for a terminal."""
    counted = systems[0].signature
    sheet = Table(
        title=f"{counted['clips']} clips, {counted['references']} references, {counted['speakers']} speakers",
        caption="95 % intervals; ± is over runs (seeds, or the draws of a protocol)",
    )
    sheet.add_column("metric")
    for name in [*(system.name for system in systems), *(baseline.name for baseline in baselines)]:
        sheet.add_column(Text(name), justify="right")
    for line in score_lines(systems, baselines):
        texts = [Text(f"{cell['value']} {cell['spread']}".strip()) for cell in line["cells"]]
        for text, cell in zip(texts, line["cells"], strict=True):
            text.append(f" {cell['interval']}".rstrip(), style="dim")
        sheet.add_row(line["title"], *texts)
    return sheet
