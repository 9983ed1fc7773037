"""The talking app's page: who answers, what is perceived, and the talk."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from aligncap.inference.timeline_files import colour_of
from aligncap.senses.moments import SEVEN, Moment
from aligncap.serve.http import answered
from aligncap.serve.page import mount_blocks
from aligncap.serve.perception import MOST_PICTURES, Said, face_box
from aligncap.serve.personas import OWN, PERSONA_CHARACTERS, TEXT_CHARACTERS, Persona
from aligncap.serve.show import CSS, bar, error_html
from aligncap.serve.talk import Talk
from aligncap.serve.talk_prompt import Trust, top
from aligncap.serve.uploads import Refused
from aligncap.utils.io import Row, data_path

PATH = "/talk"
NOTE = (
    "A computer program answers. What it says of feelings is a guess and may be wrong; it is no doctor and "
    "no therapist. In danger, call your local emergency number."
)
_STATES = {
    "idle": "Ready",
    "recording": "Recording: let go to send",
    "processing": "Listening and thinking …",
}


def state_html(state: str) -> str:
    """What the app is doing: one of idle, recording, processing."""
    return f'<p class="tk-state" role="status" data-state="{state}">{_STATES[state]}</p>'


def theme_html(emotion: str | None) -> str:
    """The page's colour, that of an emotion."""
    return f"<style>:root {{ --tk-mood: {colour_of(emotion)}; }}</style>"


def chat_html(
    persona: Persona,
    history: Sequence[Row],
    said: str = "",
    mood: str | None = None,
    pointer: str | None = None,
    answer: str | None = None,
    error: str = "",
) -> str:
    """The talk so far, with the turn that is being written."""
    rows = [_entry({"role": "assistant", "text": persona.greeting})]
    rows += [_entry(entry) for entry in history]
    if said:
        rows.append(_entry({"role": "user", "text": said, "emotion": mood}))
    if pointer:
        rows.append(_entry({"role": "assistant", "text": pointer, "help": True}))
    if answer is not None:
        rows.append(_entry({"role": "assistant", "text": answer or "…"}))
    if error:
        rows.append(f"<li>{error_html(error)}</li>")
    return f'<ol class="tk-log" tabindex="0" aria-label="The talk">{"".join(rows)}</ol>'


def _entry(entry: Row) -> str:
    text = f"<p>{escape(str(entry['text']))}</p>"
    if entry.get("help"):
        return f'<li class="tk-help">{text}</li>'
    if entry["role"] != "user":
        return f"<li>{text}</li>"
    emotion = entry.get("emotion")
    tag = f'<span class="tk-tag">{escape(emotion)}</span>' if emotion else ""
    return f'<li class="tk-user" style="--tk-tag:{colour_of(emotion)}">{text}{tag}</li>'


def perception_html(seen: Row, trust: Mapping[str, Trust], pending: bool = False) -> str:
    """Caption, bars of what the senses say together, a line for each sense, words and cues.

    Args:
        seen: `Perception.as_row`; pending: whether the senses are still at work.
    """
    caption = escape(seen["caption"] or "No voice in this turn.")
    parts = [f'<p class="ac-caption">{caption}</p>']
    if seen["cues"]:
        cues = ", ".join(f"{name} {word}" for name, word in seen["cues"].items())
        parts.append(f'<p class="ac-quiet">Measured: {escape(cues)}</p>')
    if seen["fused"]:
        named = top(seen["fused"])
        parts += [bar(emotion, seen["fused"][emotion], emotion == named) for emotion in SEVEN]
        parts.append(f'<p class="ac-quiet">{escape(seen["how"])}</p>')
    rows = ""
    for name, scores in seen["scores"].items():
        known = f"{trust[name].accuracy:.0%}" if name in trust else "not measured"
        said = f"{top(scores)} {scores[top(scores)]:.0%}"
        rows += f"<tr><th scope='row'>{escape(name)}</th><td>{said}</td><td>{known}</td></tr>"
    for name, why in seen["missing"].items():
        rows += f"<tr><th scope='row'>{escape(name)}</th><td colspan='2'>{escape(why)}</td></tr>"
    if rows:
        head = "".join(f"<th scope='col'>{name}</th>" for name in ("sense", "says", "right in tests"))
        parts.append(f"<table><tr>{head}</tr>{rows}</table>")
    if seen["caption"] and not seen["calibrated"]:
        note = "The captioner was not calibrated: take its numbers as an order."
        parts.append(f'<p class="ac-quiet">{note}</p>')
    if seen["transcript"]:
        parts.append(f'<p class="ac-quiet">Heard words: “{escape(seen["transcript"])}”</p>')
    if pending:
        parts.append('<p class="ac-quiet">The senses are at work …</p>')
    return f'<div class="ac tk" aria-busy="{str(pending).lower()}">{"".join(parts)}</div>'


