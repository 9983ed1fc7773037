"""`aligncap lab diagnose`: does a speech model hear at all, and if not, what does it say instead?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from aligncap.audio.members import is_there
from aligncap.data.manifest import Utterance, audio_path, read_manifest
from aligncap.data.split import choose_evenly
from aligncap.lab.asking import SpeechSubject, Subject
from aligncap.lab.attack_clips import (
    AttackOptions,
    attack_numbers,
    attackable,
    collect_attacks,
    transferred,
)
from aligncap.lab.diagnose_numbers import (
    fault_numbers,
    label_numbers,
    labelled,
    prompt_numbers,
    word_numbers,
)
from aligncap.lab.diagnose_parts import (
    FILE,
    HOP,
    Collector,
    askable,
    collect_faults,
    collect_labels,
    collect_priors,
    collect_prompts,
    collect_words,
    main_wording,
    wordings,
)
from aligncap.lab.diagnose_report import findings_table, write_report
from aligncap.lab.families import load_speech_model
from aligncap.lab.faults import FAULTS, check_audio, check_features
from aligncap.lab.label_answers import read_said
from aligncap.lab.verdict import heard, judge
from aligncap.models.checkpoints import model_key, weight_files
from aligncap.text.prompts import Language
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, load_data, write_json, write_jsonl
from aligncap.utils.journal import Journal
from aligncap.utils.options import Config, NaturalInt, NonNegativeFloat, PositiveFloat, PositiveInt, option
from aligncap.utils.run_record import file_hashes, write_run_record

PARTS = ("prompts", "faults", "words", "attack")
FEWEST = 8  # clips


@dataclass
class DiagnoseConfig(Config):
    """What a speech model hears, what it says instead, and a verdict in words with the evidence beside it.

    Examples:
        aligncap lab diagnose --model runs/audio-llm/model --manifest test.jsonl --out report
        aligncap lab diagnose --model DIR --manifest test.jsonl --parts faults words --limit 48 --out report
        aligncap lab diagnose --model DIR --transfer OTHER --parts attack --manifest test.jsonl --out report
    """

    model: str = option(help="AlignCap model or training run, or a Qwen2-Audio folder.")
    manifest: str = option(help="Manifest with emotion labels.")
    out: str = option(help="Folder of report.html, diagnose.json, answers.jsonl and attacked clips.")
    parts: list[str] = option(
        list(PARTS), f"What is done beside labels and probabilities: {', '.join(PARTS)}; none: nothing."
    )
    faults: list[str] = option([*FAULTS, HOP], "Faults of the audio that are tried.")
    limit: PositiveInt = option(96, "Clips whose label is asked for, emotions as even as they come.")
    subset: PositiveInt = option(48, "Of these, clips for prompts, faults and words.")
    attacked: PositiveInt = option(6, "Clips that are attacked, at most.")
    language: Literal["en", "zh", "both"] = option("both", "Language of the questions.")
    samples: NaturalInt = option(3, "Answers drawn a clip for the first wording.")
    snr: list[float] = option([60.0, 50.0, 40.0, 30.0], "Signal-to-noise ratios of attacks, dB.")
    steps: PositiveInt = option(12, "Steps of gradient descent an attack, at each SNR.")
    linf: PositiveFloat | None = option(None, "Largest sample of attacks too (L∞), full scale 1.")
    restarts: PositiveInt = option(1, "Starts an attack, the first at the clip itself.")
    price: NonNegativeFloat = option(1.0, "Weight of the transcript's loss in attacks (nats a token).")
    audible: NonNegativeFloat = option(0.0, "Weight of energy above the masking threshold in attacks.")
    transfer: str | None = option(None, "Another model, which is asked about attacked clips.")
    batch_size: PositiveInt = option(8, "Clips at a time.")
    dtype: Literal["float32", "bfloat16"] = option("float32", "Precision of the model.")
    device: str = option("auto", "Where the model runs: auto, cpu, cuda, cuda:1.")
    seed: NaturalInt = option(0, "Seed of the choice of clips and of drawn answers.")

    @property
    def languages(self) -> list[Language]:
        return ["en", "zh"] if self.language == "both" else [self.language]

    @property
    def chosen_parts(self) -> list[str]:
        return [part for part in self.parts if part != "none"]

    def own_errors(self) -> list[str]:
        known = {*PARTS, "none"}
        errors = [f"parts={p}: choose among {', '.join(PARTS)}, none" for p in self.parts if p not in known]
        if not self.snr or sorted(self.snr, reverse=True) != list(self.snr):
            errors.append("snr: name ratios from the softest attack to the loudest, such as 40 30 20")
        faults = [*FAULTS, HOP]
        errors += [f"faults={f}: choose among {', '.join(faults)}" for f in self.faults if f not in faults]
        if self.transfer and "attack" not in self.parts:
            errors.append("transfer: only with the part attack")
        return errors


def run_diagnose(config: DiagnoseConfig) -> int:
    """Write report.html with pictures, diagnose.json, answers.jsonl and run.json; print the verdict.

    What was asked is kept in OUT/asked.partial as it comes; the same command goes on from there.

    Raises:
        UserError: no model, too few labelled clips, or a clip that cannot be used.
    """
    out = Path(config.out)
    clips, labels = labelled_clips(config)
    model = load_speech_model(config.model, config.device, config.dtype)
    subject = SpeechSubject(model, labels, config.seed)
    journal = asked_before(config, labels)
    try:
        numbers, answers = diagnose(subject, clips, config, journal)
        if "attack" in config.chosen_parts:
            numbers["attack"] = _attack(subject, clips, numbers, answers, config, journal)
    finally:
        journal.close(done=False)
    findings = judge(numbers)
    numbers["verdict"] = [found.row() for found in findings]
    write_jsonl(out / "answers.jsonl", answers)
    page = write_report(out, numbers, findings)
    write_json(out / "diagnose.json", numbers)
    data: list[str | Path] = [config.manifest, *weight_files(config.model)]
    write_run_record(out, "lab diagnose", asdict(config), data, seed=config.seed)
    Console().print(findings_table(findings))
    print(f"verdict: {findings[0].text}\nreport: {page}")
    return 0


def labelled_clips(config: DiagnoseConfig) -> tuple[list[Utterance], list[str]]:
    """Up to `limit` clips with a label, labels as even as they come; and all labels of the manifest.

    Raises:
        UserError: fewer than FEWEST, or of one label only.
        UserErrors: sound files that are missing.
    """
    known = [u for u in read_manifest(config.manifest) if u.emotion]
    if len(known) < FEWEST:
        raise UserError(f"{config.manifest}: {len(known)} clips have a label; {FEWEST} or more are needed")
    if len({u.emotion for u in known}) < 2:
        raise UserError(f"{config.manifest}: all clips have one label; a diagnosis needs two or more")
    chosen = [known[i] for i in choose_evenly(known, config.limit, config.seed)]
    paths = {u.id: audio_path(config.manifest, u) for u in chosen}
    if missing := [f"{paths[u.id]}: no such file (clip {u.id})" for u in chosen if not is_there(paths[u.id])]:
        raise UserErrors(missing)
    return chosen, sorted({str(u.emotion) for u in known})


def asked_before(config: DiagnoseConfig, labels: Sequence[str]) -> Journal:
    """What was asked so far in OUT, of the same model, manifest and seed, in the same words.

    It stays when the report is written, so that parts and clips may be added.
    """
    kept = ("language", "samples", "dtype", "seed")
    settings: Row = {name: getattr(config, name) for name in kept}
    settings |= {"labels": list(labels), "model": model_key(config.model)}
    settings |= {"data": list(file_hashes([config.manifest]).values())}
    return Journal(Path(config.out) / "asked", settings)


def diagnose(
    subject: Subject, clips: Sequence[Utterance], config: DiagnoseConfig, journal: Journal
) -> tuple[Row, list[Row]]:
    """All but the attack.

    Returns:
        numbers as in diagnose.json; and the answers, [{"id", "emotion", "asked", "said"}].
    """
    parts = config.chosen_parts
    paths = {u.id: audio_path(config.manifest, u) for u in clips}
    about = Collector(subject, paths, journal, config.batch_size)
    why_not = askable(subject)
    chosen = [w for w in wordings(subject.labels, config.languages) if w.own or not why_not]
    rows = collect_labels(about, clips, chosen, config.samples)
    priors = collect_priors(about, chosen)
    main = main_wording(chosen, rows, subject.labels)
    whole = labelled(clips, subject.labels)
    answers = [
        {"id": u.id, "emotion": u.emotion, "asked": name, "said": cell["said"]}
        for u, row in zip(clips, rows, strict=True)
        for name, cell in row.items()
    ]
    numbers: Row = {
        "model": config.model,
        "manifest": config.manifest,
        "clips": len(clips),
        "speakers": whole.units.speakers,
        "unit": whole.units.note,
        "labels": subject.labels,
        "chance": whole.chance,
        "neutral": "neutral" if "neutral" in subject.labels else None,
        "why_not_asked": why_not,
        "main": main.name,
        "wordings": label_numbers(rows, priors, chosen, whole),
    }
    places = choose_evenly(clips, config.subset, config.seed)
    some = [clips[i] for i in places]
    plain = [rows[i][main.name] for i in places]
    part = labelled(some, subject.labels)
    if "prompts" in parts:
        asked = collect_prompts(about, some, main, not why_not)
        numbers["prompts"] = prompt_numbers(asked, [row["said"] for row in plain], part, main)
        answers += [
            {"id": u.id, "emotion": u.emotion, "asked": f"prompts: {kind}", "said": said}
            for u, row in zip(some, asked, strict=True)
            for kind, said in row.items()
            if kind != "suggested"
        ]
    if "faults" in parts:
        found = collect_faults(about, some, main, config.faults)
        numbers["faults"] = {"clips": len(some), **fault_numbers(plain, found, part, main)}
        numbers["faults"]["hop"] = HOP in found or HOP not in config.faults  # False: it cannot be tried
        numbers["features"] = check_features(*subject.features())
        numbers["audio"] = check_audio(clips, paths, subject.max_seconds)
    if "words" in parts or "attack" in parts:
        numbers["words"] = _words(about, some, why_not, answers)
    return numbers, answers


def _words(about: Collector, clips: Sequence[Utterance], why_not: str, answers: list[Row]) -> Row:
    told = [u for u in clips if (u.transcript or "").strip()]
    if why_not or not told:
        return {"why_not": f"it cannot be asked ({why_not})" if why_not else "no clip has a transcript"}
    rows = collect_words(about, told)
    pairs = zip(told, rows, strict=True)
    answers += [{"id": u.id, "emotion": u.emotion, "asked": "words", "said": r["said"]} for u, r in pairs]
    return word_numbers(rows, told)


def _attack(
    subject: SpeechSubject,
    clips: Sequence[Utterance],
    numbers: Row,
    answers: Sequence[Row],
    config: DiagnoseConfig,
    journal: Journal,
) -> Row:
    """The part `attack`: its numbers, or why there are none."""
    main = next(w for w in wordings(subject.labels, config.languages) if w.name == numbers["main"])
    cell = numbers["wordings"][main.name]
    if not heard(cell["uar"]):
        return {"why_not": "its clean answers are no better than chance, so it would prove nothing"}
    texts = {row["id"]: row["said"] for row in answers if row["asked"] == main.name}
    written = {row["id"]: str(row["said"]) for row in answers if row["asked"] == "words"}
    able = numbers["words"].get("transcribes", False)
    said = read_said([texts[u.id] for u in clips], subject.labels, lenient=main.own)
    chosen, counts = attackable(clips, said, written if able else None, config.attacked)
    if not chosen:
        return {"why_not": "no clip was right before", "counts": counts}
    options = AttackOptions(
        tuple(config.snr),
        config.steps,
        config.restarts,
        config.price,
        config.audible,
        config.linf or math.inf,
    )
    folder = Path(config.out) / "audio"
    about = Collector(
        subject, {u.id: audio_path(config.manifest, u) for u in clips}, journal, config.batch_size
    )
    begun = str(load_data(FILE)[subject.language]["begun"]) if main.own else ""
    words = written if able else {}
    rows = collect_attacks(about, subject, chosen, main, options, words, folder, begun)
    found = attack_numbers(rows, options) | {"counts": counts, "transfer": None}
    if config.transfer:
        other = SpeechSubject(
            load_speech_model(config.transfer, config.device, config.dtype), subject.labels, config.seed
        )
        found["transfer"] = transferred(other, rows, main, folder, config.transfer)
    return found
