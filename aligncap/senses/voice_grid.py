"""`aligncap senses voice-grid`: the sense of voice over learning rate × batch × smoothing, on dev."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aligncap.models.precision import pick_device
from aligncap.senses.outcome import read_parts
from aligncap.senses.voice_training import STATE, VoiceConfig, VoiceTraining, kept_log_mels, train
from aligncap.utils.errors import UserErrors
from aligncap.utils.io import Row, write_json
from aligncap.utils.options import option
from aligncap.utils.progress import track
from aligncap.utils.run_record import file_hashes, write_run_record
from aligncap.utils.tensor_cache import digest

Cell = tuple[float, int, float]  # learning rate, batch size, smoothing


@dataclass
class VoiceGridConfig(VoiceTraining):
    """Train the sense of voice for every learning rate × batch × smoothing and show macro F1 on dev.

    Nothing is read of a test set. Cells that are done are not trained again, so the same command goes on
    where it was stopped. A cell whose loss is not finite, or above three times that of guessing, is shown as
    diverged.

    Examples:
        aligncap senses voice-grid --manifest train.jsonl --dev dev.jsonl --epochs 10 --out runs/grid
    """

    learning_rates: list[float] = option([2e-3, 1e-3, 5e-4], "Rows of the table.")
    batch_sizes: list[int] = option([16, 32], "Rows within each.")
    smoothings: list[float] = option([0.0, 0.1], "Columns.")

    def own_errors(self) -> list[str]:
        errors = dict.fromkeys(super().own_errors())
        for cell in self.cells():
            try:
                self.of_cell(cell)
            except UserErrors as error:
                errors |= dict.fromkeys(error.errors)
        return list(errors)

    def cells(self) -> list[Cell]:
        return list(itertools.product(self.learning_rates, self.batch_sizes, self.smoothings))

    def of_cell(self, cell: Cell) -> VoiceConfig:
        """Options of `senses voice` that train this cell."""
        shared = {f.name: getattr(self, f.name) for f in fields(VoiceTraining)}
        rate, batch, smoothing = cell
        return VoiceConfig(**shared, learning_rate=rate, batch_size=batch, smoothing=smoothing)


def run_voice_grid(config: VoiceGridConfig) -> int:
    """`aligncap senses voice-grid`: grid.json, run.json and a table; 1 where every cell diverged."""
    device, out = pick_device(config.device), Path(config.out)
    files = {"train": config.manifest, "dev": config.dev}
    parts = read_parts(files, "voice")
    mels = kept_log_mels(config, parts)
    same = digest(sorted(file_hashes(files.values()).values()))
    found: dict[Cell, Row] = {}
    for cell in track(config.cells(), None, "grid"):
        own = config.of_cell(cell)
        settings = {k: v for k, v in asdict(own).items() if k not in ("out", "cache_dir", "device")}
        place = out / "cells" / digest(settings, same)
        if not (place / "result.json").is_file():
            trained = train(own, parts, mels, place, device)
            result = {
                "learning_rate": cell[0],
                "batch_size": cell[1],
                "smoothing": cell[2],
                "diverged": trained.diverged,
                "dev_macro_f1": None if trained.diverged else trained.dev,
                "best_epoch": trained.best_epoch,
                "history": trained.history,
            }
            write_json(place / "result.json", result)
            (place / STATE).unlink(missing_ok=True)
        found[cell] = json.loads((place / "result.json").read_text(encoding="utf-8"))
    write_json(out / "grid.json", {"cells": list(found.values())})
    write_run_record(out, "senses voice-grid", asdict(config), files.values(), seed=config.seed)
    Console().print(grid_table(config, found))
    good = {cell: row["dev_macro_f1"] for cell, row in found.items() if not row["diverged"]}
    if not good:
        return 1
    rate, batch, smoothing = max(good, key=lambda cell: good[cell])
    print(f"best: --learning_rate {rate:g} --batch_size {batch} --smoothing {smoothing:g}")
    return 0


def grid_table(config: VoiceGridConfig, found: Mapping[Cell, Row]) -> Table:
    """A row a learning rate and batch, a column a smoothing: macro F1 on dev, or where it diverged."""
    title = "macro F1 on dev (epoch), of one seed"
    table = Table("learning rate", "batch", *(f"smoothing {s:g}" for s in config.smoothings), title=title)
    for rate, batch in itertools.product(config.learning_rates, config.batch_sizes):
        rows = [found[rate, batch, smoothing] for smoothing in config.smoothings]
        said = [
            f"diverged in epoch {len(row['history']) + 1}"
            if row["diverged"]
            else f"{row['dev_macro_f1']:.3f} ({row['best_epoch']})"
            for row in rows
        ]
        table.add_row(f"{rate:g}", str(batch), *said)
    return table
