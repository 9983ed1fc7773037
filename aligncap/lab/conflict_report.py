"""The report of a conflict study: findings in words, tables, the page, and what a terminal shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from rich.table import Table

from aligncap.lab.behaviour import WINNERS
from aligncap.lab.conflict_pictures import (
    back_picture,
    behaviour_picture,
    heads_picture,
    lens_picture,
    patching_picture,
    probe_picture,
    remedies_picture,
)
from aligncap.utils.io import Row, atomic_open, data_path, write_text
from aligncap.utils.statistics import FEWEST

LABEL_MASS = 0.5  # below it the answer position is not where labels are named


def number(cell: Mapping[str, Any], digits: int = 2) -> str:
    """A value and its interval.

    >>> number({"value": 0.5, "low": 0.4, "high": 0.6})
    '0.50 [0.40, 0.60]'
    """
    if cell["value"] is None:
        return "–"
    text = f"{cell['value']:.{digits}f}"
    return text if cell["low"] is None else f"{text} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"


# ---- findings


def findings(found: Row) -> list[str]:
    """What the numbers say, a sentence each; the source's two findings among them."""
    few = found["speakers"] < FEWEST
    claim = f" ({found['speakers']} speakers: no claim)" if few else ""
    lines = []
    table = found["behaviour"]["table"]
    right = table["audio"]["instruction"]["all"]["right"]
    lines.append(f"Asked about the audio alone, {number(right)} of the answers are the voice's emotion.")
    for place, cells in table["conflict"].items():
        cell = cells.get("heard", cells["all"])
        which = "clips that it hears rightly" if "heard" in cells else "clips"
        shares = ", ".join(f"{name} {number(cell[name])}" for name in WINNERS)
        lines.append(f"With another emotion in the {place}, of {which}: {shares}{claim}.")
    if found["behaviour"]["label_mass"] < LABEL_MASS:
        mass = found["behaviour"]["label_mass"]
        lines.append(
            f"Only {mass:.2f} of the probability at the answer position is on words of the emotions: the "
            "model answers otherwise there, and the shares are of what little is left; --begun may help."
        )
    if "lens" in found:
        lines += [line + claim for line in arbitration(found["lens"]["lens"], found["blocks"])]
    if "patching" in found:
        lines.append(causes(found["patching"], found["blocks"]) + claim)
    if found.get("remedies"):
        lines += [
            remedy_line(kind, found["remedies"], part) for kind, part in found["remedies"]["kinds"].items()
        ]
    return lines


def arbitration(lens: Row, blocks: int) -> list[str]:
    """Whether it is decided late: Δlogit of the conflicts is half made in the upper half of the layers."""
    kind = "tuned" if "tuned" in lens else "raw"
    lines = []
    for name, cell in lens[kind]["groups"].items():
        if not name.startswith("conflict") or name.endswith("wins"):
            continue
        ends = (("value", "mean"), ("low", "low"), ("high", "high"))
        rise, last = cell["rise"], {end: cell[curve][-1] for end, curve in ends}
        if rise["value"] is None:
            continue
        low, high = (rise["value"] if rise[end] is None else rise[end] for end in ("low", "high"))
        verdict = "holds" if low > blocks / 2 else "does not hold" if high < blocks / 2 else "open"
        lines.append(
            f"Arbitration late, {name}: {verdict}; Δlogit ({kind} lens) ends at {number(last)} and is beyond "
            f"half of that from layer {number(rise, 0)} of {blocks} on"
        )
    return lines


def causes(found: Row, blocks: int) -> str:
    """Whether the text causes it in the middle layers while patches of audio are weak."""
    part, spans = found["all"], found["windows"]["states"]
    best = {}
    for path in ("text", "audio"):
        effects = [cell["effect"]["value"] for cell in part[path]]
        place = int(np.argmax(effects))
        best[path] = (spans[place], part[path][place]["effect"])
    (span, text), (other, audio) = best["text"], best["audio"]
    low, high = (
        (text["value"] if text["low"] is None else text["low"]),
        (audio["value"] if audio["high"] is None else audio["high"]),
    )
    least = audio["value"] if audio["low"] is None else audio["low"]
    most = text["value"] if text["high"] is None else text["high"]
    middle = blocks / 3 <= (span[0] + span[1]) / 2 <= 2 * blocks / 3
    verdict = "holds" if low > high and middle else "does not hold" if least > most or low > high else "open"
    return (
        f"Text causal in the middle layers, audio patches weak: {verdict}; patching the text moves Δ by "
        f"{number(text)} logits at most (layers {span[0]}–{span[1]}), patching the audio by {number(audio)} "
        f"(layers {other[0]}–{other[1]})"
    )


def remedy_line(kind: str, found: Row, part: Row) -> str:
    before, after, gain = found["before"]["conflict"], part["after"]["conflict"], part["gain"]
    price = ", ".join(f"{n} {number(gain[n])}" for n in ("audio", "consistent") if n in gain)
    return (
        f"Best {kind} ({part['best']}), measured on {found['measured']} other speakers: the voice wins "
        f"{number(after)} of the conflicts instead of {number(before)}; where nothing conflicts: {price}"
        + (f"; other answers move by {part['divergence']:.3f} nats." if part["divergence"] else ".")
    )


# ---- page


