"""Many clips captioned: shared over processes, bad files reported, nothing finished ever lost."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from aligncap.audio.files import load_audio
from aligncap.data.manifest import Utterance, audio_path, read_manifest
from aligncap.inference.captioner import NOTHING, Captioner, batches_by_size, is_silent, no_speech, speaks
from aligncap.inference.conditions import MADE, same_words
from aligncap.inference.confidence import confidence_row
from aligncap.models.checkpoints import model_key
from aligncap.models.context import FEWEST, Kind, group_of
from aligncap.models.precision import dtype_name
from aligncap.text.prompts import measured_cues
from aligncap.utils.distributed import ALONE, Group, launched
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, write_jsonl
from aligncap.utils.journal import Journal, journaled
from aligncap.utils.options import Config, NonNegativeFloat, PositiveInt, Range, option
from aligncap.utils.tensor_cache import digest

SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
Condition = Literal["right", "wrong", "silence", "noise", "same-words", "whisper"]
CONDITIONS: tuple[str, ...] = get_args(Condition)


@dataclass
class CaptionConfig(Config):
    """Say how voices sound: captions of sound files, folders, or the clips of a manifest.

    Started by `accelerate launch` or torchrun, the processes share the clips. A command that was stopped goes
    on where it was when it is given again.

    Examples:
        aligncap caption clip.wav folder/ --model runs/model
        aligncap caption --model runs/model --manifest test.jsonl --out captions.jsonl
        aligncap caption --model runs/model --manifest test.jsonl --condition wrong --out wrong.jsonl
        accelerate launch -m aligncap caption --model runs/model --manifest test.jsonl --out captions.jsonl
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("files",)
    MANY_PROCESSES: ClassVar[bool] = True

    model: str = option(help="Folder of a merged model or of a training run.")
    files: list[str] = option([], "Sound files or folders.")
    manifest: str | None = option(None, "Caption the clips of a manifest instead.")
    out: str | None = option(None, "JSONL to write; none: a table on the terminal.")
    batch_size: PositiveInt = option(32, "Clips that are decoded at a time.")
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
    condition: Condition = option("right", "What is heard in place of each clip, to prove listening.")
    speech_gate: bool = option(
        True,
        "Of a clip without speech say so, and do not ask the model; other conditions are to test the model.",
    )
    proofread: bool = option(
        True, "Write a greedy caption again that contradicts or repeats itself or names no emotion."
    )
    confidence: bool = option(
        False, "Write into each row the emotion that is named and how likely it is, as calibrated on dev."
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
    captioner = Captioner.from_pretrained(config.model, device, dtype, proofread=config.proofread)
    limit = config.max_new_tokens or captioner.model.config.max_response_tokens
    options: dict[str, object] = {"num_beams": config.beams, "max_new_tokens": limit}
    if config.temperature:
        options |= {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    settings = {
        "model": model_key(config.model),
        "dtype": dtype,
        "condition": [config.condition, config.seed],
        "emotions": config.emotions,
        "context": config.kind,
        "speech_gate": config.speech_gate,
        "proofread": config.proofread,
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

    table = Table("clip", "caption")
    for line in told:
        table.add_row(*line)
    Console().print(table)


@dataclass(frozen=True)
class Job:
    """One caption to write: the clip's id, the file named in the output, and what is heard.

    `path` is the file that is heard, `group` the speaker or session beside whose clips, and `cues` what was
    measured in it. Under a condition other than "right", `heard` is the id of the clip that is heard, and
    `made` the kind of sound made of it (of `aligncap.inference.conditions.MADE`) with `seed`; None: the clip
    as it is. Of made sound nothing is measured.
    """

    id: str
    audio: str
    path: Path
    group: str | None = None
    cues: str | None = None
    condition: str = "right"
    heard: str | None = None
    made: str | None = None
    seed: int = 0

    @property
    def key(self) -> str:
        """What a caption is kept under."""
        key = f"{self.id}\t{self.path}"
        return key if self.made is None else f"{key}\t{self.made}\t{self.seed}"

    def sound(self, max_seconds: float) -> np.ndarray:
        """Samples at 16 kHz that are heard.

        Raises:
            UserError: the file cannot be used.
        """
        samples = load_audio(self.path, max_seconds=max_seconds)
        if self.made is None:
            return samples
        # The clip's own seed: its noise depends on no other clip and on no order.
        return MADE[self.made](samples, crc32(f"{self.seed} {self.id}".encode()))

    def row(self, caption: str) -> Row:
        """The line of the output."""
        row: Row = {"id": self.id, "audio": self.audio, "caption": caption}
        if self.condition != "right":
            row |= {"condition": self.condition, "heard": self.heard}
            if self.made is not None:
                row["made"] = self.made
        return row


def jobs_of_files(arguments: Sequence[str], kind: Kind | None = None) -> list[Job]:
    """Sound files named one by one or by folder (searched to the bottom), with `kind` all of one group.

    Raises:
        UserError: a folder holds no sound file.
    """
    jobs = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SOUND_ENDINGS)
            if not found:
                raise UserError(f"{path}: no sound files in this folder ({', '.join(SOUND_ENDINGS)})")
            jobs += [Job(str(p.relative_to(path).with_suffix("")), str(p), p) for p in found]
        else:
            jobs.append(Job(path.stem, argument, path))
    times = Counter(job.id for job in jobs)
    return [replace(job, id=job.audio if times[job.id] > 1 else job.id, group=kind) for job in jobs]


def job_of(manifest: str | Path, u: Utterance, kind: Kind | None = None) -> Job:
    """The caption of an utterance of a manifest."""
    return Job(u.id, u.audio, audio_path(manifest, u), group_of(u, kind), cues=measured_cues(u.cue_words))


def jobs_of_manifest(manifest: str | Path, kind: Kind | None = None) -> list[Job]:
    """One job an utterance."""
    return [job_of(manifest, u, kind) for u in read_manifest(manifest)]


def with_condition(
    jobs: Sequence[Job], utterances: Sequence[Utterance], condition: str, seed: int = 0
) -> list[Job]:
    """The same captions to write, under a condition of what is heard.

    - "right": each clip, as it is.
    - "wrong": another clip, by a random cyclic shift of a random order, so that none stays in its place.
    - "silence", "noise", "whisper": sound made of the clip (see `aligncap.inference.conditions`), of a
      speaker whom nobody knows: nothing of the voice may come in by another way.
    - "same-words": the words kept, the voice changed. Another recording of the same words with another
      emotion where there is one, by the same speaker or else by another of the same gender, drawn by `seed`;
      otherwise the clip's words in a whisper.

    Args:
        utterances: what is known of the clips; without it, "same-words" whispers all.

    Raises:
        UserError: no such condition, or "wrong" with fewer than two clips.
    """
    if condition == "right":
        return list(jobs)
    if condition not in CONDITIONS:
        raise UserError(f"condition {condition!r}: choose among {', '.join(CONDITIONS)}")
    if condition == "wrong":
        if len(jobs) < 2:
            raise UserError("wrong audio needs at least two clips")
        order = list(range(len(jobs)))
        random.Random(seed).shuffle(order)
        others = dict(zip(order, order[1:] + order[:1], strict=True))
        return [_hearing(job, jobs[others[i]], condition) for i, job in enumerate(jobs)]
    made = "whisper" if condition == "same-words" else condition
    at = {job.id: job for job in jobs}
    swaps = same_words([u for u in utterances if u.id in at], seed) if condition == "same-words" else {}
    return [
        _hearing(job, at[swaps[job.id]], condition)
        if job.id in swaps
        else replace(job, group=None, cues=None, condition=condition, heard=job.id, made=made, seed=seed)
        for job in jobs
    ]


def _hearing(job: Job, other: Job, condition: str) -> Job:
    """`job` with the clip of `other` to hear."""
    return replace(other, id=job.id, audio=job.audio, condition=condition, heard=other.id)


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

    def compute(batch: Sequence[str]) -> Row:
        heard: dict[str, np.ndarray] = {}
        gated = [key for key in batch if unspoken is not None and at[key].condition == "right"]
        for key in batch:
            try:
                heard[key] = at[key].sound(captioner.processor.max_seconds)
            except UserError as error:
                if key in gated and is_silent(error):
                    heard[key] = NOTHING
                else:
                    errors[key] = str(error)
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

    group.share_out(journal, batches, compute, title)
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
        is (see `Job`), and "emotion" and "confidence" where asked for; a message for each file that failed.

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
        found = [confidence_row(caption, named, min_confidence) for caption, named in sure]
        return [job.row("") | row for job, row in zip(jobs, found, strict=True)]

    def unspoken(job: Job) -> Row:
        return job.row(no_speech()) | (confidence_row(no_speech()) if confidence else {}) | {"speech": False}

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
        rows = [journal[job.key] for job in jobs if job.key in journal]
        if out is not None and group.rank == 0:
            write_jsonl(out, rows)
    return rows, errors
