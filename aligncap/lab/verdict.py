"""From numbers to a verdict: what is the matter with a model, in words, each with what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aligncap.utils.io import Row
from aligncap.utils.statistics import FEWEST, sure

REPEATS = 0.6  # share of answers from which on a model is said to give one answer to all
INVALID = 0.5  # share of answers that are no label from which on it does not answer the question
HELPS = 0.05  # UAR that a fault must gain to be more than noise
LEVEL = 0.01  # of the tests of these speakers' clips
COSTS = 0.1  # UAR that a fault must cost to be named

Kind = Literal[
    "wrong_rate",  # a change of rate helps, or voices lie where no voices lie
    "wrong_features",  # the feature settings are not those of the encoder
    "hears",  # answers are right more often than chance
    "hears_silently",  # probabilities know what answers do not say
    "one_answer",  # one label for all, and nothing behind it
    "repeats",  # one text for all, and nothing behind it
    "no_label",  # no labels are answered, and nothing behind it
    "deaf",  # varied answers at chance
]

HEADLINES: dict[Kind, str] = {
    "wrong_rate": "The audio reaches the model at a wrong rate.",
    "wrong_features": "The model's feature settings do not fit its audio.",
    "hears": "The model hears emotion and says it.",
    "hears_silently": "The model hears emotion, but its answers do not say it.",
    "one_answer": "The model does not hear emotion: it answers “{answer}” whatever the voice.",
    "repeats": "The model does not hear emotion: it repeats one answer whatever the audio.",
    "no_label": "The model does not answer the question, and nothing shows that it hears emotion.",
    "deaf": "The model does not hear emotion: its answers vary, and no more are right than by chance.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and the numbers beside it."""

    kind: str
    text: str
    evidence: list[str]

    def row(self) -> Row:
        return {"kind": self.kind, "text": self.text, "evidence": self.evidence}


def number(cell: Mapping[str, float | None] | None, digits: int = 2) -> str:
    """ "0.71 [0.60, 0.80]"."""
    if cell is None or cell["value"] is None:
        return "not known"
    low, high = cell.get("low"), cell.get("high")
    ends = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{cell['value']:.{digits}f}{ends}"


def heard(cell: Mapping[str, float | None]) -> bool:
    """Whether a UAR is higher than answers that do not depend on the label have (`statistics.chance_p`)."""
    return cell["p"] is not None and cell["p"] < LEVEL


def _positive(cell: Mapping[str, float | None]) -> bool:
    return cell["low"] is not None and cell["low"] > 0


def judge(numbers: Row) -> list[Finding]:
    """All findings, the headline first.

    Args:
        numbers: of `diagnose.json`: "main", "chance", "clips", "speakers", "wordings" and, of the parts that
            were run, "audio", "features", "faults", "prompts", "words", "attack".
    """
    main = numbers["wordings"][numbers["main"]]
    first = _headline(numbers, main)
    rest = [_recognition(numbers, main), *_rate(numbers), *_features(numbers), *_bias(numbers, main)]
    rest += [*_prompts(numbers), *_faults(numbers), *_words(numbers), *_attack(numbers)]
    if numbers["speakers"] < FEWEST:
        few = f"{numbers['speakers']} speakers of {FEWEST}: other speakers may give another verdict."
        rest.append(Finding("few_speakers", few, []))
    return [first, *(found for found in rest if found.kind != first.kind)]


def _headline(numbers: Row, main: Row) -> Finding:
    chance, probable = numbers["chance"], main["probabilities"]
    for found in (*_rate(numbers), *_features(numbers)):
        return found
    evidence = [
        f"UAR of answers {number(main['uar'])}, chance {chance:.2f}, p {main['uar']['p']:.2g} "
        f"(“{numbers['main']}”)",
        *(
            f"UAR of label words' probabilities, {name}: {number(cell['uar'])}, p {cell['uar']['p']:.2g}"
            for name, cell in probable.items()
        ),
    ]
    if heard(main["uar"]):
        return Finding("hears", HEADLINES["hears"], evidence)
    knows = [name for name in ("raw", "silence", "contentless") if name in probable]
    if any(heard(probable[name]["uar"]) for name in knows):
        return Finding("hears_silently", HEADLINES["hears_silently"], evidence)
    label, share = max(main["shares"].items(), key=lambda item: item[1])
    evidence.append(f"the commonest label, {label}, is {share:.0%} of answers")
    repeated = main["repeated"]
    if label != "none" and share >= REPEATS:
        return Finding("one_answer", HEADLINES["one_answer"].format(answer=label), evidence)
    if repeated["share"]["value"] >= REPEATS:
        part = repeated["share"]["value"]
        evidence.append(f"{part:.0%} of answers are “{repeated['answer']}” or nearly so")
        return Finding("repeats", HEADLINES["repeats"], evidence)
    if main["invalid"]["value"] >= INVALID:
        evidence.append(f"{main['invalid']['value']:.0%} of answers are no label")
        return Finding("no_label", HEADLINES["no_label"], evidence)
    return Finding("deaf", HEADLINES["deaf"], evidence)


