"""`aligncap zeroshot`: score a model on corpora that share nothing with its training.

It is an evaluation of several manifests, with captions written first where there are none, and with the proof
that training and test share no corpus, speaker or clip.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aligncap.data.manifest import read_manifest, refuse_answers
from aligncap.data.provenance import known_provenance, refuse_overlap
from aligncap.data.split import choose_evenly
from aligncap.evaluation.corpora import Corpus, content_of, table_of
from aligncap.evaluation.evaluate import EvaluateConfig, evaluate_files, grouped
from aligncap.evaluation.listening import HEARD
from aligncap.evaluation.metrics import template
from aligncap.evaluation.probe import read_probe
from aligncap.evaluation.scoring import Baseline, wrong_label_map
from aligncap.inference.batch import caption_jobs
from aligncap.inference.captioner import Captioner, Prior
from aligncap.inference.jobs import job_of, with_condition
from aligncap.models.checkpoints import model_key
from aligncap.models.precision import dtype_name
from aligncap.utils.errors import UserError, UserErrors, nearest
from aligncap.utils.io import Row, file_sha256, read_jsonl, write_json, write_text
from aligncap.utils.options import Config, NaturalInt, PositiveInt, named_values, option
from aligncap.utils.run_record import write_run_record

MARK = ".made_of.json"  # beside a caption file: what wrote it


@dataclass
class ZeroShotConfig(Config):
    """Score a model on corpora that share no corpus, speaker or clip with its training.

    Captions are kept, and taken up again if the same model wrote them of the same clips.

    Examples:
        aligncap zeroshot --model runs/distill --manifest nemo.jsonl --label_map nemo:calm=neutral \\
            --labels angry happy sad neutral --condition wrong silence --out runs/zeroshot
        aligncap zeroshot --captions nemo=c.jsonl --trained_on train.jsonl --manifest nemo.jsonl --out z
    """

    manifest: list[str] = option(help="A captioned manifest of each corpus.")
    out: str = option(help="Folder of zero_shot.json, zero_shot.md and a report of each corpus.")
    model: list[str] = option([], "Checkpoints of one system, one a training seed.")
    name: str = option("model", "Name of the system.")
    captions: list[str] = option([], "CORPUS=FILE: captions written before; a corpus again: another seed.")
    captions_dir: str | None = option(None, "Where captions are kept; default: OUT/captions.")
    trained_on: list[str] = option([], "Manifests of the training, for checkpoints without a record of it.")
    label_map: list[str] = option([], "CORPUS:SAID=LABEL: count an emotion as another, in one corpus.")
    labels: list[str] = option([], "Labels whose clips are scored apart too.")
    only_labels: bool = option(
        False, "Captions may name no emotion but --labels, or without them the corpus's own labels."
    )
    prior: Prior = option(
        "everyday", "How likely emotions are before a clip is heard (`aligncap caption --help`)."
    )
    context: Literal["speaker", "session"] | None = option(
        None, "Hear each clip beside others of its speaker, or of its session (`aligncap caption --help`)."
    )
    condition: list[str] = option(
        [],
        "Caption the clips under these conditions too, to prove that the model listens: wrong, silence, "
        "noise, same-words, same-speaker, same-emotion, whisper.",
    )
    probe: list[str] = option([], "Outputs of `aligncap probe`, as baselines.")
    limit: PositiveInt | None = option(None, "That many clips of each corpus only, labels as even as can be.")
    batch_size: PositiveInt = option(32, "Clips that are captioned at a time.")
    max_new_tokens: PositiveInt | None = option(None, "Longest caption in tokens; none: as in training.")
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "Precision of the model.")
    device: str = option("auto", "Where the model runs: auto, cpu, cuda, cuda:1.")
    seed: NaturalInt = option(0, "Seed of --limit and of --condition.")
    audio: Literal["copy", "link", "embed"] = option("copy", "Where the reports' players take clips from.")
    wordnet: Literal["auto", "require", "none"] = option("auto", "Whether METEOR uses WordNet's synonyms.")

    def own_errors(self) -> list[str]:
        errors = [f"condition={c}: choose among {', '.join(HEARD)}" for c in self.condition if c not in HEARD]
        if "=" in self.name:
            errors.append(f"name={self.name}: choose a name without =")
        if not self.model and not self.trained_on:
            errors.append(
                "nothing tells what the model was trained on; give --model CHECKPOINT or --trained_on M.jsonl"
            )
        if self.condition and (self.captions or not self.model):
            errors.append(
                "--condition captions with the model itself: give --model, and leave out --captions"
            )
        return errors


def run_zeroshot(config: ZeroShotConfig) -> int:
    """Refuse what training has seen, caption the rest, score it, and write tables and reports.

    Raises:
        UserErrors: a corpus, speaker or clip that training has seen, or whatever else does not fit.
    """
    # read
    out = Path(config.out)
    corpora = read_corpora(
        config.manifest, named_values(config.label_map, "label_map"), config.labels, config.limit, config.seed
    )
    provenance = known_provenance(config.model, config.trained_on)
    refuse_overlap(provenance, config.manifest)
    baselines = _baselines(config, corpora)
    files = _given_captions(config, corpora)
    todo = [corpus for corpus in corpora if corpus.name not in files]
    files |= caption_corpora(config, todo)
    heard = {name: caption_corpora(config, todo, name) for name in dict.fromkeys(config.condition)}

    # score, compare and report each corpus
    results = []
    for corpus in corpora:
        first, *others = map(str, files[corpus.name])
        evaluation = EvaluateConfig(
            captions=first,
            references=str(corpus.manifest),
            out=str(out / corpus.name),
            name=config.name,
            system=[f"{config.name}={path}" for path in others],
            listening=[f"{name}={path}" for name, paths in heard.items() for path in paths[corpus.name]],
            label_map=[f"{said}={label}" for said, label in corpus.label_map.items()],
            wordnet=config.wordnet,
            seed=config.seed,
            audio=config.audio,
            title=f"Zero-shot: {corpus.name}",
        )
        done = evaluate_files(
            evaluation, corpus.whole, clips=corpus.utterances, baselines=baselines[corpus.name]
        )
        results.append((corpus, done))

    # report all together
    content = content_of(provenance, results, config.labels, config.limit)
    write_json(out / "zero_shot.json", content)
    header, *lines = table_of(content)
    page = template("zero_shot.md.j2")
    text = page.render(content=content, context=config.context, header=header, lines=lines)
    write_text(out / "zero_shot.md", f"{text}\n")
    paths = [path for part in (files, *heard.values()) for several in part.values() for path in several]
    data: list[str | Path] = [*config.manifest, *config.trained_on, *paths, *config.probe]
    write_run_record(out, "zeroshot", asdict(config), data, seed=config.seed)
    sheet = Table("", title=f"zero-shot: {config.name}")  # scores downwards
    for name, *_ in lines:
        sheet.add_column(Text(name), justify="right")
    for row in list(zip(header, *lines, strict=True))[1:]:
        sheet.add_row(*map(Text, row))
    Console().print(sheet)
    print(text.rpartition("\n\n")[2] + f"zero-shot: {out / 'zero_shot.md'}")
    return 0


def read_corpora(
    manifests: Sequence[str | Path],
    label_maps: Sequence[tuple[str, str]] = (),
    labels: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> list[Corpus]:
    """Manifests as corpora, named by their corpus, or by the file if it holds several.

    Args:
        label_maps: ("CORPUS:SAID", "LABEL"): what captions say counts as a label of that corpus.
        labels: a choice of labels to score apart.
        limit: that many clips of each corpus only, labels as even as they come, chosen by `seed`.

    Raises:
        UserErrors: names that repeat, maps of unknown corpora or labels or of labels that the corpus has
            itself, and chosen labels that no corpus has.
        UserError: captions of a manifest are answers to instructions.
    """
    maps: dict[str, dict[str, str]] = {}
    errors = []
    for key, label in label_maps:
        name, _, said = key.rpartition(":")
        if not (name and said):
            errors.append(f"--label_map {key}={label}: write CORPUS:SAID=LABEL, like nemo:calm=neutral")
        maps.setdefault(name, {})[said] = label
    if errors:
        raise UserErrors(errors)
    corpora: dict[str, Corpus] = {}
    for manifest in manifests:
        whole = read_manifest(manifest)
        refuse_answers(manifest, whole)
        inside = {u.corpus for u in whole}
        name = inside.pop() if len(inside) == 1 else Path(manifest).stem
        name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "corpus"  # names a folder
        if name in corpora:
            errors.append(f'{manifest}: "{name}" was named before; join its manifests with `aligncap join`')
        chosen = whole if limit is None else [whole[i] for i in choose_evenly(whole, limit, seed)]
        corpora[name] = Corpus(name, Path(manifest), chosen, whole, maps.get(name, {}))
    errors += [
        f"--label_map {name}:…: no such corpus{nearest(name, corpora)}; there are {', '.join(corpora)}"
        for name in maps
        if name not in corpora
    ]
    labels_of = {name: {u.emotion for u in corpus.utterances} for name, corpus in corpora.items()}
    for name, own in labels_of.items():
        for said, label in corpora[name].label_map.items():
            if wrong := wrong_label_map(said, label, own, name, f"{name}:{said}={label}"):
                errors.append(wrong)
    everywhere = set().union(*labels_of.values())
    errors += [
        f'--labels: no clip is labelled "{label}"{nearest(label, filter(None, everywhere))}'
        for label in labels
        if label not in everywhere
    ]
    if errors:
        raise UserErrors(errors)
    return list(corpora.values())


def _given_captions(config: ZeroShotConfig, corpora: Sequence[Corpus]) -> dict[str, list[Path]]:
    """Caption files that were written before, by corpus."""
    files = grouped(named_values(config.captions, "captions"))
    seeds = {corpus.name: len(files.get(corpus.name, config.model)) for corpus in corpora}
    errors = [
        f"--captions {name}=…: no such corpus{nearest(name, seeds)}; there are {', '.join(seeds)}"
        for name in files
        if name not in seeds
    ]
    errors += [
        f"{name}: no captions; give --captions {name}=FILE or --model" for name, n in seeds.items() if not n
    ]
    if not errors and len(set(seeds.values())) > 1:
        counts = ", ".join(f"{name}: {count}" for name, count in seeds.items())
        errors.append(f"captions of different numbers of seeds ({counts}); give as many for each corpus")
    if errors:
        raise UserErrors(errors)
    return {name: [Path(path) for path in paths] for name, paths in files.items()}


def _baselines(config: ZeroShotConfig, corpora: Sequence[Corpus]) -> dict[str, list[Baseline]]:
    """By corpus, the linear probes that were tested on its manifest; each probe must have been on one."""
    found: dict[str, list[Baseline]] = {corpus.name: [] for corpus in corpora}
    note = "" if config.limit is None else f"; of all clips, not the {config.limit} chosen"
    for probe in config.probe:
        errors = []
        for corpus in corpora:
            try:
                own = read_probe(probe, corpus.manifest)
                found[corpus.name] += [Baseline(b.name, b.values, b.note + note) for b in own]
            except UserError as error:
                errors.append(str(error))
        if len(errors) == len(corpora):
            raise UserErrors(errors)
    return found


def caption_corpora(
    config: ZeroShotConfig, corpora: Sequence[Corpus], condition: str = "right"
) -> dict[str, list[Path]]:
    """Caption each corpus with each model into CORPUS-NUMBER.jsonl; the files by corpus.

    Under a condition of what is heard instead (`aligncap.inference.batch.with_condition`) they are
    CORPUS-NUMBER-CONDITION.jsonl. Beside each file lies what made it (CORPUS-NUMBER.made_of.json): a file of
    the same model, clips and options stands, another is written anew, and what was stopped goes on.

    Raises:
        UserError: a file there was written by something else. UserErrors: clips that cannot be captioned.
    """
    folder = Path(config.captions_dir) if config.captions_dir else Path(config.out) / "captions"
    tail = "" if condition == "right" else f"-{condition}"
    kind = dtype_name(config.dtype, config.device)
    files: dict[str, list[Path]] = {corpus.name: [] for corpus in corpora}
    for number, model in enumerate(config.model):
        captioner: Captioner | None = None
        for corpus in corpora:
            out = folder / f"{corpus.name}-{number}{tail}.jsonl"
            files[corpus.name].append(out)
            settings: Row = {
                "model": model_key(model),
                "dtype": kind,
                "max_new_tokens": config.max_new_tokens,
                "manifest": file_sha256(corpus.manifest),
                "clips": len(corpus.utterances),
                "context": config.context,
                "prior": config.prior,
            }
            if condition != "right":
                settings |= {"condition": condition, "seed": config.seed}
            if config.only_labels:
                own = {u.emotion for u in corpus.utterances if u.emotion}
                settings["emotions"] = sorted({*config.labels} or own | set(corpus.label_map))
            if _stands(out, settings, corpus):
                continue
            captioner = captioner or Captioner.from_pretrained(model, config.device, kind, prior=config.prior)
            ids = {u.id for u in corpus.utterances}
            every = [job_of(corpus.manifest, u, config.context) for u in corpus.whole]
            jobs = with_condition(
                [job for job in every if job.id in ids], corpus.utterances, condition, config.seed
            )
            # Before the mark changes: a kill must not leave a file beside another one's mark.
            out.unlink(missing_ok=True)
            write_json(out.with_suffix(MARK), settings)
            _, errors = caption_jobs(
                captioner,
                jobs,
                out,
                settings,
                config.batch_size,
                every=every,
                kind=config.context,
                emotions=settings.get("emotions", ()),
                max_new_tokens=config.max_new_tokens,
            )
            if errors:
                raise UserErrors([f"{e} (in {corpus.manifest}; mend it or leave it out)" for e in errors])
    return files


def _stands(out: Path, settings: Row, corpus: Corpus) -> bool:
    """Whether the finished file is of these settings and clips."""
    mark = out.with_suffix(MARK)
    if not out.is_file():
        return False
    if not mark.is_file():
        raise UserError(
            f"{out}: stands without {mark.name}, so nothing tells which model wrote it; delete it, choose "
            f"another --captions_dir, or vouch for it with --captions {corpus.name}={out}"
        )
    try:
        made_of = json.loads(mark.read_text(encoding="utf-8"))
        ids = [row.get("id") for row in read_jsonl(out)]
    except (ValueError, UserError):
        return False
    return bool(made_of == settings and ids == [u.id for u in corpus.utterances])
