"""The page: record or upload a clip, see how it sounds, and why one may believe it."""

from __future__ import annotations

import json
import queue
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI

from aligncap.inference.confidence import Calibration
from aligncap.inference.jobs import SOUND_ENDINGS
from aligncap.serve.batching import Options
from aligncap.serve.http import accepted, answered, tokens
from aligncap.serve.listening import candidates_of, cues_of
from aligncap.serve.service import Service
from aligncap.serve.show import (
    CSS,
    candidates_html,
    caption_html,
    cues_html,
    curves_html,
    emotions_html,
    error_html,
    history_html,
)
from aligncap.serve.uploads import Refused, decode
from aligncap.utils.io import Row

HISTORY = 20  # clips of a visit that are kept
NONE = "no other model"
HINT = "Record or choose a clip, then press Listen."
# Names for screen readers where the page's parts bring none, and the language of the page.
HEAD = """
<script>
document.documentElement.lang = "en";
addEventListener("load", () => setInterval(() => {
  const all = (what, name, value) =>
    document.querySelectorAll(what).forEach(e => e.setAttribute(name, value));
  all("#clip input[type=file]", "aria-label", "Sound file");
  all("#clip canvas, #clip #waveform", "aria-hidden", "true");
}, 1000));
</script>
"""


class Page:
    """What the page does with a clip."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def listen(self, path: str | None, model: str, other: str, history: list[Row]) -> Iterator[list[Any]]:
        """Updates of (caption, emotions, cues, curves, candidates, history, shown history, download)."""
        if not path:
            yield self._failed("no clip yet: record or choose one", history)
            return
        try:
            with self.service.admitted():
                yield from self._heard(path, model, other, history)
        except Exception as error:
            message = json.loads(bytes(answered(self.service, error).body))["error"]["message"]
            yield self._failed(message, history)

    def _failed(self, message: str, history: list[Row]) -> list[Any]:
        return [error_html(message), "", "", "", "", history, history_html(history), gr.skip()]

    def _heard(self, path: str, model: str, other: str, history: list[Row]) -> Iterator[list[Any]]:
        service, file = self.service, Path(path)
        if file.stat().st_size > service.limits.bytes:
            raise Refused(413, f"the file has more than {service.limits.bytes} bytes")
        names = list(dict.fromkeys([model, *([other] if other != NONE else [])]))
        rest = ["", "", "", "", history, history_html(history), gr.skip()]
        yield [caption_html(dict.fromkeys(names, ""), writing=True), *rest]
        clip = decode(file.read_bytes(), service.limits)
        if clip is None:
            yield [caption_html({model: service.no_speech(model)["caption"]}), *rest]
            return
        rows: dict[str, Row] = {}
        for captions in self._written(clip, names, rows):
            yield [caption_html(captions, writing=True), *rest]
        captions = {name: rows[name]["caption"] for name in names}
        calibrated = all(service.captioners[name].calibration != Calibration() for name in names)
        said, feelings = caption_html(captions), emotions_html(rows, calibrated)
        cues = cues_of(clip, captions[model])
        shown = [said, feelings, cues_html(cues), curves_html(clip)]
        yield [*shown, "", history, history_html(history), gr.skip()]
        captioner = service.captioners[model]
        candidates = service.run(lambda: candidates_of(captioner, clip, cues["relative"], captions[model]))
        entry: Row = {
            "clip": file.name,
            "model": model,
            **rows[model],
            "cues": cues,
            "candidates": candidates,
        }
        if len(names) > 1:
            entry["compared"] = {name: rows[name] for name in names[1:]}
        history = [*history, entry][-HISTORY:]
        yield [*shown, candidates_html(candidates), history, history_html(history), _download(history)]

    def _written(self, clip: np.ndarray, names: list[str], rows: dict[str, Row]) -> Iterator[dict[str, str]]:
        """Captions so far, while the models write; in the end `rows` holds the whole."""
        pieces: queue.Queue[tuple[str, str | None]] = queue.Queue()
        futures = {
            name: self.service.caption(clip, Options(name), on_text=_into(pieces, name)) for name in names
        }
        for name, future in futures.items():
            future.add_done_callback(_closing(pieces, name))
        captions, open_ = dict.fromkeys(names, ""), set(names)
        try:
            while open_:
                name, text = pieces.get(timeout=2 * self.service.timeout)
                if text is None:
                    open_.discard(name)
                    rows[name] = self.service.wait_for(futures[name])
                    captions[name] = rows[name]["caption"]
                else:
                    captions[name] += text
                yield dict(captions)
        finally:
            for future in futures.values():
                future.cancel()


def _into(pieces: queue.Queue[tuple[str, str | None]], name: str) -> Callable[[str], None]:
    return lambda text: pieces.put((name, text))


def _closing(pieces: queue.Queue[tuple[str, str | None]], name: str) -> Callable[[Future[Row]], None]:
    return lambda _: pieces.put((name, None))


def _download(history: list[Row]) -> Any:
    """The history as a file in the page's temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="captions-"))
    path = folder / "captions.json"
    path.write_text(json.dumps(history, ensure_ascii=False, indent=2), encoding="utf-8")
    return gr.update(value=str(path), interactive=True)


