"""A report's figures in words and table cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aligncap.evaluation.systems import LESS_IS_BETTER, NEITHER, TITLES, Cell, System, figure, interval


def summary(main: System, cells: Mapping[str, Cell], chance: float) -> list[str]:
    """Sentences of the paragraph at the top."""
    signature = main.results[0]["signature"]
    runs = len(main.results)
    over = f"over {signature['clips']} clips"
    if signature["speakers"]:
        over += f" of {signature['speakers']} speaker{'s' if signature['speakers'] > 1 else ''}"
    seeds = f", mean of {runs} runs" if runs > 1 else ""

    def say(name: str) -> str:
        spread = cells[name]["spread"]
        more = "" if spread is None else f" ± {figure(name, spread)}"
        return f"{figure(name, cells[name]['value'])}{more} {interval(name, cells[name])}".strip()

    sentences = []
    if cells["emotion_uar"]["value"] is not None:
        labels = signature["emotion_labels"]
        sentences.append(
            f"{main.name}: emotion UAR {say('emotion_uar')} {over}{seeds} "
            f"({labels} labels, chance {chance:.3f})."
        )
    else:
        sentences.append(f"{main.name}: scored {over}{seeds}; no clip has an emotion label.")
    sentences.append(f"CIDEr-D {say('cider_d')}, METEOR {say('meteor')}, BLEU-4 {say('bleu_4')}.")
    sentences.append(
        f"The most frequent caption makes up {100 * cells['top_caption_share']['value']:.1f} % of all; "
        f"{100 * cells['emotion_none_share']['value']:.1f} % name no emotion."
    )
    if cells["wrong_claim_share"]["value"] is not None:
        sentences.append(
            f"{100 * cells['wrong_claim_share']['value']:.1f} % of acoustic claims are wrong of the measured "
            f"audio; {100 * cells['generic_share']['value']:.1f} % of captions are generic."
        )
    return sentences


def _show(name: str, cell: Cell | None) -> dict[str, str]:
    if cell is None:
        return {"value": "–", "spread": "", "interval": ""}
    spread = "" if cell["spread"] is None else f"± {figure(name, cell['spread'])}"
    return {"value": figure(name, cell["value"]), "spread": spread, "interval": interval(name, cell)}


def lines(columns: Sequence[tuple[str, Mapping[str, Cell]]], systems: int) -> list[dict[str, Any]]:
    """One line a metric that any system has. The best system, or those that look alike, is marked."""
    shown_lines = []
    for name, metric in TITLES.items():
        values = [cells[name]["value"] for _, cells in columns[:systems]]
        known = [value for value in values if value is not None]
        if not known:
            continue
        best = None
        if len({figure(name, value) for value in known}) > 1 and name not in NEITHER:
            best = figure(name, min(known) if name in LESS_IS_BETTER else max(known))
        cells_shown = [
            {**(shown := _show(name, cells.get(name))), "best": place < systems and shown["value"] == best}
            for place, (_, cells) in enumerate(columns)
        ]
        shown_lines.append({"title": metric, "cells": cells_shown, "less": name in LESS_IS_BETTER})
    return shown_lines


def difference_lines(differences: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line a pair of systems and metric, of `compare_captions`."""
    shown_lines = []
    for pair, metrics in differences.items():
        for name in TITLES:
            if name in metrics and metrics[name]["low"] is not None and name not in NEITHER:
                cell = metrics[name]
                apart = cell["low"] > 0 or cell["high"] < 0
                p = cell.get("p")
                shown = "" if p is None else f"{p:.3f}"
                value = f"{cell['value']:+.3f}"
                bounds = f"[{cell['low']:+.3f}, {cell['high']:+.3f}]"
                shown_lines.append(
                    {
                        "pair": pair,
                        "title": TITLES[name],
                        "value": value,
                        "interval": bounds,
                        "p": shown,
                        "apart": apart,
                    }
                )
    return shown_lines


def signature_lines(signature: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The signature as name and text."""
    shown_lines = []
    for name, value in signature.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {one}" for key, one in value.items()) or "none"
        elif isinstance(value, (list, tuple)):
            value = "–".join(map(str, value)) if name == "references_per_clip" else ", ".join(map(str, value))
        shown_lines.append((name.replace("_", " "), str(value)))
    return shown_lines
