from __future__ import annotations

from pathlib import Path

import pytest

from aligncap.data.manifest import Utterance
from aligncap.text.cue_report import write_cue_report
from aligncap.utils.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


def clip(number: int, emotion: str | None) -> Utterance:
    pitch = 150.0 + 5 * (number % 6) + (60.0 if emotion == "angry" else 0.0)
    cues = {"f0_median_hz": pitch, "rate_sps": 4.0 + 0.1 * (number * 3 % 7), "duration_s": 2.0}
    return Utterance(
        f"c{number}", "r", f"{number}.wav", "made", speaker="s", gender="male", emotion=emotion, cues=cues
    )


def test_page_holds_medians_in_the_right_order_and_both_pictures(tmp_path: Path) -> None:
    clips = [clip(n, ("angry", "sad")[n % 2]) for n in range(24)]
    page = write_cue_report(clips, tmp_path / "report")
    html = page.read_text()
    row = {name: html.split(f"<td>{name}</td><td>12</td>")[1].split("</tr>")[0] for name in ("angry", "sad")}
    assert "<td>+" in row["angry"] and "<td>-" in row["sad"]
    for picture in ("cues.png", "levels.png"):
        assert (page.parent / picture).read_bytes().startswith(PNG)
        assert f'src="{picture}"' in html


def test_labels_are_escaped_and_missing_ones_named(tmp_path: Path) -> None:
    clips = [clip(n, ("<b>odd</b>", None)[n % 2]) for n in range(16)]
    html = write_cue_report(clips, tmp_path).read_text()
    assert "<b>odd" not in html and "&lt;b&gt;odd" in html
    assert "(no label)" in html


def test_utterances_without_cues_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="aligncap annotate"):
        write_cue_report([Utterance("a", "r", "a.wav", "made")], tmp_path)
    assert not list(tmp_path.iterdir())
