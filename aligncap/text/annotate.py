"""Captions for corpora that have only labels: measured cues, their wording, and sentences that state both.

A caption claims the label, its intensity, the speaker's gender and levels of measured cues; nothing else, and
nothing of the transcript. Captions are English, or Chinese, whatever the language of the speech. A model
behind an OpenAI-compatible endpoint may reword English ones, as long as they state the same.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

from aligncap.audio.cues import measure_many
from aligncap.data.manifest import Utterance, audio_path, read_manifest, rebase, write_manifest
from aligncap.text.claims import manner_claims, relative_cues, word_cues
from aligncap.text.cue_report import write_cue_report
from aligncap.text.emotions import emotion_of, emotion_words
from aligncap.text.lexicon import word_list
from aligncap.text.prompts import Language
from aligncap.text.questions import add_questions
from aligncap.text.sentences import FILE
from aligncap.text.sentences_zh import WRITERS
from aligncap.utils.errors import UserError
from aligncap.utils.io import load_data
from aligncap.utils.openai_endpoint import KEY_VARIABLE, URL_VARIABLE, key_and_url
from aligncap.utils.options import Config, NaturalInt, PositiveInt, changed, option
from aligncap.utils.progress import track

WRITER = "annotate"  # extra["captions_by"] of captions written here, so that they can be written again
MOST_WORDS = 25  # of a rewording: a longer answer explains, or invents
TEMPERATURE = 0.8  # of rewordings
TIMEOUT = 60.0  # seconds a request


@dataclass
class AnnotateConfig(Config):
    """Measure the voice cues of every clip and write captions that state its label and its cues.

    Examples:
        aligncap annotate runs/ravdess.jsonl --references 5 --out runs/captioned.jsonl
        aligncap annotate runs/ravdess.jsonl --out runs/captioned.jsonl --report runs/cues
        aligncap annotate runs/ravdess.jsonl --language zh --out runs/chinese.jsonl
        aligncap annotate runs/ravdess.jsonl --instructions 8 --language both --out runs/questions.jsonl
        aligncap annotate runs/ravdess.jsonl --out runs/reworded.jsonl --paraphrase gpt-4o-mini
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("manifest",)

    manifest: str = option(help="Manifest of labelled clips.")
    out: str = option(help="Manifest to write.")
    references: PositiveInt = option(5, "Captions a clip.")
    language: Literal["en", "zh", "both"] = option("en", "Language of the captions; both: of instructions.")
    instructions: NaturalInt = option(
        0, "So many questions about each clip with their answers in place of captions (docs/audio-llm.md)."
    )
    told: NaturalInt = option(
        0,
        "So many of the questions tell an emotion, mostly not the voice's, which is the answer all the same.",
    )
    seed: NaturalInt = option(0, "Seed of the choice of words.")
    workers: PositiveInt = option(os.cpu_count() or 1, "Processes that measure cues.")
    report: str | None = option(None, "Folder for pictures of every cue by emotion.")
    paraphrase: str | None = option(None, "Model of an OpenAI-compatible endpoint that rewords the captions.")
    base_url: str | None = option(None, "Address of that endpoint; the key comes from OPENAI_API_KEY.")

    def own_errors(self) -> list[str]:
        if self.paraphrase and self.language != "en":
            return ["paraphrase: rewords English captions; leave it out"]
        if not self.instructions:
            alone = {"language=both": self.language == "both", "told": self.told}
            return [f"{name}: for --instructions alone" for name, given in alone.items() if given]
        if self.told > self.instructions:
            return [f"told: {self.told} of {self.instructions} questions; give --instructions more"]
        idle = changed(self, ("paraphrase", "references"))
        return [f"{name}: has no effect on answers to instructions; leave it out" for name in idle]


