"""`aligncap serve`: captions for people and programs, by a page and an HTTP API in one process."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np

from aligncap.audio.files import SAMPLE_RATE
from aligncap.inference.captioner import Captioner
from aligncap.models.precision import dtype_name, pick_device
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.options import (
    Config,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Range,
    changed,
    option,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

    from aligncap.serve.service import Service
    from aligncap.serve.talk import Talk

NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "multipart": "python-multipart",
    "gradio": "gradio",
    "prometheus_client": "prometheus-client",
}
TALK = (
    "senses",
    "fusion",
    "transcribe",
    "endpoint",
    "endpoint_model",
    "endpoint_timeout",
    "llm",
    "persona_file",
)
LOCAL = ("127.0.0.1", "localhost", "::1")
WARM_SECONDS = 1.0  # of noise, captioned before the first request comes
_log = logging.getLogger("aligncap.serve")


@dataclass
class ServeConfig(Config):
    """Serve captions to people by a page and to programs by an HTTP API; needs the extra `serve`.

    With --chat one can talk too, at /talk and by POST /v1/talk; a language model answers (docs/talk.md).

    Programs of OpenAI's clients need nothing but the base URL http://HOST:PORT/v1. With ALIGNCAP_TOKENS in
    the environment (comma-separated) the API takes these bearer tokens alone, and the page asks for one.
    Stop it by Ctrl-C: what is in hand is finished.

    Examples:
        aligncap serve --model runs/model
        aligncap serve --model before=runs/sft after=runs/dpo --port 8080
        ALIGNCAP_TOKENS=secret aligncap serve --model runs/model --host 0.0.0.0 --no-page
        aligncap serve --model runs/model --chat --senses runs/text runs/voice --fusion runs/fusion
        aligncap serve --model runs/model --chat --endpoint http://localhost:11434/v1 --endpoint_model qwen3
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    model: list[str] = option(help="[NAME=]CKPT: folders of models, by name; the page compares them.")
    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0: all.")
    port: Annotated[int, Range(0, 65535)] = option(8000, "Port; 0: a free one.")
    page: bool = option(True, "Serve the page too.")
    examples: str | None = option(None, "Folder of sound files that the page offers to try.")
    batch_size: PositiveInt = option(16, "Clips that are decoded at a time.")
    wait_ms: NonNegativeFloat = option(10.0, "Milliseconds that a batch waits for more requests.")
    queue: PositiveInt = option(64, "Requests in hand at a time; more are refused with 429.")
    timeout: PositiveFloat = option(60.0, "Seconds in which a request must have begun.")
    megabytes: PositiveFloat = option(25.0, "Largest upload.")
    minutes: PositiveFloat = option(60.0, "Longest recording of a timeline.")
    instructions: bool = option(
        False,
        "Put the text of a chat to the model, which must have been taught to answer (docs/audio-llm.md).",
    )
    chat: bool = option(False, "Serve the talking app too: a page at /talk, and POST /v1/talk.")
    senses: list[str] = option([], "Talk: folders of senses (`aligncap senses`), at most one of each kind.")
    fusion: str | None = option(
        None, "Talk: fusion.json of late fusion, or its folder; else the senses' mean."
    )
    transcribe: str = option(
        "whisper-base", "Talk: Whisper model that writes words down; none: nothing does."
    )
    endpoint: str | None = option(None, "Talk: base URL of an OpenAI-compatible endpoint, in place of --llm.")
    endpoint_model: str | None = option(None, "Talk: the endpoint's model.")
    endpoint_timeout: PositiveFloat = option(30.0, "Talk: seconds that an endpoint may be silent.")
    llm: str = option("smollm2-135m-instruct", "Talk: instruct model that answers in this process.")
    persona_file: str | None = option(
        None, "Talk: YAML file of more personas, as data/personas.yaml has them."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option("float32", "Precision of the models.")
    device: str = option("auto", "auto (the GPU where there is one), cpu, cuda or cuda:NUMBER.")

    @property
    def folders(self) -> list[tuple[str, Path]]:
        """Name and folder of each model."""
        words = [word.rpartition("=") for word in self.model]
        return [(name or Path(folder).resolve().name, Path(folder)) for name, _, folder in words]

    def own_errors(self) -> list[str]:
        names = [name for name, _ in self.folders]
        errors = [f"model: the name {n} is taken; write ANOTHER=FOLDER" for n in names if names.count(n) > 1]
        if bool(self.endpoint) != bool(self.endpoint_model):
            errors.append("endpoint: give --endpoint and --endpoint_model, or neither")
        if not self.chat and (given := changed(self, TALK)):
            errors += [f"{name}: is for the talking app; add --chat" for name in given]
        return list(dict.fromkeys(errors))


def run_serve(config: ServeConfig) -> int:
    """`aligncap serve`: until it is stopped."""
    if missing := [package for module, package in NEEDED.items() if not find_spec(module)]:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'aligncap[serve]'")
    folders = [str(folder) for _, folder in config.folders] + ([config.examples] if config.examples else [])
    if absent := [folder for folder in folders if not Path(folder).is_dir()]:
        raise UserErrors([f"{folder}: no such folder" for folder in absent])
    import uvicorn

    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="aligncap-serve-", ignore_cleanup_errors=True) as folder:
        with _files_in(folder):
            service = make_service(config)
            app = application(config, service)
            settings = uvicorn.Config(
                app,
                config.host,
                config.port,
                access_log=False,  # of the API, serve.http writes a line a request; queries hold content
                log_level="warning",
                timeout_graceful_shutdown=max(1, round(config.timeout)),
                timeout_keep_alive=10,
            )
            if config.host not in LOCAL and not os.environ.get("ALIGNCAP_TOKENS"):
                _log.warning("everybody who reaches %s may ask: set ALIGNCAP_TOKENS", config.host)
            # uvicorn finishes what is in hand and then raises the signal again, which would end the process
            # before its files are removed.
            signal.signal(signal.SIGTERM, lambda *_: None)
            with suppress(KeyboardInterrupt):
                uvicorn.Server(settings).run()
            service.close()
            if config.chat:
                app.state.talk.close()
    return 0


