"""What the page shows as HTML: captions, emotions, cues, curves, candidates, history. Text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from aligncap.audio.cues import HOP, contours
from aligncap.audio.files import SAMPLE_RATE
from aligncap.inference.timeline_files import colour_of
from aligncap.text.claims import dimensions
from aligncap.utils.io import Row

BARS = 4  # emotions that are shown, the likeliest
WIDTH, HEIGHT = 600, 60  # of a curve's drawing; it is stretched to the page's width
UNITS = {"pitch": "f0_median_hz", "movement": "f0_movement_st", "effort": "effort_db", "rate": "rate_sps"}
FORMS = {
    "f0_median_hz": "{:.0f} Hz",
    "f0_movement_st": "{:.1f} semitones",
    "effort_db": "{:.1f} dB",
    "rate_sps": "{:.1f} syllables/s",
    "unsteadiness": "{:.0f} % of frames",
}
CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
.ac-caption { font-size: 1.35rem; line-height: 1.45; min-height: 3.2rem; margin: 0; }
.ac-quiet { color: var(--body-text-color); opacity: .72; font-size: .9rem; margin: .25rem 0;
  font-weight: 400; }
.ac, .ac p { overflow-wrap: anywhere; max-width: 100%; }
.ac-error { border-left: 4px solid #c8443c; padding: .5rem .8rem; margin: 0; }
.ac-bar { display: grid; grid-template-columns: 7.5rem 1fr 3.2rem; gap: .6rem; align-items: center;
  margin: .3rem 0; }
.ac-bar div { background: var(--border-color-primary); border-radius: 4px; height: .8rem; overflow: hidden; }
.ac-bar div span { display: block; height: 100%; border-radius: 4px; }
.ac-bar b { font-weight: 600; } .ac-bar i { font-style: normal; text-align: right; }
.ac table { width: 100%; border-collapse: collapse; font-size: .95rem; border: 0 !important; }
.ac th, .ac td { text-align: left; padding: .35rem .6rem .35rem 0 !important; vertical-align: top;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.ac tr, .ac tbody { border: 0 !important; } .ac th { overflow-wrap: normal; }
.ac td { overflow-wrap: anywhere; } .ac td:first-child { min-width: 5rem; }
#cues td { overflow-wrap: normal; }
.ac ol { list-style: none; margin: 0; padding: 0; }
.ac li { display: grid; grid-template-columns: 3rem 1fr; padding: .5rem 0; margin: 0;
  border-bottom: 1px solid var(--border-color-primary); }
.ac li b { font-size: 1.1rem; } .ac li p { margin: 0; }
.ac h3 { margin: .8rem 0 .3rem; font-size: 1rem; }
.ac svg { width: 100%; height: 60px; display: block; background: var(--background-fill-secondary);
  border-radius: 6px; }
.ac .ac-axis { display: flex; justify-content: space-between; }
.ac-two { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
@media (max-width: 640px) {
  .ac-two { grid-template-columns: 1fr; } .ac-caption { font-size: 1.15rem; }
  .ac th, .ac td { padding-right: .4rem; font-size: .85rem; }
}
"""


def caption_html(captions: Mapping[str, str], writing: bool = False) -> str:
    """Captions by model; a single one without its model's name. Screen readers are told when it is final."""
    busy = "true" if writing else "false"
    parts = []
    for name, text in captions.items():
        head = f"<h3>{escape(name)}</h3>" if len(captions) > 1 else ""
        parts.append(f'<div>{head}<p class="ac-caption">{escape(text) or "…"}</p></div>')
    two = " ac-two" if len(captions) > 1 else ""
    return f'<div class="ac{two}" role="status" aria-live="polite" aria-busy="{busy}">{"".join(parts)}</div>'


def error_html(message: str) -> str:
    """Why there is no caption."""
    return f'<p class="ac ac-error" role="alert">{escape(message)}</p>'


def emotions_html(rows: Mapping[str, Row], calibrated: bool) -> str:
    """The likeliest emotions of each model's caption as bars with percentages."""
    parts = []
    for name, row in rows.items():
        head = f"<h3>{escape(name)}</h3>" if len(rows) > 1 else ""
        shares = row.get("probabilities") or {}
        ranked = sorted(shares.items(), key=lambda pair: -pair[1])[:BARS]
        bars = "".join(bar(emotion, share, emotion == row.get("emotion")) for emotion, share in ranked)
        none = '<p class="ac-quiet">The caption names no emotion.</p>'
        parts.append(f"<div>{head}{bars or none}</div>")
    note = "" if calibrated else "Not calibrated on dev clips: take the numbers as an order. "
    two = " ac-two" if len(rows) > 1 else ""
    text = f"{note}How likely each word is where the caption names its emotion (bold)."
    return f'<div class="ac{two}">{"".join(parts)}</div><p class="ac-quiet">{text}</p>'


def bar(emotion: str, share: float, named: bool) -> str:
    """An emotion with its share as a bar and a percentage; bold if it is named."""
    word = f"<b>{escape(emotion)}</b>" if named else f"<span>{escape(emotion)}</span>"
    fill = f'<span style="width:{100 * share:.1f}%;background:{colour_of(emotion)}"></span>'
    return f'<div class="ac-bar">{word}<div aria-hidden="true">{fill}</div><i>{share:.0%}</i></div>'


