"""Every score of a report (data/scores.yaml): its title, which way is better, and how it is printed."""

from __future__ import annotations

from typing import Literal, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from aligncap.utils.io import Row, data_path, load_data
from aligncap.utils.statistics import FEWEST, sure

GENERIC = 0.05  # a caption as true of more than one other clip in twenty says little about this one
VERY_GENERIC = 0.1
# need a sentence encoder, Java, or people's words of voices; the rest is always counted
EXTRAS = ("similarity", "meteor_1_5", "spice", "tag_precision", "tag_recall", "tag_f1", "tag_kappa")


class Score(NamedTuple):
    """`meaning` is for reports, where the title does not say it; `digits` are printed after the point."""

    title: str
    better: Literal["more", "less", "neither"] = "more"
    meaning: str = ""
    digits: int = 3


SCORES: dict[str, Score] = {name: Score(**score) for name, score in load_data("scores.yaml").items()}


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


def claim(cell: Row) -> str:
    """What a difference's corrected p says: "p 0.028 (holds)", "p 0.310", "no claim (4 speakers)"."""
    p = cell["p_holm"]
    if p is None:
        few = cell["units"] < FEWEST
        return f"no claim ({cell['units']} speakers)" if few else "no claim (undefined)"
    return f"p {'< 0.001' if p < 0.001 else f'{p:.3f}'}" + " (holds)" * sure(p)


def template(name: str) -> Template:
    """A template of `data/` that prints scores; what is filled into HTML is escaped."""
    environment = Environment(
        loader=FileSystemLoader(data_path(name).parent),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(scores=SCORES, claim=claim, figure=figure, interval=interval)
    environment.globals.update(shown=shown, signed=signed, sure=sure)
    return environment.get_template(name)