def face_html(picture: Path, box: tuple[float, ...] | None, scores: Mapping[str, float] | None) -> str:
    """The picture with a box around its face, and bars of its emotions."""
    data = base64.b64encode(picture.read_bytes()).decode()
    kind = {".png": "png", ".webp": "webp"}.get(picture.suffix, "jpeg")
    drawn = ""
    if box is not None:
        left, top_, width, height = (100 * share for share in box)
        drawn = f'<i style="left:{left:.1f}%;top:{top_:.1f}%;width:{width:.1f}%;height:{height:.1f}%"></i>'
    bars = "".join(bar(e, scores[e], e == top(scores)) for e in SEVEN) if scores else ""
    told = f"a face, {top(scores)}" if scores else "no face was found"
    image = f'<img src="data:image/{kind};base64,{data}" alt="Your camera: {told}">'
    quiet = f'<p class="ac-quiet">Camera: {told}.</p>'
    return f'<div class="ac tk"><div class="tk-face">{image}{drawn}</div>{quiet}{bars}</div>'


class TalkPage:
    """What the page does with a turn and with pictures of the camera."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk

    def turn(
        self,
        sound: str | None,
        text: str,
        frames: list[str],
        key: str,
        sentence: str | None,
        history: list[Row],
    ) -> Iterator[list[Any]]:
        """Updates of (state, perception, chat, theme, last answer, history, sound, text, frames)."""
        keep = gr.skip()
        who = next(iter(self.talk.personas.values()))
        if not sound and not text.strip():  # of a recorder that was emptied
            yield [state_html("idle"), *[keep] * 8]
            return
        sentence = sentence or ""  # of a field that is hidden there is none
        said, mood, pointer, answer = text.strip() or "…", None, None, ""
        try:
            who = self.talk.persona(key, sentence)
            sent = Said(text, _read(sound, self.talk), None, [p for f in frames if (p := _bytes(f))])
            with self.talk.service.admitted():
                shown = chat_html(who, history, said, None, None, "")
                yield [state_html("processing"), keep, shown, keep, keep, keep, None, "", []]
                turn, failed = self.talk.prepared(sent, key, sentence, history), ""
                with closing(self.talk.events(turn)) as events:
                    for name, row in filter(None, events):
                        seen, theme, read_out = keep, keep, keep
                        if name == "help":
                            pointer = row["text"]
                            read_out = escape(pointer)
                        elif name == "perception":
                            mood, words = row["mood"], [text.strip(), row["transcript"]]
                            said = " ".join(filter(None, words)) or "…"
                            seen = perception_html(row, self.talk.perceiver.trust, row["stage"] == "quick")
                            theme = theme_html(mood)
                        elif name == "token":
                            answer += row["text"]
                        elif name == "error":
                            failed = (
                                f"No answer: {row['message']}. What you said is kept; go on, or try later."
                            )
                        shown = chat_html(who, history, said, mood, pointer, answer, failed)
                        yield [state_html("processing"), seen, shown, theme, read_out, *[keep] * 4]
                history = row["history"]
                shown = chat_html(who, history, error=failed)
                yield [state_html("idle"), keep, shown, keep, escape(answer), history, *[keep] * 3]
        except Exception as error:
            why = json.loads(bytes(answered(self.talk.service, error).body))["error"]["message"]
            shown = chat_html(who, history, text.strip(), None, pointer, None, why)
            yield [state_html("idle"), keep, shown, keep, keep, keep, None, text, keep]

    def live(self, frame: str | None, frames: list[str]) -> tuple[Any, list[str]]:
        """The camera's picture with box and bars; the last pictures are kept for the turn."""
        sense = self.talk.perceiver.senses.get("face")
        if frame is None or sense is None:
            return gr.skip(), frames
        path = Path(frame)
        scores = sense.read([Moment("live", pictures=[path])]).scores[0]
        found = None if np.isnan(scores).any() else dict(zip(SEVEN, scores.tolist(), strict=True))
        return face_html(path, face_box(sense, path), found), [*frames, frame][-MOST_PICTURES:]

    def greeting(self, key: str, sentence: str | None, history: list[Row]) -> tuple[Any, Any]:
        """The talk as another persona begins it, and whether the user's own words are asked for."""
        try:
            who = self.talk.persona(key, sentence or "")
        except Refused:
            who = next(iter(self.talk.personas.values()))
        return chat_html(who, history), gr.update(visible=key == OWN)


def _read(sound: str | None, talk: Talk) -> bytes | None:
    if not sound:
        return None
    if Path(sound).stat().st_size > talk.service.limits.bytes:
        raise Refused(413, f"the file has more than {talk.service.limits.bytes} bytes")
    return Path(sound).read_bytes()