def write_conflict(out: Path, found: Row) -> None:
    """Pictures and report.html of what `conflict` found."""
    sections: list[Row] = []

    def section(
        title: str, text: str, pictures: Mapping[str, bytes], head: Sequence[str] = (), rows: Any = ()
    ) -> None:
        for name, content in pictures.items():
            with atomic_open(out / name, "wb") as file:
                file.write(content)
        sections.append(
            {"title": title, "text": text, "pictures": list(pictures), "head": head, "rows": list(rows)}
        )

    table = found["behaviour"]["table"]
    section(
        "Who wins",
        "Of answers to prompts that tell another emotion than the voice has: the share that is the voice's "
        "(audio), the told one (text), or a third. “heard”: of clips that are named rightly when nothing is "
        "told.",
        {"behaviour.png": behaviour_picture(table)},
        ("part", "prompts", "speakers", *WINNERS),
        behaviour_rows(table),
    )
    if "lens" in found:
        part = found["lens"]
        pictures = {"lens.png": lens_picture(part["lens"], found["blocks"])}
        if part["probe"]:
            pictures["probe.png"] = probe_picture(part["probe"])
        section(
            "Where it is decided",
            "The state of the answer position, read by layer through the model's own head (raw) and through "
            f"a translator fitted on {part['held_out']['prompts']} prompts of {part['held_out']['speakers']} "
            "other speakers (tuned). Above 0 the text is ahead. Below: what a linear probe reads from the "
            "tokens of sound and from the answer position, speakers held out in turn; dotted: chance.",
            pictures,
            ("lens", "group", "prompts", "final sign from layer", "half made by layer"),
            lens_rows(part["lens"]),
        )
    if "patching" in found:
        part = found["patching"]
        section(
            "Which path causes it",
            "States of the telling text are replaced by those of the prompt that tells A, states of sound by "
            "those of a clip whose voice is T, in windows of layers; or attention from the answer position "
            "is cut. Last: states of sound of a later layer put into an earlier one.",
            {
                "patching.png": patching_picture(part),
                "back.png": back_picture(part["all"], part["windows"]["back"]),
            },
            ("path", "layers", "effect, logits", "of the whole", "answers flipped", "could flip"),
            patching_rows(part),
        )
    if "heads" in found:
        section(
            "Which heads listen",
            "Pull: by how much log p(A) − log p(T) rises for each unit of log-weight that the head gives to "
            "sound. Shares: attention from the answer position.",
            {"heads.png": heads_picture(found["heads"])},
            ("head", "pull", "audio share", "text share"),
            [
                (
                    f"block {row['block']}, head {row['head']}",
                    *(number(row[n], 3) for n in row if n not in ("block", "head")),
                )
                for row in found["heads"]["best"]
            ],
        )
    if found.get("remedies"):
        part = found["remedies"]
        section(
            "What makes the voice win",
            f"Chosen on {part['choosing']} speakers, measured on {part['measured']} others.",
            {"remedies.png": remedies_picture(part)},
            ("kind", "best of them", *(f"{n}, change" for n in part["before"]), "p (Holm), conflict"),
            [
                (
                    kind,
                    f"{own['best']} of {len(own['candidates'])}",
                    *(number(own["gain"][n]) for n in part["before"]),
                    "–"
                    if own["gain"]["conflict"]["p_holm"] is None
                    else f"{own['gain']['conflict']['p_holm']:.3f}",
                )
                for kind, own in part["kinds"].items()
            ],
        )
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(data_path("conflict.html.j2").read_text(encoding="utf-8"))
    names = ("model", "stimuli", "clips", "speakers", "trials", "findings")
    text = page.render(**{n: found[n] for n in names}, sections=sections, fewest=FEWEST)
    write_text(out / "report.html", text)


def behaviour_rows(table: Row) -> list[tuple[str, ...]]:
    rows = []
    for place, cells in table["conflict"].items():
        for name, cell in cells.items():
            shares = (number(cell[winner]) for winner in WINNERS)
            rows.append((f"{place}: {name}", str(cell["trials"]), str(cell["speakers"]), *shares))
    for condition in ("audio", "consistent"):
        for place, cells in table.get(condition, {}).items():
            cell = cells["all"]
            title = "audio alone" if condition == "audio" else f"{place}: consistent"
            rows.append((title, str(cell["trials"]), str(cell["speakers"]), number(cell["right"]), "", ""))
    return rows


def lens_rows(found: Row) -> list[tuple[str, ...]]:
    return [
        (kind, name, str(cell["trials"]), number(cell["turn"], 0), number(cell["rise"], 0))
        for kind, part in found.items()
        for name, cell in part["groups"].items()
    ]


def patching_rows(found: Row) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for path in ("text", "audio", "cut text", "cut audio"):
        spans = found["windows"]["cuts" if path.startswith("cut") else "states"]
        for (first, last), cell in zip(spans, found["all"][path], strict=True):
            rows.append((path, f"{first}–{last}", *_effect(cell)))
    names = {
        "text donor": "the prompt tells A",
        "audio donor": "the clip's voice is T",
        "no text": "cut text",
        "no audio": "cut audio",
    }
    return rows + [(name, "all", *_effect(found["all"][key])) for key, name in names.items()]


def _effect(cell: Row) -> tuple[str, str, str, str]:
    parts = (number(cell[n]) if n in cell else "–" for n in ("effect", "normal", "flips"))
    effect, normal, flips = parts
    return effect, normal, flips, str(cell["eligible"])


def conflict_table(found: Row) -> Table:
    """Who wins, for a terminal."""
    sheet = Table(
        "conflicts",
        "prompts",
        *WINNERS,
        title=f"voice against text, {found['speakers']} speakers",
        caption="share of answers that follow; 95 % intervals over speakers",
    )
    for place, cells in found["behaviour"]["table"]["conflict"].items():
        for name in ("all", "heard"):
            if name in cells:
                cell = cells[name]
                sheet.add_row(f"{place}: {name}", str(cell["trials"]), *(number(cell[w]) for w in WINNERS))
    return sheet