def _recognition(numbers: Row, main: Row) -> Finding:
    lines = [
        f"{name}: UAR {number(w['uar'])}, invalid {w['invalid']['value']:.0%}"
        for name, w in numbers["wordings"].items()
    ]
    text = f"Asked with “{numbers['main']}”, it names the label in {number(main['accuracy'])} of clips."
    return Finding("recognition", text, lines)


def _rate(numbers: Row) -> list[Finding]:
    evidence = []
    if "faults" in numbers:
        for fault in numbers["faults"]["faults"].values():
            for score, what in (("uar", "answers"), ("uar_probabilities", "probabilities")):
                gap = fault["change"].get(score)
                if fault["undoes"] and gap and _helps(gap):
                    evidence.append(
                        f"“{fault['title']}” makes {what} better: UAR {number(gap)} more, {_p(gap)}; it "
                        f"undoes {fault['undoes']}"
                    )
    moved = 0
    for voice in (numbers.get("audio") or {}).get("voices", []):
        if not voice["ok"]:
            moved += 1
            evidence.append(
                f"voices ({voice['gender']}) have a median F0 of {voice['f0_hz']:g} Hz, "
                f"{voice['semitones']:+.1f} semitones from {voice['norm_hz']:g} Hz"
            )
    voices = (numbers.get("audio") or {}).get("voices", [])
    if evidence and (len(evidence) > moved or moved == len(voices)):
        return [Finding("wrong_rate", HEADLINES["wrong_rate"], evidence)]
    return []


def _p(gap: Mapping[str, float | None]) -> str:
    if gap["p_holm"] is not None:
        return f"p {gap['p_holm']:.2g}"
    return f"p {gap['p_clips']:.2g} over clips"


def _helps(gap: Mapping[str, float | None]) -> bool:
    value = gap["value"] or 0.0
    if gap["p_holm"] is not None:
        return value >= HELPS and sure(gap["p_holm"])
    return value >= HELPS and (gap["p_clips"] or 1.0) < LEVEL


def _features(numbers: Row) -> list[Finding]:
    wrong = [row for row in numbers.get("features") or [] if not row["ok"]]
    if not wrong:
        return []
    lines = [f"{row['what']}: {row['found']}, expected {row['expected']}" for row in wrong]
    return [Finding("wrong_features", HEADLINES["wrong_features"], lines)]


def _bias(numbers: Row, main: Row) -> list[Finding]:
    label = numbers["neutral"]
    if label is None:
        return []
    raw = main["probabilities"]["raw"]
    said, likely = main["bias"][label], raw["bias"][label]
    lines = [
        f"answers “{label}” {number(said)} above its share of the clips",
        f"its words are likeliest {number(likely)} above that share; mass {raw['mass'][label]:.0%}",
    ]
    lines += [
        f"{name}: likeliest {number(cell['bias'][label])} above, UAR {number(cell['uar'])}"
        for name, cell in main["probabilities"].items()
        if name != "raw"
    ]
    if raw["never_first"]:
        lines.append(f"never the likeliest: {', '.join(raw['never_first'])}")
    if not (_positive(said) or _positive(likely)):
        return [Finding("no_bias", f"It does not lean to “{label}”.", lines)]
    better = [
        name
        for name in ("silence", "contentless")
        if name in main["probabilities"]
        and (main["probabilities"][name]["uar"]["value"] or 0) > (raw["uar"]["value"] or 0) + HELPS
    ]
    helps = f" Taking off the prior ({', '.join(better)}) helps." if better else ""
    return [Finding("bias", f"It leans to “{label}”.{helps}", lines)]


