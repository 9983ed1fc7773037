"""The talking app's page: what it shows, inert; and in a real browser, by pressing and holding."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
from served import captioner, running, service, wav
from talking import FakeSense, FakeWriter, scores, talk
from tiny import voice

from aligncap.serve.api import make_app
from aligncap.serve.page import mount as mount_page
from aligncap.serve.personas import read_personas
from aligncap.serve.talk import router
from aligncap.serve.talk_page import TalkPage, chat_html, face_html, mount, perception_html, theme_html
from aligncap.serve.talk_prompt import Perception
from aligncap.serve.writers import AnswerFailed

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
NAMES = ("state", "seen", "chat", "theme", "last", "history", "sound", "text", "frames")


@pytest.fixture
def clip(tmp_path) -> str:
    (tmp_path / "a.wav").write_bytes(wav(seconds=0.6))
    return str(tmp_path / "a.wav")


def updates(one, sound=None, text="", frames=(), key="friend", sentence=None, history=()) -> list[dict]:
    """What a turn shows, step by step, by the names of the outputs; skipped ones are left out."""
    found = TalkPage(one).turn(sound, text, list(frames), key, sentence, list(history))
    skipped = "__type__"
    return [
        {name: value for name, value in zip(NAMES, row) if not (isinstance(value, dict) and skipped in value)}
        for row in found
    ]


def test_nothing_from_outside_is_html():
    who = read_personas()["friend"]
    hostile = dict.fromkeys(("caption", "transcript", "how"), HOSTILE)
    row = Perception(cues={HOSTILE: HOSTILE}, missing={HOSTILE: HOSTILE}).as_row() | hostile
    entry = {"role": "user", "text": HOSTILE, "emotion": HOSTILE}
    shown = [
        perception_html(row, {}),
        perception_html(row | {"scores": {HOSTILE: dict(zip("a", [1.0]))}}, {}),
        chat_html(who, [entry, entry | {"role": "assistant"}], HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        theme_html(HOSTILE),
    ]
    assert all("<img" not in text and "<script" not in text for text in shown)


def test_a_turn_goes_from_processing_to_idle_and_clears_what_was_sent(own, clip):
    senses = [FakeSense("text", scores(sad=0.8))]
    one = talk(FakeWriter("I see. ", "And now?"), senses, own, transcribe=lambda s: "a bad day at work")
    steps = updates(one, clip)
    assert steps[0]["sound"] is None and steps[0]["text"] == "" and steps[0]["frames"] == []
    assert 'data-state="processing"' in steps[0]["state"] and 'data-state="idle"' in steps[-1]["state"]
    seen = [step["seen"] for step in steps if "seen" in step]
    assert 'aria-busy="true"' in seen[0] and 'aria-busy="false"' in seen[1] and "a bad day" in seen[1]
    assert "#5b7db1" in steps[-2 if "theme" in steps[-2] else 2]["theme"]  # the colour of sadness
    assert "I see. " in steps[-2]["chat"] and steps[-1]["last"] == "I see. And now?"
    assert steps[-1]["history"][0]["emotion"] == "sad" and 'class="tk-tag">sad' in steps[-1]["chat"]
    one.close()


def test_what_was_written_is_kept_where_a_turn_cannot_be_taken(own, tmp_path):
    one = talk(own=own)
    (tmp_path / "b.wav").write_bytes(b"PK\x03\x04" + bytes(99))
    before = [{"role": "user", "text": "earlier", "emotion": None}]
    last = updates(one, str(tmp_path / "b.wav"), "my words", history=before)[-1]
    assert last["text"] == "my words" and "zip" in last["chat"] and "earlier" in last["chat"]
    assert "history" not in last and 'data-state="idle"' in last["state"]
    assert "no words" in updates(one, text="hi", key="own", sentence="<b>")[-1]["chat"]
    assert updates(one) == [{"state": updates(one)[0]["state"]}]  # of a recorder that was emptied
    one.close()


def test_a_crisis_shows_the_pointer_first_and_also_without_an_answer(own):
    one = talk(FakeWriter(error=AnswerFailed(502, "the endpoint is down")), own=own)
    steps = updates(one, text="I want to die", key="debater")
    pointed = next(i for i, step in enumerate(steps) if "112" in step.get("chat", ""))
    failed = next(i for i, step in enumerate(steps) if "endpoint is down" in step.get("chat", ""))
    assert pointed < failed and "112" in steps[pointed]["last"]  # which screen readers are told
    assert "112" in steps[-1]["chat"] and "endpoint is down" in steps[-1]["chat"]
    one.close()


def test_the_camera_s_picture_gets_a_box_and_is_kept_for_the_turn(own, tmp_path):
    from PIL import Image

    paths = [tmp_path / f"{n}.webp" for n in range(7)]
    for path in paths:
        Image.new("RGB", (40, 20)).save(path)
    one = talk(FakeWriter("What now?"), [FakeSense("face", scores(happy=0.7))], own)
    page, frames = TalkPage(one), []
    for path in paths:
        shown, frames = page.live(str(path), frames)
    assert "left:25.0%;top:25.0%;width:50.0%;height:50.0%" in shown and "a face, happy" in shown
    assert frames == [str(path) for path in paths[2:]]
    paths[-1].unlink()  # the page removes old files
    updates(one, text="look at me please", frames=frames)
    assert len(one.perceiver.senses["face"].moments[-1].pictures) == 4
    assert "no face was found" in face_html(paths[0], None, None)
    one.close()


@pytest.fixture(scope="module")
def page_url(own):
    hostile = captioner()
    hostile.texts = lambda tokens: [HOSTILE for _ in tokens]
    one = talk(
        FakeWriter("You sound ", f"worn out {HOSTILE}. "),
        [FakeSense("voice", scores(sad=0.7)), FakeSense("face", scores(happy=0.5))],
        service(hostile),
        transcribe=lambda s: "my boss shouted at me today",
    )
    app = make_app(one.service, [])
    app.state.talk = one
    app.include_router(router)
    with running(mount_page(mount(app, one), own)) as url:
        yield url
    one.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_talking_in_a_browser(chromium, shot, page_url, tmp_path, width):
    soundfile.write(tmp_path / "mic.wav", voice(6.0, 180.0), 16_000, subtype="PCM_16")
    fake = "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}"
    browser = chromium(*fake)
    context = browser.new_context(viewport={"width": width, "height": 844}, permissions=["microphone"])
    page, outside, errors = context.new_page(), [], []
    page.on(
        "request",
        lambda r: outside.append(r.url) if r.url.startswith("http") and "127.0.0.1" not in r.url else None,
    )
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(f"{page_url}/talk")
    page.wait_for_selector("#hold[data-holds]", timeout=60_000)
    page.wait_for_selector("#clip .record-button")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, a[href]")]
        .filter(e => e.offsetParent !== null || e.type === "file")
        .filter(e => !(e.getAttribute("aria-label") || e.innerText || e.title || e.labels?.length))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []
    if width > 1000:  # three columns beside each other
        lefts = [page.locator(name).bounding_box()["x"] for name in ("#persona", "#hold", "#chat")]
        assert lefts[0] + 200 < lefts[1] and lefts[1] + 200 < lefts[2]
        page.focus("#hold")
        page.keyboard.down(" ")  # the keyboard holds as the pointer does
    else:
        tops = [page.locator(name).bounding_box()["y"] for name in ("#hold", "#chat", "#persona")]
        assert tops == sorted(tops)
        page.locator("#hold").hover()
        page.mouse.down()
    page.wait_for_selector("#state [data-state=recording]", timeout=20_000)
    page.wait_for_timeout(1500)
    page.keyboard.up(" ") if width > 1000 else page.mouse.up()
    page.wait_for_selector("#chat .tk-tag", timeout=60_000)
    page.wait_for_selector("#state [data-state=idle]", timeout=60_000)
    said = page.inner_text("#chat")
    assert "my boss shouted" in said and "sad" in page.inner_text("#chat .tk-tag") and "<script>" in said
    assert said.rstrip().endswith("?")  # the friend's rule
    assert "<script>" in page.inner_text("#perception") and page.locator("#perception .ac-bar").count() == 7
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--tk-mood')")
    page.get_by_label("Your own").click()
    page.fill("#own textarea, #own input", HOSTILE + " a pirate")
    page.fill("#text textarea", HOSTILE + " I want to die")
    page.click("#send")
    page.wait_for_selector("#chat li:has-text('112')", timeout=60_000)
    page.wait_for_selector("#state [data-state=idle]", timeout=60_000)
    assert page.locator("#chat .tk-user").count() == 2
    assert page.evaluate("window.hacked") is None
    assert page.locator("#chat img, #perception img, #last img, #chat script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1
    shot(page, f"talk-{width}")
    assert not errors and not outside, (errors, outside)
    browser.close()


def test_the_page_s_files_ask_no_other_server():
    for name in ("talk.css", "talk.js"):
        text = (Path(__file__).parents[2] / "data" / name).read_text()
        assert "http" not in text.replace("https or localhost", "") and "url(" not in text