def run_annotate(config: AnnotateConfig) -> int:
    """`aligncap annotate`."""
    if config.paraphrase:
        key_and_url("paraphrasing", config.base_url, None)  # before anything is measured
    utterances = read_manifest(config.manifest)
    done, errors = annotate(
        config.manifest,
        utterances,
        references=config.references,
        seed=config.seed,
        workers=config.workers,
        language=config.language,
        instructions=config.instructions,
        told=config.told,
    )
    if config.paraphrase:
        ours = [u for u in done if u.extra.get("captions_by") == WRITER]  # what people wrote stays
        result = paraphrase([c for u in ours for c in u.captions], config.paraphrase, config.base_url)
        captions = iter(result.captions)
        for u in ours:
            u.captions = [next(captions) for _ in u.captions]
        kept = ", ".join(f"{reason} {n}" for reason, n in result.kept_original.most_common()) or "none"
        print(f"paraphrased: {sum(result.reworded)} captions; kept as they were: {kept}")
    if done:
        write_manifest(config.out, rebase(done, config.manifest, config.out))
    for error in errors:
        print(error, file=sys.stderr)
    total = sum(len(u.captions) for u in done)
    kind = "answers to instructions" if config.instructions else "captions"
    print(f"{config.out}: {len(done)} clips, {total} {kind}, {len(errors)} errors")
    if config.report and done:
        print(f"cues by emotion: {write_cue_report(done, config.report)}")
    return 1 if errors else 0


def annotate(
    manifest_path: str | Path,
    utterances: Sequence[Utterance],
    *,
    references: int,
    seed: int,
    workers: int,
    language: Literal["en", "zh", "both"] = "en",
    instructions: int = 0,
    told: int = 0,
) -> tuple[list[Utterance], list[str]]:
    """Utterances with cues, cue words and captions, and the errors met.

    Cues that an utterance holds already are not measured again. Captions from elsewhere (a captioned corpus,
    a person) are kept. The words of a clip depend on the other clips of its speaker through the speaker's
    norm; given the words, captions depend on seed and id alone, not on order or number of clips.

    Args:
        manifest_path: where the utterances' roots are relative to.
        references: captions a clip.
        workers: processes that measure.
        language: of the captions.
        instructions: so many questions a clip and their answers in place of captions; captions from
            elsewhere become answers beside them.
        told: how many of these tell an emotion (`questions.TOLD`).

    Returns:
        New utterances in the given order, and one line an error. A clip whose file cannot be used, or that
        has neither label nor measurable cue, is an error and is left out of the utterances.
    """
    usable: list[Utterance] = []
    errors: list[str] = []
    for utterance, cues in zip(utterances, _measure(manifest_path, utterances, workers), strict=True):
        if isinstance(cues, str):
            errors.append(cues)
        else:
            usable.append(replace(utterance, cues=cues, extra=dict(utterance.extra)))
    annotated: list[Utterance] = []
    labels = sorted({u.emotion for u in usable if u.emotion})
    languages: list[Language] = ["en", "zh"] if language == "both" else [language]
    for utterance, relative in zip(usable, relative_cues(usable), strict=True):
        utterance.cue_words = words = word_cues(relative)
        rng, where = Random(f"{seed}|{utterance.id}"), f"{manifest_path}: {utterance.id}"
        own = bool(utterance.captions) and utterance.extra.get("captions_by") != WRITER
        before = len(utterance.captions) if own else 0
        wanted, what = references, "captions"
        if instructions:
            wanted, what = instructions, "answers"
            if own and utterance.instructions:
                errors.append(f"{where}: holds instructions already; annotate the manifest without them")
                continue
            asked: dict[str, Any] = {"labels": labels, "languages": languages, "keep": own, "told": told}
            add_questions(utterance, instructions, rng, **asked)
        elif not own:
            facts = utterance.emotion, utterance.intensity, utterance.gender, words
            utterance.captions = WRITERS[languages[0]](*facts, references, rng)
            utterance.instructions = []
        if instructions or not own:
            utterance.clues, utterance.p_act = [], []  # they belonged to the former captions
            if not own:
                utterance.extra["captions_by"] = WRITER
            found = len(utterance.captions) - before
            if found < wanted and own and not utterance.emotion:
                errors.append(f"{where}: no emotion label to ask about; add one")
            elif not found:
                errors.append(f"{where}: no emotion label and no measurable cue; add a label or a caption")
                continue
            elif found < wanted:
                errors.append(f"{where}: only {found} of {wanted} {what} differ; ask for fewer")
        annotated.append(utterance)
    return annotated, errors


