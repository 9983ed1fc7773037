"""The page of a diagnosis: verdict, evidence, tables, pictures and attacked clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from rich.table import Table
from rich.text import Text

from aligncap.lab.diagnose_numbers import PRIORS
from aligncap.lab.verdict import Finding, number
from aligncap.utils.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    bare,
    bars_picture,
    confusion_picture,
    figure,
    plain,
    png,
)
from aligncap.utils.io import Row, atomic_open, data_path, write_text

PAGE = "diagnose.html.j2"
TITLES = {
    "confusion": "What is answered to each label",
    "labels": "Right answers by wording, and what probabilities know",
    "mass": "Probability of each label's words",
    "faults": "The same clips with a fault",
    "attack": "Attacked clips",
}


def write_report(out: Path, numbers: Row, findings: Sequence[Finding]) -> Path:
    """Write OUT/report.html and its pictures; return the page's path."""
    drawn = pictures(numbers)
    for name, content in drawn.items():
        with atomic_open(out / f"{name}.png", "wb") as file:
            file.write(content)
    text = data_path(PAGE).read_text("utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rendered = page.from_string(text).render(
        numbers=numbers,
        main=numbers["wordings"][numbers["main"]],
        findings=findings,
        pictures={name: TITLES[name] for name in drawn},
        priors=PRIORS,
        number=number,
    )
    write_text(out / "report.html", rendered)
    return out / "report.html"


def pictures(numbers: Row) -> dict[str, bytes]:
    """PNG files by name, those that there are numbers for."""
    main, chance = numbers["wordings"][numbers["main"]], numbers["chance"]
    confusion = np.array(main["confusion"], dtype=np.int64)
    found = {
        "confusion": confusion_picture(
            confusion, numbers["labels"], main["columns"], f"{numbers['main']}", "label that is answered"
        )
    }
    rows = {name: wording["uar"] for name, wording in numbers["wordings"].items()}
    rows |= {f"p: {name}": cell["uar"] for name, cell in main["probabilities"].items()}
    title = "UAR of answers by wording; p: of label words' probabilities"
    found["labels"] = bars_picture({title: rows}, {title: (chance, "chance")})
    found["mass"] = mass_picture(main["probabilities"], numbers["labels"])
    if "faults" in numbers:
        faults = numbers["faults"]
        dashed = {title: (chance, "chance") for title in ("UAR of answers", "UAR of probabilities")}
        bars = {"as they are": faults["clean"]["uar"]}
        bars |= {_short(fault["title"]): fault["uar"] for fault in faults["faults"].values()}
        likely = {"as they are": faults["clean"]["uar_probabilities"]}
        likely |= {_short(f["title"]): f["uar_probabilities"] for f in faults["faults"].values()}
        found["faults"] = bars_picture({"UAR of answers": bars, "UAR of probabilities": likely}, dashed)
    if "levels" in numbers.get("attack", {}):
        found["attack"] = attack_picture(numbers["attack"])
    return found


def _short(title: str) -> str:
    return title.partition(" (")[0].partition(",")[0]


def mass_picture(probabilities: Mapping[str, Row], labels: Sequence[str]) -> bytes:
    """Mean probability of each label's words among labels (columns), for the clips of each label (rows): as
    they are, and less the prior of silence where there is one."""
    shown = [name for name in ("raw", "silence") if name in probabilities]
    picture = figure(1.6 + (0.9 + 0.52 * len(labels)) * len(shown), 1.3 + 0.42 * len(labels))
    panels = picture.subplots(1, len(shown), squeeze=False)[0]
    for axes, name in zip(panels, shown, strict=True):
        rows = probabilities[name]["by_label"]
        shares = np.array([[row[label] for label in labels] for row in rows.values()])
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, k in np.ndindex(*shares.shape):
            colour = "white" if shares[i, k] > 0.55 else INK
            axes.text(k, i, f"{100 * shares[i, k]:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(labels)), [plain(n) for n in labels], rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), [plain(n) for n in rows], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(PRIORS[name], fontsize=9.5, color=INK, loc="left")
        axes.set_xlabel("label whose words are likely, %", color=GREY, fontsize=8.5)
    panels[0].set_ylabel("label of the clip", color=GREY, fontsize=8.5)
    return png(picture)


def attack_picture(attack: Row) -> bytes:
    """Share of clips turned to the target, and changed at all, over SNR; word errors where they are known."""
    levels = attack["levels"]
    picture = figure(5.4, 3.4)
    axes = picture.add_subplot()
    snrs = [row["snr_db"] for row in levels]
    lines = [
        ("turned to the target", [row["turned"] / row["clips"] for row in levels], BLUE, "-"),
        ("changed at all", [row["changed"] / row["clips"] for row in levels], GREY, "--"),
    ]
    if all(row["wer"] is not None for row in levels):
        lines.append(("word error rate", [row["wer"] for row in levels], ORANGE, "-"))
    for title, values, colour, style in lines:
        axes.plot(snrs, values, style, color=colour, marker="o", markersize=4, label=title)
    axes.invert_xaxis()
    axes.set_ylim(-0.03, 1.08)
    axes.set_xlabel("signal-to-noise ratio of the perturbation, dB (louder to the right)", color=GREY)
    axes.set_ylabel(f"share of {attack['clips']} clips", color=GREY)
    axes.legend(frameon=False, fontsize=8.5)
    bare(axes)
    return png(picture)


def findings_table(findings: Sequence[Finding]) -> Table:
    """What was found, a line each with its evidence."""
    sheet = Table("finding", "evidence", title="verdict", show_lines=True)
    for found in findings:
        sheet.add_row(Text(found.text), Text("\n".join(found.evidence)))
    return sheet
