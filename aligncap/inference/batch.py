"""Many clips captioned: shared over processes, bad files reported, nothing finished ever lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from aligncap.data.manifest import read_manifest
from aligncap.inference.captioner import NOTHING, Captioner, Prior, batches_by_size, is_silent, speaks
from aligncap.inference.confidence import confidence_row
from aligncap.inference.jobs import Condition, Job, job_of, jobs_of_files, with_condition
from aligncap.models.checkpoints import model_key
from aligncap.models.context import FEWEST, Kind
from aligncap.models.precision import dtype_name
from aligncap.utils.distributed import ALONE, Group, launched
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, write_jsonl
from aligncap.utils.journal import Journal, journaled
from aligncap.utils.options import Config, NonNegativeFloat, PositiveInt, Range, option
from aligncap.utils.tensor_cache import digest


@dataclass
class CaptionConfig(Config):
    """Say how voices sound: captions of sound files, folders, or the clips of a manifest.

    Started by `accelerate launch` or torchrun, the processes share the clips. A command that was stopped goes
    on where it was when it is given again.

    Examples:
        aligncap caption clip.wav folder/ --model runs/model
        aligncap caption --model runs/model --manifest test.jsonl --out captions.jsonl
        aligncap caption --model runs/model --manifest test.jsonl --condition wrong --out wrong.jsonl
        aligncap caption clip.wav --model runs/stage2 --instruction "Which emotion does the speaker express?"
        accelerate launch -m aligncap caption --model runs/model --manifest test.jsonl --out captions.jsonl
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("files",)
    MANY_PROCESSES: ClassVar[bool] = True

    model: str = option(help="Folder of a merged model or of a training run.")
    files: list[str] = option([], "Sound files or folders.")
    manifest: str | None = option(None, "Caption the clips of a manifest instead.")
    out: str | None = option(None, "JSONL to write; none: a table on the terminal.")
    batch_size: PositiveInt = option(32, "Clips that are decoded at a time.")
    instruction: str = option(
        "", "What to ask instead of a description, of a model taught to answer (docs/audio-llm.md)."
    )
    beams: PositiveInt = option(1, "Beams of the search; 1 is greedy.")
    max_new_tokens: PositiveInt | None = option(None, "Longest caption in tokens; none: as in training.")
    temperature: NonNegativeFloat | None = option(
        None, "Sample at this temperature; none or 0: do not sample."
    )
    top_p: Annotated[float, Range(0, 1, open_low=True)] = option(0.9, "Of sampling: mass that is drawn from.")
    seed: int = option(0, "Of sampling and of what --condition draws.")
    dtype: Literal["auto", "float32", "bfloat16"] = option("float32", "Precision of the model.")
    device: str = option("auto", "auto (the GPU where there is one), cpu, cuda or cuda:NUMBER.")
    emotions: list[str] = option([], "Name no other emotions than these, where the labels are known.")
    prior: Prior = option(
        "everyday",
        "everyday: before a clip is heard, emotions other than angry, happy, neutral and sad are half as "
        "likely as these; equal: all alike, as in a corpus with as many clips of each. --emotions are alike.",
    )
    condition: Condition = option("right", "What is heard in place of each clip, to prove listening.")
    speech_gate: bool = option(
        True,
        "Of a clip without speech say so, and do not ask the model; other conditions are to test the model.",
    )
    proofread: bool = option(
        True, "Write a greedy caption again that contradicts or repeats itself or names no emotion."
    )
    confidence: bool = option(
        False,
        "Write into each row the emotion that is named and how likely it and the others are, as calibrated "
        "on dev.",
    )
    min_confidence: Annotated[float, Range(0, 1)] | None = option(
        None, "Say that the emotion is unsure where it is less likely than this; the row keeps the guess."
    )
    speaker: bool = option(
        False,
        f"Hear each clip beside others of its speaker, {FEWEST['speaker']} clips or more; files are all one "
        "speaker's.",
    )
    session: bool = option(
        False,
        f"Hear each clip beside others recorded alike, {FEWEST['session']} or more, whoever speaks: those of "
        "its `extra.session` in the manifest, else of its corpus; all files.",
    )

    def own_errors(self) -> list[str]:
        errors = []
        if bool(self.files) == bool(self.manifest):
            errors.append("name sound files or folders, or one --manifest M.jsonl")
        if self.speaker and self.session:
            errors.append("speaker and session: choose one")
        return errors

    @property
    def kind(self) -> Kind | None:
        """Beside which others a clip is heard."""
        return "speaker" if self.speaker else "session" if self.session else None