def build(service: Service, examples: str | None = None) -> gr.Blocks:
    """The page of a service.

    Args:
        examples: folder of sound files to try.
    """
    names = list(service.captioners)
    page = Page(service)
    with gr.Blocks(title="AlignCap", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown("# AlignCap\nHow does this voice sound?")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                clip = gr.Audio(
                    sources=["upload", "microphone"],
                    type="filepath",
                    label=f"Your clip, up to {service.limits.clip_seconds:g} seconds",
                    elem_id="clip",
                    editable=False,
                    buttons=[],
                )
                several = len(names) > 1
                model = gr.Dropdown(names, value=names[0], label="Model", visible=several, elem_id="model")
                other = gr.Dropdown(
                    [NONE, *names], value=NONE, label="Side by side with", visible=several, elem_id="other"
                )
                start = gr.Button("Listen", variant="primary", elem_id="listen")
                files = _examples(examples)
                if files:
                    gr.Examples(files, clip, label="Or try one of these")
            with gr.Column(scale=3, min_width=300):
                said = gr.HTML(f'<p class="ac ac-quiet">{HINT}</p>', elem_id="caption")
                feelings = gr.HTML(elem_id="emotions")
                with gr.Accordion("What was measured", open=True):
                    cues = gr.HTML(elem_id="cues")
                    curves = gr.HTML(elem_id="curves")
        with gr.Accordion("Other captions, and the rubric's marks", open=False):
            candidates = gr.HTML(elem_id="candidates")
        with gr.Accordion("History of this visit", open=False):
            shown = gr.HTML(history_html([]), elem_id="history")
            download = gr.DownloadButton("Download as JSON", interactive=False, elem_id="download")
        history = gr.State([])
        start.click(
            page.listen,
            [clip, model, other, history],
            [said, feelings, cues, curves, candidates, history, shown, download],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=8,
        )
    blocks.queue(max_size=service.most)
    return blocks


def _examples(folder: str | None) -> list[list[str]]:
    if folder is None:
        return []
    return [[str(p)] for p in sorted(Path(folder).iterdir()) if p.suffix.lower() in SOUND_ENDINGS]


def mount(app: FastAPI, service: Service, examples: str | None = None) -> FastAPI:
    """The application with the page at its root; with tokens in the environment, one is the password."""
    return mount_blocks(app, service, build(service, examples), "/", CSS, HEAD, examples)


def mount_blocks(
    app: FastAPI,
    service: Service,
    blocks: gr.Blocks,
    path: str,
    css: str,
    head: str,
    examples: str | None = None,
) -> FastAPI:
    """The application with a page at `path`, which keeps the service's limits and tokens."""
    known = tokens()
    fonts = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        auth=(lambda _, password: accepted(password, known)) if known else None,
        auth_message="Any name; the password is one of the server's tokens." if known else None,
        max_file_size=service.limits.bytes,
        allowed_paths=[examples] if examples else None,
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        theme=fonts,
        css=css,
        head=head,
    )