def _measure(
    manifest_path: str | Path, utterances: Sequence[Utterance], workers: int
) -> list[dict[str, float] | str]:
    """Raw cues of each clip, or why its file cannot be used."""
    found: list[dict[str, float] | str | Path] = []
    for utterance in utterances:
        try:
            found.append(utterance.cues or audio_path(manifest_path, utterance))
        except UserError as error:
            found.append(str(error))
    paths = [path for path in found if isinstance(path, Path)]
    results = iter(measure_many(paths, workers=workers) if paths else ())
    return [next(results) if isinstance(one, Path) else one for one in found]


@dataclass
class Paraphrased:
    """Captions in the given order; `reworded` tells which differ from the originals.

    `kept_original` counts why originals stayed: "emotion", "manner", "gender", "negation", "form", "same"
    or "request failed".
    """

    captions: list[str]
    reworded: list[bool]
    kept_original: Counter[str]


def paraphrase(
    captions: Sequence[str], model: str, base_url: str | None = None, concurrency: int = 8, retries: int = 2
) -> Paraphrased:
    """Reword captions, one request each, at most `concurrency` at a time.

    The key comes from OPENAI_API_KEY; it is never printed or logged.

    Args:
        model: name that the endpoint knows.
        base_url: endpoint; OPENAI_BASE_URL, else OpenAI's own where it is None.
        retries: further attempts of a failed request, with growing pauses.

    Raises:
        UserError: no key, a key or model that is refused, or an endpoint that cannot be reached.
    """
    import openai

    key, url = key_and_url("paraphrasing", base_url, None)
    client = openai.OpenAI(api_key=key, base_url=url, timeout=TIMEOUT, max_retries=retries)
    prompt = load_data(FILE)["paraphrase"]
    unknown = f"knows no model {model!r} (or is no such endpoint); give another model, or set {URL_VARIABLE}"
    refused = f"refuses the key; set {KEY_VARIABLE} to a valid one"
    fatal: dict[type[Exception], str] = {
        openai.AuthenticationError: refused,
        openai.PermissionDeniedError: refused,
        openai.NotFoundError: f"{unknown}, which usually ends in /v1",
        openai.APIConnectionError: f"cannot be reached; start the server or set {URL_VARIABLE}",
    }

    def ask(caption: str) -> str | None:
        """The model's answer, None when the request failed for this caption alone."""
        system, user = prompt["system"], prompt["user"].format(caption=caption)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        try:
            response = client.chat.completions.create(
                model=model,
                temperature=TEMPERATURE,
                messages=messages,
            )
        except openai.APIError as error:
            if type(error) not in fatal:
                return None
            # errors of the client can quote the key, hence `from None` and messages of our own
            raise UserError(f"{client.base_url} {fatal[type(error)]}") from None
        content = response.choices[0].message.content if response.choices else None
        return " ".join(content.split()).strip("\"'\u201c\u201d") if content else None

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            answers = list(track(pool.map(ask, captions), len(captions), "paraphrasing"))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    pairs = list(zip(captions, answers, strict=True))
    reasons = ["request failed" if a is None else refusal(caption, a) for caption, a in pairs]
    kept = [caption if reason else str(a) for (caption, a), reason in zip(pairs, reasons, strict=True)]
    return Paraphrased(kept, [reason is None for reason in reasons], Counter(filter(None, reasons)))


def refusal(original: str, reworded: str) -> str | None:
    """Why a rewording does not state what the original states; None when it does."""
    words, before = (
        set(re.findall(r"[a-z]+(?:n't)?", text.lower().replace("\u2019", "'")))
        for text in (reworded, original)
    )
    if reworded == original:
        return "same"
    if not 3 <= len(words) <= MOST_WORDS or not re.fullmatch(r"[A-Z][^\n]*[.!]", reworded):
        return "form"
    new = {m.label for m in emotion_words(reworded)} - {m.label for m in emotion_words(original)}
    if emotion_of(reworded) != emotion_of(original) or new:
        return "emotion"
    if manner_claims([reworded]) - manner_claims([original]):
        return "manner"
    said, said_before = (
        {kind for kind in ("female", "male", "negations") if found & word_list(FILE, "paraphrase", kind)}
        | {"negations" for word in found if word.endswith("n't")}
        for found in (words, before)
    )
    added = said - said_before
    return "gender" if added - {"negations"} else "negation" if added else None