class _files_in:
    """Temporary files of this process in one folder, the page's too."""

    def __init__(self, folder: str) -> None:
        self.folder, self.before = folder, tempfile.tempdir

    def __enter__(self) -> None:
        tempfile.tempdir = self.folder
        os.environ["GRADIO_TEMP_DIR"] = self.folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

    def __exit__(self, *_: object) -> None:
        tempfile.tempdir = self.before
        os.environ.pop("GRADIO_TEMP_DIR", None)


def make_service(config: ServeConfig) -> Service:
    """The models, loaded and warm, behind their queue.

    Raises:
        UserError: a model cannot be loaded.
    """
    from aligncap.serve.service import Service
    from aligncap.serve.uploads import Limits

    start = time.monotonic()
    dtype = dtype_name(config.dtype, config.device)
    captioners = {
        name: Captioner.from_pretrained(folder, config.device, dtype) for name, folder in config.folders
    }
    noise = (
        np.random.default_rng(0).standard_normal(round(WARM_SECONDS * SAMPLE_RATE)).astype(np.float32) * 0.05
    )
    for captioner in captioners.values():
        captioner.captions_with_confidence([noise], max_new_tokens=2)
    seconds = min(c.processor.max_seconds for c in captioners.values())
    limits = Limits(round(config.megabytes * 1e6), seconds, config.minutes * 60)
    _log.info("%d models loaded in %.1f s", len(captioners), time.monotonic() - start)
    return Service(
        captioners,
        limits,
        config.batch_size,
        config.queue,
        config.timeout,
        config.instructions,
        config.wait_ms / 1000,
    )


def make_talk(config: ServeConfig, service: Service) -> Talk:
    """The talking app's parts, loaded; Whisper's weights come with the first words.

    Raises:
        UserError: a sense, a model or a file of personas cannot be loaded, or the endpoint's key is missing.
    """
    import torch

    from aligncap.serve.perception import load_perceiver
    from aligncap.serve.personas import read_personas
    from aligncap.serve.talk import Talk
    from aligncap.serve.writers import Endpoint, LocalLLM, Writer

    personas = read_personas(config.persona_file)
    words = None if config.transcribe == "none" else config.transcribe
    perceiver = load_perceiver(service, config.folders[0][1], config.senses, config.fusion, words)
    writer: Writer
    if config.endpoint and config.endpoint_model:
        writer = Endpoint(config.endpoint, config.endpoint_model, config.endpoint_timeout)
        name = f"{config.endpoint_model}, a language model of another server"
    else:
        dtype = getattr(torch, dtype_name(config.dtype, config.device))
        writer = LocalLLM(config.llm, pick_device(config.device), dtype)
        name = f"{Path(config.llm).name}, a small language model on this server"
    return Talk(service, perceiver, writer, personas, name)


def application(config: ServeConfig, service: Service) -> FastAPI:
    """API and, with `page`, the page."""
    from aligncap.serve.api import make_app

    app = make_app(service)
    if config.chat:
        from aligncap.serve.talk import router

        talk = make_talk(config, service)
        app.state.talk = talk
        app.include_router(router)
        if config.page:
            from aligncap.serve.talk_page import mount as mount_talk

            app = mount_talk(app, talk)
    if config.page:
        from aligncap.serve.page import mount

        app = mount(app, service, config.examples)
    return app