def _prompts(numbers: Row) -> list[Finding]:
    if (prompts := numbers.get("prompts")) is None:
        return []
    found = []
    own = prompts["answers"]["own"]["repeated"]
    if own["share"]["value"] >= REPEATS:
        line = f"{number(own['share'])} of descriptions are “{own['answer']}” or nearly so"
        found.append(Finding("template", "Its descriptions are one template.", [line]))
    same = prompts["noise_same"]
    text = "Noise in a clip's place changes most answers."
    if same["value"] >= REPEATS:
        text = "Noise in a clip's place leaves most answers as they are: they do not come from the voice."
    found.append(Finding("noise", text, [f"the same answer to noise: {number(same)} of clips"]))
    if "leading_suggested" in prompts:
        led, right = prompts["leading_suggested"], prompts["leading_right"]
        lines = [
            f"says what the question suggests: {number(led)}, unasked {number(prompts['plain_suggested'])}",
            f"says the voice's label: {number(right)}, unasked {number(prompts['plain_right'])}",
        ]
        follows = led["value"] > right["value"]
        text = "A question that suggests another label is " + ("followed." if follows else "not followed.")
        found.append(Finding("leading", text, lines))
        trained = prompts["unrelated_names_emotion"]
        lines = [f"an emotion in reply to a question about something else: {number(trained)}"]
        lines += [f"says “{row['answer']}”" for row in prompts["answers"]["unrelated"]["commonest"][:3]]
        text = "Asked something else, it still names emotions." if trained["value"] >= 0.5 else ""
        found.append(Finding("unrelated", text or "Asked something else, it names no emotion.", lines))
    return found


def _faults(numbers: Row) -> list[Finding]:
    if (faults := numbers.get("faults")) is None:
        return []
    costs = []
    for fault in faults["faults"].values():
        gap = fault["change"]["uar"]
        if gap["value"] is not None and gap["value"] <= -COSTS:
            costs.append((gap["value"], f"{fault['title']}: UAR {number(gap)}"))
    lines = [line for _, line in sorted(costs)]
    if not lines:
        return [Finding("faults", "No fault of the audio costs a tenth of UAR.", [])]
    return [Finding("faults", "It depends on the audio: these faults cost most.", lines)]


def _words(numbers: Row) -> list[Finding]:
    if (words := numbers.get("words")) is None:
        return []
    if "why_not" in words:
        return [Finding("words", f"Whether it hears words is not known: {words['why_not']}.", [])]
    lines = [
        f"WER {number(words['wer'])}, CER {number(words['cer'])}, against other clips' words "
        f"{number(words['wer_other'])}",
        f"refusals {words['refusals']['value']:.0%}, an emotion instead {words['emotions']['value']:.0%}, "
        f"one answer for {words['repeated']['share']['value']:.0%}",
    ]
    text = "It can write down the words." if words["transcribes"] else "It cannot write down the words."
    return [Finding("words", text, lines)]


def _attack(numbers: Row) -> list[Finding]:
    if (attack := numbers.get("attack")) is None:
        return []
    if "why_not" in attack:
        return [Finding("attack", f"It was not attacked: {attack['why_not']}.", [])]
    levels = attack["levels"]
    lines = [
        f"at {row['snr_db']:g} dB: {row['turned']} of {row['clips']} clips turned to the target, "
        f"{row['changed']} changed; {row['audible']:.0%} of the energy above masking"
        for row in levels
    ]
    if attack.get("transfer"):
        moved = attack["transfer"]
        lines.append(f"of those, {moved['turned']} of {moved['clips']} turn {moved['model']} too")
    for name, defence in attack["defences"].items():
        lines.append(
            f"{name}: right on {defence['attacked_right']} of {defence['attacked']} attacked clips, on "
            f"{defence['clean_right']} of {defence['clean']} clean ones"
        )
    first = next((row for row in levels if row["turned"]), None)
    if first is None:
        return [Finding("attack", "No attack within the bounds turned a clip.", lines)]
    text = f"Changes of the waveform turn its answers, from {first['snr_db']:g} dB on."
    return [Finding("attack", text, lines)]