def _bytes(frame: str) -> bytes | None:
    """A camera's picture, None where the page has removed it meanwhile."""
    return Path(frame).read_bytes() if Path(frame).is_file() else None


def build(talk: Talk) -> gr.Blocks:
    """The page of a talk."""
    page, personas = TalkPage(talk), talk.personas
    first = next(iter(personas))
    with gr.Blocks(title="AlignCap: talk", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        theme = gr.HTML(theme_html(None), elem_id="theme", padding=False)
        history, frames = gr.State([]), gr.State([])
        gr.Markdown("# Talk")
        with gr.Row(elem_id="three"):
            with gr.Column(scale=2, min_width=260):
                names = [(who.name, key) for key, who in personas.items()] + [("Your own", OWN)]
                persona = gr.Radio(names, value=first, label="Who answers", elem_id="persona")
                sentence = gr.Textbox(
                    label="In a sentence: who should answer?",
                    placeholder="a patient piano teacher who loves bad puns",
                    max_length=PERSONA_CHARACTERS,
                    visible=False,
                    elem_id="own",
                )
                anew = gr.Button("New talk", elem_id="anew")
                gr.HTML(_about(talk), elem_id="about")
            with gr.Column(scale=3, min_width=300):
                state = gr.HTML(state_html("idle"), elem_id="state")
                gr.Button("Press and hold to talk", variant="primary", elem_id="hold")
                clip = gr.Audio(
                    sources=["microphone", "upload"],
                    type="filepath",
                    label=f"Recorder, or a file, up to {talk.service.limits.clip_seconds:g} seconds",
                    elem_id="clip",
                    editable=False,
                    buttons=[],
                )
                if "face" in talk.perceiver.senses:
                    camera = gr.Image(
                        sources=["webcam"],
                        streaming=True,
                        type="filepath",
                        label="Camera",
                        height=220,
                        elem_id="camera",
                    )
                    face = gr.HTML(elem_id="face")
                    camera.stream(
                        page.live,
                        [camera, frames],
                        [face, frames],
                        stream_every=1.0,
                        time_limit=600,
                        show_progress="hidden",
                        concurrency_limit=2,
                        api_visibility="private",
                    )
                seen = gr.HTML('<p class="ac ac-quiet">Nothing was perceived yet.</p>', elem_id="perception")
            with gr.Column(scale=4, min_width=300):
                chat = gr.HTML(chat_html(personas[first], []), elem_id="chat")
                text = gr.Textbox(
                    label="Or write", lines=1, max_lines=4, max_length=TEXT_CHARACTERS, elem_id="text"
                )
                send = gr.Button("Send", elem_id="send")
                last = gr.HTML(elem_id="last")
        recording = f"() => {state_html('recording')!r}"
        clip.start_recording(None, None, state, js=recording)
        gr.on(
            [clip.stop_recording, clip.upload, text.submit, send.click],
            page.turn,
            [clip, text, frames, persona, sentence, history],
            [state, seen, chat, theme, last, history, clip, text, frames],
            trigger_mode="always_last",  # what is said while an answer is written has its turn after it
            show_progress="hidden",
            concurrency_limit=8,
            api_visibility="private",
        )
        gr.on(
            [persona.change, sentence.submit],
            page.greeting,
            [persona, sentence, history],
            [chat, sentence],
            show_progress="hidden",
            api_visibility="private",
        )
        anew.click(
            lambda key, own: ([], *page.greeting(key, own, []), theme_html(None), ""),
            [persona, sentence],
            [history, chat, sentence, theme, seen],
            show_progress="hidden",
            api_visibility="private",
        )
    blocks.queue(max_size=talk.service.most)
    return blocks


def _about(talk: Talk) -> str:
    senses = ["captioner", *talk.perceiver.senses]
    trust = talk.perceiver.trust
    known = [f"{name} ({trust[name].accuracy:.0%})" if name in trust else name for name in senses]
    loaded = f"Senses: {', '.join(known)}; the share that was right in tests, where it was measured."
    words = "" if talk.perceiver.transcribe else " Spoken words are not written down."
    model = f"Answers come from {talk.name}." if talk.name else ""
    return "".join(
        f'<p class="ac ac-quiet">{escape(part)}</p>' for part in (NOTE, loaded + words, model) if part
    )


def mount(app: FastAPI, talk: Talk) -> FastAPI:
    """The application with the talking app's page at PATH; to be mounted before one at the root."""
    css = CSS + data_path("talk.css").read_text(encoding="utf-8")
    head = f"<script>{data_path('talk.js').read_text(encoding='utf-8')}</script>"

    @app.get(PATH, include_in_schema=False)
    async def with_slash() -> RedirectResponse:
        return RedirectResponse(f"{PATH.removeprefix('/')}/")

    return mount_blocks(app, talk.service, build(talk), PATH, css, head)
