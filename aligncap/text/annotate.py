"""Captions for corpora that have only labels: measured cues, their wording, and sentences that say both.

A caption claims the label, its intensity, the speaker's gender and levels of measured cues; nothing else, and
nothing of the transcript. Captions are English whatever the language of the speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from aligncap.data.manifest import Utterance, audio_path
from aligncap.text.claims import word_cues
from aligncap.text.sentences import write_captions
from aligncap.utils.errors import UserError

WRITER = "annotate"  # extra["captions_by"] of captions written here, so that they can be written again


def annotate(
    manifest_path: str | Path,
    utterances: Sequence[Utterance],
    references: int = 5,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> tuple[list[Utterance], list[str]]:
    """Utterances with cues, cue words and captions, and the errors met.

    Cues that an utterance holds already are not measured again. Captions from elsewhere (a captioned corpus,
    a person) are kept. The words of a clip depend on the other clips of its speaker through the speaker's
    norm; given the words, captions depend on seed and id alone, not on order or number of clips.

    Args:
        manifest_path: where the utterances' roots are relative to.
        references: captions a clip, at least 1.
        workers: processes that measure.
        progress: show a bar in a terminal.

    Returns:
        New utterances in the given order, and one line a error. A clip whose file cannot be used, or that
        has neither label nor measurable cue, is a error and is left out of the utterances.

    Raises:
        UserError: `references` is below 1.
    """
    if references < 1:
        raise UserError(f"--references {references}: at least one caption a clip is needed")
    cues, unusable = _cues(manifest_path, utterances, workers, progress)
    usable = [u for u in utterances if u.id not in unusable]
    annotated: list[Utterance] = []
    errors = [unusable[u.id] for u in utterances if u.id in unusable]
    words_of_clip = _words([cues[u.id] for u in usable], usable)
    for utterance, words in zip(usable, words_of_clip, strict=True):
        done = replace(utterance, cues=cues[utterance.id], cue_words=words, extra=dict(utterance.extra))
        if not done.captions or done.extra.get("captions_by") == WRITER:
            rng = Random(f"{seed}|{done.id}")
            done.captions = write_captions(done.emotion, done.intensity, done.gender, words, references, rng)
            done.extra["captions_by"] = WRITER
            done.clues, done.p_act = [], []  # they belonged to the former captions
            if not done.captions:
                errors.append(
                    f"{manifest_path}: {done.id}: no emotion label and no measurable cue, so nothing to say; "
                    "add a label or a caption"
                )
                continue
            if len(done.captions) < references:
                errors.append(
                    f"{manifest_path}: {done.id}: only {len(done.captions)} of {references} captions differ; "
                    "ask for fewer --references"
                )
        annotated.append(done)
    return annotated, errors


def _words(cues: Sequence[dict[str, float]], utterances: Sequence[Utterance]) -> list[dict[str, str]]:
    from aligncap.audio.cues import relative

    values = relative(list(cues), [u.speaker for u in utterances], [u.gender for u in utterances])
    return [word_cues(value) for value in values]


def _cues(
    manifest_path: str | Path, utterances: Sequence[Utterance], workers: int, progress: bool
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Raw cues by id, and a error by id for clips whose file cannot be used."""
    from aligncap.audio.cues import measure_many

    cues = {u.id: u.cues for u in utterances if u.cues}
    errors: dict[str, str] = {}
    paths: dict[str, Path] = {}
    for utterance in utterances:
        if utterance.id not in cues:
            try:
                paths[utterance.id] = audio_path(manifest_path, utterance)
            except UserError as error:
                errors[utterance.id] = str(error)
    if paths:
        measured = measure_many(list(paths.values()), workers=workers, progress=progress)
        for name, result in zip(paths, measured, strict=True):
            if isinstance(result, dict):
                cues[name] = result
            else:
                errors[name] = str(result)
    return cues, errors
