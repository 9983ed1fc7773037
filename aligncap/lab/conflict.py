"""`aligncap lab conflict`: when voice and text say different emotions, who wins, where, and why?

The parts are behaviour (`behaviour.py`), where it is decided (`lens.py`), which path causes it
(`patching.py`), which heads listen (`listening_heads.py`) and what makes the voice win (`remedies.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from aligncap.data.synthetic.stimuli import make_stimuli
from aligncap.lab import remedies as fixes
from aligncap.lab.behaviour import answer_trials, answers_of, behaviour, compare
from aligncap.lab.conflict_report import conflict_table, findings, write_conflict
from aligncap.lab.families import load_speech_model, model_folder
from aligncap.lab.label_words import label_tokens
from aligncap.lab.lens import collect_states, fit_translators, lens, probes, text_states
from aligncap.lab.listening_heads import heads_table, listen_heads, mean_pull
from aligncap.lab.models import SpeechModel
from aligncap.lab.patching import Windows, patch_trials, patching
from aligncap.lab.stimuli import (
    Place,
    Stimulus,
    Trial,
    choose_stimuli,
    counts,
    halves,
    make_trials,
    many_voices,
    read_stimuli,
    remedies,
    voice_of,
)
from aligncap.lab.study import Study
from aligncap.models.checkpoints import model_key
from aligncap.models.model_card import read_record
from aligncap.text.emotions import labels
from aligncap.text.prompts import Language
from aligncap.utils.distributed import ALONE, Store
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, write_json
from aligncap.utils.journal import journaled
from aligncap.utils.options import Config, NaturalInt, PositiveInt, option
from aligncap.utils.run_record import write_run_record

EMOTIONS = ["neutral", "happy", "sad", "angry", "fearful"]
PLACES: tuple[Place, ...] = ("instruction", "transcript")
PARTS = ("lens", "patching", "heads", "remedies")
TEXT_SPEAKERS = 6  # one in so many gives the prompts that the tuned lens is fitted on


@dataclass
class ConflictConfig(Config):
    """Who wins when the voice says one emotion and the text another, in which layer, and by which path.

    Examples:
        aligncap lab conflict --model runs/audio-llm/model --stimuli ravdess.jsonl --out conflict
        aligncap lab conflict --model runs/audio-llm/model --stimuli my-tts/ --languages en --out conflict
        aligncap lab conflict --model runs/quickstart/model --stimuli ravdess.jsonl --languages en \\
            --places transcript --begun "The speaker sounds" --out conflict
    """

    model: str = option(help="Folder of a model: AlignCap's, merged or a run, or a Qwen2-Audio.")
    out: str = option(help="Folder for report.html, conflict.json and the pictures.")
    stimuli: str = option(
        "",
        "Manifest or folder of clips whose words carry no emotion; none: nine synthetic ones of each voice.",
    )
    emotions: list[str] = option(EMOTIONS, "Labels that voice and text may have.")
    languages: list[str] = option(["en", "zh"], "Languages of the prompts: these, or one.")
    places: list[str] = option(
        ["instruction", "transcript"], "Where the text tells its emotion: these, or one."
    )
    against: str = option(
        "", "conflict.json of another model on the same prompts: say what changed from that one to this one."
    )
    begun: str = option("", "Beginning of the answer, for models that answer in sentences.")
    parts: list[str] = option(list(PARTS), "What is done besides behaviour: these, or some; none: nothing.")
    speakers: NaturalInt = option(0, "Speakers, drawn by seed; 0: all of the stimuli (12 synthetic ones).")
    clips: PositiveInt = option(1, "Clips of each speaker and emotion.")
    conflicts: PositiveInt = option(4, "Prompts of each clip that tell another emotion.")
    lensed: PositiveInt = option(240, "Prompts that lens and probes look into.")
    patched: PositiveInt = option(40, "Prompts whose states are patched; each costs some sixty passes.")
    tried: PositiveInt = option(60, "Conflicts on which remedies are chosen, and as many to measure them.")
    window: PositiveInt = option(4, "Layers that are patched or cut together.")
    step: PositiveInt = option(2, "Layers from one window to the next.")
    batch_size: PositiveInt = option(16, "Prompts at a time.")
    dtype: Literal["float32", "bfloat16"] = option("float32", "Precision of the model.")
    device: str = option("auto", "Where the model runs: auto, cpu, cuda, cuda:1.")
    seed: NaturalInt = option(0, "Seed of the choice of clips, trials and speakers.")

    def own_errors(self) -> list[str]:
        known = labels()
        errors = [
            f"emotions={e}: no such label; choose from {', '.join(known)}"
            for e in self.emotions
            if e not in known
        ]
        if len(set(self.emotions)) < 2:
            errors.append("emotions: two or more are needed for a conflict")
        for name, able in (("languages", ("en", "zh")), ("places", PLACES), ("parts", (*PARTS, "none"))):
            wrong = [value for value in getattr(self, name) if value not in able]
            errors += [f"{name}={value}: choose from {', '.join(able)}" for value in wrong]
        for name in ("emotions", "languages", "places", "parts"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                errors.append(f"{name}={' '.join(values)}: one is named twice")
        return errors


def run_conflict(config: ConflictConfig) -> int:
    """Write report.html, conflict.json, pictures and run.json; print who wins and what was found.

    Raises:
        UserError: a model, clip or option that cannot be used.
    """
    out = Path(config.out)
    before = read_answers(config.against)
    manifest, clips = find_clips(config)
    folder = model_folder(config.model)
    model = load_speech_model(folder, config.device, config.dtype)
    study = make_study(config, model, clips)
    # rows do not depend on them
    apart = ("out", "device", "batch_size", "parts", "patched", "tried", "lensed", "against")
    own = {k: v for k, v in asdict(config).items() if k not in apart}
    settings = {"model": model_key(folder), "config": own, "clips": sorted(s.id for s in clips)}
    with journaled(out / "conflict.json", settings, ALONE) as journal:
        found = conflict(study, config, clips, journal, before)
        found = {"model": config.model, "stimuli": str(manifest), **found}
        found["findings"] = findings(found)
        write_json(out / "conflict.json", found)
    write_conflict(out, found)
    data = [manifest] if manifest.is_file() else sorted(s.path for s in clips)
    write_run_record(out, "lab conflict", asdict(config), data, seed=config.seed)
    Console().print(conflict_table(found))
    for line in found["findings"]:
        print(line)
    print(f"report: {out}/report.html")
    return 0


def find_clips(config: ConflictConfig) -> tuple[Path, list[Stimulus]]:
    """The manifest or folder of the stimuli, made first where none is named, and the clips chosen of it."""
    source = Path(config.stimuli) if config.stimuli else Path(config.out) / "stimuli"
    if not config.stimuli:
        source = make_stimuli(source, config.speakers or 12, config.seed)
    elif not source.exists():
        raise UserError(f"{source}: no such manifest or folder")
    clips = read_stimuli(source, config.emotions)
    if config.speakers:
        voices = many_voices(clips)
        chosen = set(random.Random(config.seed).sample(voices, min(config.speakers, len(voices))))
        clips = [s for s in clips if voice_of(s) in chosen]
    chosen_clips = choose_stimuli(clips, config.clips, config.seed)
    if len({s.emotion for s in chosen_clips}) < 2:
        raise UserError(f"{source}: the speakers chosen have one emotion only; choose more of them")
    return source, chosen_clips


def make_study(config: ConflictConfig, model: SpeechModel, clips: Sequence[Stimulus]) -> Study:
    """The model with the words of the emotions that the clips have."""
    present = {s.emotion for s in clips}
    emotions = [e for e in config.emotions if e in present]
    tokens = label_tokens(model.tokenizer, emotions, languages_of(config))
    return Study(model, emotions, tokens, config.begun, config.batch_size)


def languages_of(config: ConflictConfig) -> list[Language]:
    known: tuple[Language, ...] = ("en", "zh")
    return [language for language in known if language in config.languages]


def read_answers(path: str) -> Row:
    """The model and its answers, of a conflict.json; empty of no path.

    Raises:
        UserError: there is none, it is damaged, or of a version that kept no answers.
    """
    if not path:
        return {}
    found = read_record(Path(path))
    if not isinstance(found.get("answers"), dict):
        raise UserError(f"{path}: holds no answers; run `aligncap lab conflict` for that model again")
    return {"model": found.get("model"), "answers": found["answers"]}


def conflict(
    study: Study, config: ConflictConfig, clips: Sequence[Stimulus], journal: Store, before: Row | None = None
) -> Row:
    """Everything that is measured, by part; `journal` keeps rows and goes on from those that it has.

    Args:
        before: another model's answers (`read_answers`), to which these are compared.
    """
    places = [p for p in PLACES if p in config.places]
    trials = make_trials(clips, study.emotions, languages_of(config), places, config.conflicts, config.seed)
    voices = many_voices(clips)
    answer_trials(study, trials, journal)
    found: Row = {
        "emotions": study.emotions,
        "speakers": len(voices),
        "clips": len(clips),
        "trials": counts(trials),
        "blocks": study.model.blocks,
        "heads_a_block": study.model.heads,
        "behaviour": behaviour(study, trials, journal),
        "answers": answers_of(study, trials, journal),
    }
    if before:
        changes = compare(trials, before["answers"], found["answers"])
        found["against"] = {"model": before["model"], "changes": changes}
    shuffled = list(trials)
    random.Random(config.seed).shuffle(shuffled)
    conflicts = [t for t in shuffled if t.condition == "conflict"]
    if "lens" in config.parts:
        limit = config.lensed
        found["lens"] = _once(journal, f"lens {limit}", lambda: look(study, shuffled, voices, limit))
    if "patching" in config.parts:
        windows = Windows(study.model.blocks, config.window, config.step)
        chosen = conflicts[: config.patched]
        rows = _Named(journal, "patch")
        patch_trials(study, chosen, clips, windows, rows)
        found["patching"] = patching(study, chosen, windows, rows)
    if "heads" in config.parts:
        rows = _Named(journal, "heads")
        listen_heads(study, conflicts[: config.patched], rows)
        found["heads"] = heads_table(conflicts[: config.patched], rows)
    if "remedies" in config.parts:
        found["remedies"] = remedy(study, shuffled, voices, config, journal)
    return found


def look(study: Study, trials: Sequence[Trial], voices: Sequence[str], limit: int) -> Row:
    """Lens and probes; the tuned lens is fitted on prompts of speakers that the lens does not look into."""
    some = max(1, len(voices) // TEXT_SPEAKERS) if len(voices) > 1 else 0
    apart = set(voices[:: max(1, len(voices) // some)][:some]) if some else set()
    own = [t for t in trials if voice_of(t.clip) not in apart and t.condition != "consistent"][:limit]
    others = [t for t in trials if voice_of(t.clip) in apart]
    # every prompt is text of its own, so other wordings give the map more to be fitted on
    others += [replace(t, remedy=i % remedies(t.language)) for i, t in enumerate(others)]
    translators = None
    if others:
        study.listen(t.clip for t in others)
        translators = fit_translators(text_states(study, others))
    states = collect_states(study, own)
    return {
        "lens": lens(study, own, states, translators),
        "probe": probes(own, states),
        "held_out": {"speakers": len(apart), "prompts": len(others)},
        "penalty": translators.penalty if translators else None,
    }


def remedy(
    study: Study, trials: Sequence[Trial], voices: Sequence[str], config: ConflictConfig, journal: Store
) -> Row:
    """The remedies, chosen on half of the speakers and measured on the others; empty of one speaker."""
    first, second = halves(voices, config.seed)
    choose, measure = (
        _some([t for t in trials if voice_of(t.clip) in part], config.tried) for part in (first, second)
    )
    on = [t for t in choose if t.condition == "conflict"]
    if not on or not any(t.condition == "conflict" for t in measure):
        return {}
    rows = _Named(journal, "heads")
    listen_heads(study, on, rows)
    directions = fixes.audio_direction(choose, collect_states(study, choose, "direction"))
    kinds = {
        "prompt": fixes.prompt_remedies(),
        "heads": fixes.head_remedies(mean_pull(on, rows)),
        "direction": fixes.direction_remedies(directions),
    }
    return fixes.find_remedies(study, kinds, choose, measure, _Named(journal, "remedy"))


def _some(trials: Sequence[Trial], limit: int) -> list[Trial]:
    """The first `limit` conflicts, and the trials of other conditions of the same clips, as many at most."""
    conflicts = [t for t in trials if t.condition == "conflict"][:limit]
    clips = {t.clip.id for t in conflicts}
    rest = [t for t in trials if t.condition != "conflict" and t.clip.id in clips]
    audio = [t for t in rest if t.condition == "audio"][:limit]
    return [*conflicts, *audio, *[t for t in rest if t.condition == "consistent"][:limit]]


class _Named:
    """A store whose keys are of one part of the study."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    def __contains__(self, key: object) -> bool:
        return f"{self.name}:{key}" in self.store

    def __getitem__(self, key: str) -> Row:
        found: Row = self.store[f"{self.name}:{key}"]
        return found

    def write(self, rows: Row) -> None:
        self.store.write({f"{self.name}:{key}": row for key, row in rows.items()})

    def reread(self) -> None:
        self.store.reread()


def _once(journal: Store, key: str, compute: Callable[[], Row]) -> Row:
    """What `compute` gives, from the journal if it was done before."""
    if key not in journal:
        journal.write({key: compute()})
    found: Row = journal[key]
    return found