def cues_html(cues: Row) -> str:
    """Measured cues: the word for each and its number."""
    rows = []
    for name, word in cues["words"].items():
        cue = dimensions()[name].cue
        value = cues["measured"].get(cue)
        number = FORMS.get(cue, "{:.2f}").format(value) if value is not None else ""
        title = dimensions()[name].title
        rows.append(f"<tr><th scope='row'>{escape(title)}</th><td>{escape(word)}</td><td>{number}</td></tr>")
    if not rows:
        return '<p class="ac ac-quiet">Nothing could be measured: there is hardly any voice.</p>'
    head = "<tr><th scope='col'>Cue</th><th scope='col'>In words</th><th scope='col'>Measured</th></tr>"
    return f'<div class="ac"><table>{head}{"".join(rows)}</table></div>'


def curves_html(samples: np.ndarray) -> str:
    """Waveform, F0 and effort over the same time, each with what it shows in words."""
    seconds = len(samples) / SAMPLE_RATE
    found = contours(samples)
    frames = np.arange(len(found.f0_hz)) * HOP / SAMPLE_RATE / max(seconds, 1e-6)
    parts = [_figure("Waveform", f"{seconds:.1f} s of sound", _wave(samples))]
    for title, values, unit, least in (
        ("Pitch (F0)", found.f0_hz, "Hz", 40.0),
        ("Vocal effort", found.effort_db, "dB", 10.0),
    ):
        known = values[np.isfinite(values)]
        if len(known):
            low, high = np.percentile(known, [2, 98])
            told = f"from {low:.0f} to {high:.0f} {unit}, {np.median(known):.0f} in the middle"
            more = max(0.0, least - (high - low)) / 2  # a steady voice is drawn as a steady line
            parts.append(_figure(title, told, _line(frames, values, low - more, high + more)))
        else:
            parts.append(_figure(title, "no voiced sound", ""))
    axis = f'<div class="ac-axis ac-quiet"><span>0 s</span><span>{seconds:.1f} s</span></div>'
    return f'<div class="ac">{"".join(parts)}{axis}</div>'


def _figure(title: str, told: str, drawing: str) -> str:
    label = escape(f"{title}: {told}")
    return (
        f'<h3>{escape(title)} <span class="ac-quiet">{escape(told)}</span></h3>'
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">'
        f"{drawing}</svg>"
    )


def _wave(samples: np.ndarray) -> str:
    parts = np.array_split(samples, min(WIDTH // 2, max(1, len(samples))))
    peak = max(1e-6, float(np.abs(samples).max(initial=0)))
    points = []
    for i, part in enumerate(parts):
        x = (i + 0.5) * WIDTH / len(parts)
        high, low = (float(v) / peak * (HEIGHT / 2 - 3) for v in (part.max(), part.min()))
        points.append(f"M{x:.1f} {HEIGHT / 2 - high:.1f}V{HEIGHT / 2 - low + 0.5:.1f}")
    return _path("".join(points), 1.4)


def _line(places: np.ndarray, values: np.ndarray, low: float, high: float) -> str:
    scaled = (np.clip(values, low, high) - low) / max(high - low, 1e-6)
    pieces, pen = [], "M"
    for x, y in zip(places, scaled, strict=True):
        if np.isfinite(y):
            pieces.append(f"{pen}{x * WIDTH:.1f} {HEIGHT - 5 - y * (HEIGHT - 10):.1f}")
            pen = "L"
        else:
            pen = "M"
    return _path("".join(pieces), 2.0)


def _path(drawing: str, width: float) -> str:
    style = 'fill="none" stroke="#2563a8" stroke-linecap="round" vector-effect="non-scaling-stroke"'
    return f'<path d="{drawing}" {style} stroke-width="{width}"/>'


def candidates_html(rows: Sequence[Row]) -> str:
    """Candidates, the best first, with the rubric's marks and its reasons."""
    if not rows:
        return ""
    body = ""
    for row in rows:
        marks = ", ".join(f"{escape(name)} {mark:g}" for name, mark in row["scores"].items())
        why = f'<p class="ac-quiet">{escape(row["why"])} ({marks})</p>'
        body += f"<li><b>{row['overall']:.1f}</b><div><p>{escape(row['caption'])}</p>{why}</div></li>"
    note = "Marks from 0 to 10 by rules, against what was measured; the clip's true emotion is not known."
    return f'<div class="ac"><ol>{body}</ol><p class="ac-quiet">{note}</p></div>'


def history_html(rows: Sequence[Row]) -> str:
    """What was heard in this visit, the newest first."""
    if not rows:
        return '<p class="ac ac-quiet">Nothing yet.</p>'
    body = ""
    for row in reversed(rows):
        sure = f" ({row['confidence']:.0%})" if row.get("confidence") is not None else ""
        said = f"{escape(row['emotion'] or '–')}{sure}"
        body += f"<tr><td>{escape(row['clip'])}</td><td>{escape(row['caption'])}</td><td>{said}</td></tr>"
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("clip", "caption", "emotion"))
    return f'<div class="ac"><table><tr>{head}</tr>{body}</table></div>'