def run_caption(config: CaptionConfig) -> int:
    """`aligncap caption`: 1 where files could not be captioned."""
    utterances = read_manifest(config.manifest) if config.manifest else []
    every = jobs_of_files(config.files, config.kind)
    every += [job_of(str(config.manifest), u) for u in utterances]
    if config.kind and config.files and len(every) < FEWEST[config.kind]:
        raise UserError(f"--{config.kind} needs {FEWEST[config.kind]} clips or more; leave it out")
    jobs = with_condition(every, utterances, config.condition, config.seed)
    dtype = dtype_name(config.dtype, config.device)
    group, device = launched(config.device)
    captioner = Captioner.from_pretrained(
        config.model,
        device,
        dtype,
        proofread=config.proofread,
        prior=config.prior,
        instruction=config.instruction,
    )
    limit = config.max_new_tokens or captioner.model.config.max_response_tokens
    options: dict[str, object] = {"num_beams": config.beams, "max_new_tokens": limit}
    if config.temperature:
        options |= {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    settings = {
        "model": model_key(config.model),
        "dtype": dtype,
        "condition": [config.condition, config.seed],
        "emotions": config.emotions or config.prior,
        "context": config.kind,
        "speech_gate": config.speech_gate,
        "proofread": config.proofread,
        **({"instruction": config.instruction} if config.instruction else {}),
        **options,
    }
    if sure := config.confidence or config.min_confidence is not None:
        settings["confidence"] = [config.min_confidence, asdict(captioner.calibration)]
    out = Path(config.out) if config.out else None
    rows, errors = caption_jobs(
        captioner,
        jobs,
        out,
        settings,
        config.batch_size,
        every=every,
        kind=config.kind,
        emotions=config.emotions,
        seed=config.seed,
        group=group,
        gate=config.speech_gate,
        confidence=sure,
        min_confidence=config.min_confidence,
        **options,
    )
    if group.rank:
        return 0
    if out is None:
        _print_captions(rows)
    where = f"{out}: " if out else ""
    for line in (*errors, f"{where}{len(rows)} captions, {len(errors)} files could not be captioned"):
        print(line, file=sys.stderr)
    return 1 if errors else 0


def _print_captions(rows: Sequence[Row]) -> None:
    """A table on a terminal, else a line each: file, tabulator, caption."""
    told = [(row["audio"], row["caption"]) for row in rows]
    for place, row in enumerate(rows):
        if row.get("confidence") is not None:
            told[place] = row["audio"], f"{row['caption']} ({row['emotion']} {row['confidence']:.2f})"
    if not sys.stdout.isatty():
        print("".join(f"{audio}\t{caption}\n" for audio, caption in told), end="")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("clip", "caption")
    for line in told:
        table.add_row(*map(Text, line))  # names may hold brackets, which rich reads as its own
    Console().print(table)


Say = Callable[[list[np.ndarray], list[Job], list[Tensor | None]], Sequence[object]]


def over_clips(
    captioner: Captioner,
    jobs: Sequence[Job],
    journal: Journal,
    say: Say,
    batch_size: int,
    title: str,
    *,
    every: Sequence[Job],
    kind: Kind | None = None,
    group: Group = ALONE,
    unspoken: Callable[[Job], object] | None = None,
) -> list[str]:
    """What `say` makes of each job's clip, kept in `journal` under the job's key.

    Clips always meet in the same batches, of like length and the longest first, so that neither the number of
    processes nor a stop on the way changes what is said.

    Args:
        say: (samples at 16 kHz, their jobs, the context of each) of a batch to one row a clip.
        every: all clips of the manifest, which tell what those of a group have in common.
        kind: what groups are; None: each clip is heard alone.
        unspoken: in place of `say`, of a clip as it is in which nobody speaks; conditions test the model.

    Returns:
        One message for each file that cannot be used, the same in every process.
    """
    at = {job.key: job for job in jobs}
    keys = list(at)
    order = batches_by_size([job.path for job in at.values()], batch_size)
    batches = [[keys[i] for i in batch] for batch in order]
    known: dict[str | None, Tensor | None] = {}
    if kind is not None:
        left = {at[k].group for batch in batches if any(k not in journal for k in batch) for k in batch}
        groups = [job.group for job in every]
        contexts = captioner.contexts([job.path for job in every], groups, kind, wanted=left, group=group)
        known = dict(zip(groups, contexts, strict=True)) | {None: None}
    errors: dict[str, str] = {}

    def is_gated(key: str) -> bool:
        return unspoken is not None and at[key].condition == "right"

    def read(batch: Sequence[str]) -> dict[str, np.ndarray]:
        heard: dict[str, np.ndarray] = {}
        for key in batch:
            try:
                heard[key] = at[key].sound(captioner.processor.max_seconds)
            except UserError as error:
                if is_gated(key) and is_silent(error):
                    heard[key] = NOTHING
                else:
                    errors[key] = str(error)
        return heard

    def compute(batch: Sequence[str], heard: dict[str, np.ndarray]) -> Row:
        gated = [key for key in batch if is_gated(key)]
        if all(key in journal for key in heard):
            return {}
        done: Row = {}
        if unspoken is not None:
            done = {k: unspoken(at[k]) for k in gated if k in heard and not speaks(heard[k])}
        own = [at[key] for key in heard if key not in done]
        if own:
            rows = say([heard[job.key] for job in own], own, [known.get(job.group) for job in own])
            done |= {job.key: row for job, row in zip(own, rows, strict=True)}
        return done

    group.share_out(journal, batches, compute, title, read=read)
    found = group.merge(errors)
    return [found[key] for key in keys if key in found]


def caption_jobs(
    captioner: Captioner,
    jobs: Sequence[Job],
    out: Path | None,
    settings: Row,
    batch_size: int,
    *,
    every: Sequence[Job] | None = None,
    kind: Kind | None = None,
    emotions: Collection[str] = (),
    seed: int = 0,
    group: Group = ALONE,
    gate: bool = False,
    confidence: bool = False,
    min_confidence: float | None = None,
    **options: object,
) -> tuple[list[Row], list[str]]:
    """Caption every job and write `out`, in the jobs' order.

    Args:
        out: JSONL to write; None writes nothing and keeps nothing.
        settings: what the captions depend on; a partial file of other settings is not taken up.
        every: all clips of the manifest as they are, which tell what those of a group have in common,
            whatever part of them is captioned; default: `jobs`.
        kind: what groups are; None: each clip is heard alone.
        emotions: captions name no others; none: any.
        seed: of sampled captions, with `do_sample` among the options.
        group: the processes that share the clips; all return the same, the first one writes.
        gate: where nobody speaks, the caption is "No speech is heard.", with "speech": false.
        confidence, min_confidence: see `inference.confidence.confidence_row`.
        options: of `generate`.

    Returns:
        rows {"id", "audio", "caption"}, with "condition", "heard" and "made" where that is not the clip as it
        is (see `Job`), and "emotion" and "confidence" where asked for, with "probabilities" of all emotions
        where the caption names one; a message for each file that failed.

    Raises:
        UserError: `out` cannot be written, or several processes have none.
    """
    if out is None and group.count > 1:
        raise UserError("several processes meet in a file: give --out, or start one process")
    every = jobs if every is None else every
    clips = digest([(str(job.path), job.group, job.cues) for part in (jobs, every) for job in part])

    def say(clips: list[np.ndarray], jobs: list[Job], contexts: list[Tensor | None]) -> list[Row]:
        if options.get("do_sample"):
            # A batch's own numbers depend on no other batch and on no process.
            torch.manual_seed(crc32(f"{seed} {[job.id for job in jobs]}".encode()))
        cues = [job.cues for job in jobs]
        if not confidence:
            captions = captioner.generate(clips, contexts, cues, emotions, **options)
            return [job.row(caption) for job, caption in zip(jobs, captions, strict=True)]
        sure = captioner.captions_with_confidence(clips, contexts, cues, emotions, **options)
        language = captioner.processor.language
        found = [
            confidence_row(caption, named, min_confidence, language)
            | ({"probabilities": named.probabilities} if named and named.probabilities else {})
            for caption, named in sure
        ]
        return [job.row("") | row for job, row in zip(jobs, found, strict=True)]

    def unspoken(job: Job) -> Row:
        said = captioner.no_speech
        return job.row(said) | (confidence_row(said) if confidence else {}) | {"speech": False}

    with journaled(out, {**settings, "clips": clips}, group) as journal:
        errors = over_clips(
            captioner,
            jobs,
            journal,
            say,
            batch_size,
            "captioning",
            every=every,
            kind=kind,
            group=group,
            unspoken=unspoken if gate else None,
        )
        journal.complete = not errors  # else the command that is given again does the rest
        rows = [journal[job.key] for job in jobs if job.key in journal]
        if out is not None and group.rank == 0:
            write_jsonl(out, rows)
    return rows, errors
