"""The report of a conflict study: findings in words, tables, the page, and what a terminal shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    for row in found["against"]["changes"] if "against" in found else ():
        lines.append(f"Against {found['against']['model']}, {change_title(row)}: {change_line(row)}.")
    if "lens" in found:
        lines += [line + claim for line in arbitration(found["lens"]["lens"], found["blocks"])]
    if "patching" in found:
        groups = [name for name in found["patching"] if name not in ("all", "windows")]
        lines += [causes(found["patching"], found["blocks"], name) + claim for name in groups]
    if found.get("remedies"):
        lines += [
            remedy_line(kind, found["remedies"], part) for kind, part in found["remedies"]["kinds"].items()
        ]
    return lines


def arbitration(lens: Row, blocks: int) -> list[str]:
    """Whether it is decided late, by place: in the upper half of the layers, whoever wins.

    Of prompts that text or audio wins, Δlogit is beyond half of its final value from a layer on; its interval
    lies in the upper half. "Does not hold" where all of these intervals lie in the lower half.
    """
    kind = "tuned" if "tuned" in lens else "raw"
    groups, lines = lens[kind]["groups"], []
    for place in [name for name in groups if name.startswith("conflict") and not name.endswith("wins")]:
        won = {w: groups[f"{place}, {w} wins"] for w in ("text", "audio") if f"{place}, {w} wins" in groups}
        rises = {w: cell["rise"] for w, cell in won.items() if cell["rise"]["value"] is not None}
        if not rises:
            continue
        ends = [[r["value"] if r[end] is None else r[end] for end in ("low", "high")] for r in rises.values()]
        late, early = all(e[0] > blocks / 2 for e in ends), all(e[1] < blocks / 2 for e in ends)
        verdict = "holds" if late else "does not hold" if early else "open"
        told = ", ".join(
            f"layer {number(r, 0)} where {w} wins ({won[w]['trials']} prompts)" for w, r in rises.items()
        )
        lines.append(
            f"Arbitration late, {place}: {verdict}; of {blocks} layers ({kind} lens), Δlogit is beyond half "
            f"of its final value from {told}"
        )
    return lines


def causes(found: Row, blocks: int, group: str = "all") -> str:
    """Whether text causes it in the middle layers while patches of audio are weak, in a group of prompts.

    A patch acts in every window before the blocks that read it, so the last window with half of the best
    effect says where. It holds where that window of the text lies in the middle third and the interval of the
    audio below the text's; it does not where the text acts elsewhere, or the audio's interval lies above.
    """
    spans, best, last = found["windows"]["states"], {}, {}
    for path in ("text", "audio"):
        cells = [cell["effect"] for cell in found[group][path]]
        best[path] = max(cells, key=lambda cell: cell["value"])
        most = best[path]["value"]
        last[path] = max(i for i, cell in enumerate(cells) if cell["value"] >= min(most, most / 2))
    (text_low, text_high), (audio_low, audio_high) = (
        [cell["value"] if cell[end] is None else cell[end] for end in ("low", "high")]
        for cell in (best["text"], best["audio"])
    )
    middle = blocks / 3 <= sum(spans[last["text"]]) / 2 <= 2 * blocks / 3
    elsewhere = text_low > 0 and not middle
    verdict = "open"
    if text_low > audio_high and middle:
        verdict = "holds"
    elif elsewhere or audio_low > text_high:
        verdict = "does not hold"
    told = ", ".join(
        f"the {path} by {number(best[path])} (at half or more up to layers {spans[last[path]][0]}–"
        f"{spans[last[path]][1]})"
        for path in ("text", "audio")
    )
    return (
        f"Text causal in the middle layers and audio patches weak, {group}: {verdict}; of {blocks} layers, "
        f"patches move Δ by logits at most: {told}"
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
    if "against" in found:
        section(
            "What changed",
            f"From {found['against']['model']} to this model, on the same prompts; p by exchange of the two "
            "speaker by speaker, corrected for their number (Holm).",
            {},
            ("prompts", "number", "units", "change"),
            [
                (change_title(r), str(r["trials"]), r["units"], change_line(r))
                for r in found["against"]["changes"]
            ],
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


def change_title(row: Row) -> str:
    """Which prompts a row of `behaviour.compare` is of."""
    return "audio alone" if row["condition"] == "audio" else f"{row['condition']} in the {row['place']}"


def change_line(row: Row) -> str:
    """The changes of a row of `behaviour.compare`, with their intervals and p."""
    told = []
    for name in (*WINNERS, "right"):
        if name in row:
            p = row[name].get("p_holm")
            sign = "+" if (row[name]["value"] or 0) > 0 else ""
            told.append(f"{name} {sign}{number(row[name])}" + ("" if p is None else f", p {p:.3f}"))
    return "; ".join(told)


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
