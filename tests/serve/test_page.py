"""The page: what it shows, escaped; and in a real browser, by its own upload and by a microphone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from served import captioner, running, service, wav
from tiny import voice

from aligncap.serve.api import make_app
from aligncap.serve.listening import cues_of, judged
from aligncap.serve.page import NONE, Page, mount
from aligncap.serve.show import (
    candidates_html,
    caption_html,
    cues_html,
    curves_html,
    emotions_html,
    history_html,
)
from aligncap.serve.uploads import Limits

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


@pytest.fixture
def clip(tmp_path) -> Path:
    (tmp_path / "a clip.wav").write_bytes(wav(seconds=0.8))
    return tmp_path / "a clip.wav"


def test_nothing_of_a_caption_is_html():
    row = {
        "caption": HOSTILE,
        "emotion": "sad",
        "confidence": 0.5,
        "probabilities": {HOSTILE: 0.7},
        "clip": HOSTILE,
    }
    shown = [
        caption_html({HOSTILE: HOSTILE, "b": HOSTILE}),
        emotions_html({HOSTILE: row, "b": row}, False),
        candidates_html(judged([HOSTILE, "He sounds sad."], {"f0_median_hz": 1.0})),
        history_html([row]),
    ]
    assert all("<img" not in text and "<script" not in text and "&lt;" in text for text in shown)


def test_curves_and_cues_say_in_words_what_they_show():
    shown = curves_html(voice(1.0, 200.0))
    low, high, middle = map(
        int, re.search(r"F0\): from (\d+) to (\d+) Hz, (\d+) in the middle", shown).groups()
    )
    assert abs(low - 200) <= 3 and abs(high - 200) <= 3 and abs(middle - 200) <= 1
    assert shown.count("<svg") == 3 and "NaN" not in shown.replace("aria", "") and "nan" not in shown
    assert "no voiced sound" in curves_html(
        np.random.default_rng(0).standard_normal(8_000).astype(np.float32) * 0.01
    )
    assert "<table>" in cues_html(cues_of(voice(1.0, 300.0), "A man speaks."))
    high = cues_of(voice(1.0, 220.0), "A man speaks.")["words"]["pitch"]
    assert high == "high" != cues_of(voice(1.0, 220.0), "A woman speaks.")["words"]["pitch"]


def test_the_page_streams_then_shows_all_and_keeps_a_history(clip):
    own = service(captioner())
    updates = list(Page(own).listen(str(clip), "tiny", NONE, []))
    own.close()
    assert 'aria-busy="true"' in updates[0][0] and 'aria-busy="false"' in updates[-1][0]
    assert len(updates) > 4  # piece by piece
    *_, history, shown, download = updates[-1]
    assert history[0]["clip"] == "a clip.wav" and len(history[0]["candidates"]) >= 2
    assert "a clip.wav" in shown
    assert json.loads(Path(download["value"]).read_text()) == history
    assert own.in_hand == 0


def test_two_models_stand_side_by_side(clip):
    own = service(captioner())
    own.captioners["other"] = captioner(seed=5)
    last = list(Page(own).listen(str(clip), "tiny", "other", []))[-1]
    own.close()
    assert "ac-two" in last[0] and "<h3>tiny</h3>" in last[0] and "<h3>other</h3>" in last[0]
    assert set(last[5][0]["compared"]) == {"other"}


def test_what_cannot_be_heard_is_said(tmp_path, clip):
    own = service(captioner(), limits=Limits(bytes=10_000))
    page = Page(own)
    (tmp_path / "b.wav").write_bytes(b"PK\x03\x04" + bytes(100))
    for path, word in ((None, "no clip yet"), (tmp_path / "b.wav", "zip"), (clip, "more than 10000 bytes")):
        (*_, last) = page.listen(path and str(path), "tiny", NONE, [])
        assert 'role="alert"' in last[0] and word in last[0]
    own.close()
    assert "shutting down" in list(page.listen(str(clip), "tiny", NONE, []))[-1][0]


# In a browser -----------------------------------------------------------------------------------------------


class Hostile:
    """A captioner whose captions are HTML."""

    def __new__(cls):
        one = captioner()
        one.texts = lambda tokens: [HOSTILE for _ in tokens]
        return one


@pytest.fixture(scope="module")
def page_url():
    own = service(captioner(max_response_tokens=12))
    own.captioners["other"] = captioner(seed=5)
    own.captioners["hostile"] = Hostile()
    with running(mount(make_app(own, []), own)) as url:
        yield url


def listened(page) -> str:
    page.get_by_text("History of this visit").click()
    page.get_by_text("Other captions").click()
    page.click("#listen")
    page.wait_for_selector("#caption [aria-busy=false]", timeout=120_000)
    page.wait_for_selector("#history tr:nth-child(2)", state="attached", timeout=120_000)
    return page.inner_text("#caption")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_file_goes_through_the_browser_s_own_upload(chromium, shot, page_url, clip, width):
    browser = chromium()
    page = browser.new_page(viewport={"width": width, "height": 844})
    outside, errors = [], []
    page.on(
        "request",
        lambda r: outside.append(r.url) if r.url.startswith("http") and "127.0.0.1" not in r.url else None,
    )
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(page_url)
    page.set_input_files("#clip input[type=file]", str(clip))
    page.wait_for_selector("#clip audio", state="attached", timeout=60_000)
    page.wait_for_timeout(1500)
    assert listened(page)
    assert page.locator("#curves svg").count() == 3 and page.locator("#cues tr").count() > 2
    assert page.locator("#emotions").inner_text()
    shot(page, f"tiny-{width}")
    # nothing sticks out to the right of the screen
    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1
    with page.expect_download(timeout=60_000) as download:
        page.click("#download")
    rows = json.loads(Path(download.value.path()).read_text())
    assert rows[0]["clip"].endswith(".wav") and rows[0]["caption"]
    assert not errors and not outside, (errors, outside)
    browser.close()


@pytest.mark.slow
def test_a_microphone_is_recorded(chromium, page_url, tmp_path):
    soundfile.write(tmp_path / "mic.wav", voice(6.0, 180.0), 16_000, subtype="PCM_16")
    fake = "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}"
    browser = chromium(*fake)
    page = browser.new_context(permissions=["microphone"]).new_page()
    page.goto(page_url)
    page.get_by_label("Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(2500)
    page.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_timeout(2000)
    assert listened(page)
    assert "180" in page.inner_text("#curves")
    browser.close()


@pytest.mark.slow
def test_the_page_by_keyboard_and_for_screen_readers(chromium, page_url, clip):
    browser = chromium()
    page = browser.new_page()
    page.goto(page_url)
    page.wait_for_selector("#listen")
    page.wait_for_timeout(1500)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, a[href]")]
        .filter(e => e.offsetParent !== null || e.type === "file")
        .filter(e => !(e.getAttribute("aria-label") || e.innerText || e.title || e.labels?.length))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.lang") == "en"
    page.set_input_files("#clip input[type=file]", str(clip))
    page.wait_for_timeout(1500)
    for _ in range(40):  # by tabs alone
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "listen":
            break
    assert page.evaluate("document.activeElement.id") == "listen"
    page.keyboard.press("Enter")
    page.wait_for_selector("#caption [role=status][aria-busy=false]", timeout=120_000)
    browser.close()


@pytest.mark.slow
def test_a_hostile_caption_is_shown_and_not_executed(chromium, page_url, clip):
    browser = chromium()
    page = browser.new_page()
    page.goto(page_url)
    page.set_input_files("#clip input[type=file]", str(clip))
    page.click("#model input")
    page.get_by_role("option", name="hostile").click()
    assert "<script>" in listened(page)
    assert page.evaluate("window.hacked") is None
    assert page.locator("#caption img, #history img, #candidates img").count() == 0
    browser.close()
