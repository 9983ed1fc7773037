"""Every score of a report: its title, whether more or less is better, what it means, how it is printed."""

from __future__ import annotations

from typing import Literal, NamedTuple

from aligncap.utils.io import Row

GENERIC = 0.05  # a caption as true of more than one other clip in twenty says little about this one
VERY_GENERIC = 0.1


class Score(NamedTuple):
    """`meaning` is for reports, where the title does not say it; `digits` are printed after the point."""

    title: str
    better: Literal["more", "less", "neither"] = "more"
    meaning: str = ""
    digits: int = 3


SCORES: dict[str, Score] = {
    "emotion_uar": Score("Emotion UAR"),
    "emotion_accuracy": Score("Emotion accuracy"),
    "emotion_none_share": Score("Captions without emotion word", "less"),
    "bleu_1": Score("BLEU-1"),
    "bleu_2": Score("BLEU-2"),
    "bleu_3": Score("BLEU-3"),
    "bleu_4": Score("BLEU-4"),
    "meteor": Score("METEOR"),
    "rouge_l": Score("ROUGE-L"),
    "cider_d": Score("CIDEr-D", digits=2),
    "similarity": Score(
        "Similarity (sentence encoder)",
        meaning="cosine of a sentence encoder's vectors of caption and references, mean over references; it "
        'reacts to a wrong emotion or gender, and hardly to a wrong pitch, effort or rate, or to a "not"',
    ),
    "meteor_1_5": Score("METEOR 1.5 (Java)"),
    "spice": Score("SPICE (Java)"),
    "distinct_1": Score("Distinct-1"),
    "distinct_2": Score("Distinct-2"),
    "top_caption_share": Score("Share of most frequent caption", "less"),
    "mean_length": Score("Mean length (tokens)", "neither", digits=1),
    "emotion_set_precision": Score(
        "Emotion words, set precision",
        meaning="of the emotions that captions name, the share that the label or half of the references name "
        "too, by sectors of emotion wheels, mean over wheels; over captions that name one",
    ),
    "emotion_set_recall": Score(
        "Emotion words, set recall",
        meaning="of the emotions of label and references, the share that captions name",
    ),
    "emotion_set_f1": Score("Emotion words, set F1"),
    "valence_flip_share": Score(
        "Valence flips",
        "less",
        "captions whose emotion words are pleasant where the clip's emotion is not, or the other way round; "
        "arousal flips: excited against calm; over clips whose emotion has a side",
    ),
    "arousal_flip_share": Score("Arousal flips", "less"),
    "wrong_claim_share": Score(
        "Wrong acoustic claims, share",
        "less",
        "of what captions claim about pitch, its movement, effort, rate and steadiness, the share that the "
        "measured audio does not bear out, against the speaker's own norm",
    ),
    "wrong_claims_per_caption": Score("Wrong acoustic claims a caption", "less"),
    "caption_with_wrong_claim_share": Score("Captions with a wrong acoustic claim", "less"),
    "claims_per_caption": Score("Acoustic claims a caption", "neither"),
    "wrong_gender_share": Score(
        "Wrong gender, where one is named",
        "less",
        "of captions that give the speaker a gender, the share that gives the wrong one",
    ),
    "generic_share": Score(
        "Generic captions",
        "less",
        "captions whose emotion, gender and acoustic claims are as true of more than "
        f"{GENERIC:.0%} of the other clips; very generic: {VERY_GENERIC:.0%}",
    ),
    "very_generic_share": Score("Very generic captions", "less"),
    "fit_share": Score(
        "Other clips that a caption fits",
        "less",
        "mean share of the other clips of which a caption is as true; saying less raises it, and so does "
        "saying what is common; what is said of no clip lowers it, so read it beside the wrong claims",
    ),
    "found_among_10": Score(
        "Clip found among ten",
        meaning="probability that a caption's own clip fits it best of ten drawn from the set, by emotion, "
        "gender and acoustic claims; chance 0.1",
    ),
    "transcript_leak_share": Score(
        "Captions that tell the words",
        "less",
        "captions that repeat content words of what is said in the clip",
    ),
    "instruction_breach_share": Score(
        "Captions that are no description",
        "less",
        "captions that do not describe how a voice sounds: questions, refusals, answers, lists, first "
        "person, scenes, fragments, repetition, another language",
    ),
    "rubric_score": Score(
        "Rubric (0 to 10)",
        meaning="mean mark of the offline judge: emotion, acoustic claims, faithfulness, fluency by rules, "
        "specificity",
        digits=2,
    ),
}
EXTRAS = (
    "similarity",
    "meteor_1_5",
    "spice",
)  # need a sentence encoder or Java; the others are always counted


def figure(name: str, value: float | None) -> str:
    """A score's value as printed."""
    return "–" if value is None else f"{value:.{SCORES[name].digits}f}"


def signed(name: str, value: float | None) -> str:
    """The same of a difference: "+0.112"."""
    return ("+" if value is not None and value >= 0 else "") + figure(name, value)


def interval(name: str, cell: Row) -> str:
    """ "[0.66, 0.77]", or nothing."""
    if cell.get("low") is None or cell.get("high") is None:
        return ""
    return f"[{figure(name, cell['low'])}, {figure(name, cell['high'])}]"


def shown(name: str, cell: Row | None) -> tuple[str, str, str]:
    """Value, standard deviation over seeds ("± 0.02", where there are several) and interval, as printed."""
    if cell is None or cell["value"] is None:
        return "–", "", ""
    spread = cell.get("spread")
    return (
        figure(name, cell["value"]),
        "" if spread is None else f"± {figure(name, spread)}",
        interval(name, cell),
    )
