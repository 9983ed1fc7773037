from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aligncap.text.annotate import paraphrase, refusal
from aligncap.utils.errors import UserError

ORIGINAL = "He sounds angry, with a loud voice."
KEY = "sk-not-to-be-seen-123"


class Stub:
    """A chat endpoint on 127.0.0.1 that answers by a function of the caption."""

    def __init__(self) -> None:
        self.answer: Callable[[str], str] = lambda caption: caption
        self.status = 200
        self.requests: list[dict] = []
        self.now = self.most = 0
        lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    stub.requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
                    stub.now += 1
                    stub.most = max(stub.most, stub.now)
                time.sleep(0.02)
                caption = body["messages"][-1]["content"].removeprefix("Caption: ")
                message = {"role": "assistant", "content": stub.answer(caption)}
                reply = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
                error = {"error": {"message": f"wrong key {self.headers['Authorization']}"}}
                data = json.dumps(reply if stub.status == 200 else error).encode()
                with lock:
                    stub.now -= 1
                self.send_response(stub.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Stub()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_keeps_a_faithful_rewording_and_sends_the_caption_to_the_model(stub: Stub) -> None:
    stub.answer = lambda caption: " \u201cThe man sounds angry and loud.\u201d\n"
    result = paraphrase([ORIGINAL], "some-model", stub.url)
    assert result.captions == ["The man sounds angry and loud."]
    assert result.reworded == [True]
    assert not result.kept_original
    assert stub.requests[0]["model"] == "some-model"
    assert stub.requests[0]["path"] == "/v1/chat/completions"
    assert stub.requests[0]["key"] == f"Bearer {KEY}"
    assert ORIGINAL in stub.requests[0]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("He sounds sad, with a loud voice.", "emotion"),
        ("He sounds loud.", "emotion"),
        ("He sounds angry and anxious, with a loud voice.", "emotion"),
        ("He sounds angry, with a loud, shaky voice.", "manner"),
        ("He sounds angry, with a soft voice.", "manner"),
        ("She sounds angry, with a loud voice.", "gender"),
        ("He sounds angry, his voice never loud.", "negation"),
        ("Sure! Here it is:\nHe sounds angry.", None),
        ("he sounds angry", "form"),
        ("Angry.", "form"),
        (ORIGINAL, "same"),
    ],
)
def test_keeps_the_original_where_a_rewording_changes_what_is_said(answer: str, reason: str | None) -> None:
    assert refusal(ORIGINAL, answer) == (reason or "form")


def test_counts_refused_answers_and_keeps_order(stub: Stub) -> None:
    originals = [ORIGINAL.replace("He", who) for who in ("He", "The man", "This man")]
    stub.answer = lambda c: c.replace("angry", "sad") if c.startswith("The") else c.replace("sounds", "seems")
    result = paraphrase(originals, "m", stub.url)
    assert result.captions == [
        originals[0].replace("sounds", "seems"),
        originals[1],
        originals[2].replace("sounds", "seems"),
    ]
    assert result.reworded == [True, False, True]
    assert result.kept_original == {"emotion": 1}


def test_never_has_more_requests_open_than_allowed(stub: Stub) -> None:
    paraphrase([ORIGINAL] * 12, "m", stub.url, concurrency=3)
    assert len(stub.requests) == 12
    assert 1 < stub.most <= 3


def test_a_failing_request_leaves_the_original_and_is_counted(stub: Stub) -> None:
    stub.status = 500
    result = paraphrase([ORIGINAL], "m", stub.url, retries=0)
    assert result.captions == [ORIGINAL]
    assert result.kept_original == {"request failed": 1}


def test_a_missing_key_names_what_to_set(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        paraphrase([ORIGINAL], "m", stub.url)


def test_a_closed_endpoint_names_what_to_set(stub: Stub) -> None:
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        paraphrase([ORIGINAL], "m", "http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        paraphrase([ORIGINAL], "m", "localhost:8000")


def test_an_unknown_model_is_named(stub: Stub) -> None:
    stub.status = 404
    with pytest.raises(UserError, match="no-such-model"):
        paraphrase([ORIGINAL], "no-such-model", stub.url)


def test_a_refused_key_is_neither_shown_nor_logged(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    stub.status = 401
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UserError, match="OPENAI_API_KEY") as caught:
        paraphrase([ORIGINAL], "m", stub.url)
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_environment_variables_give_key_and_endpoint(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
    stub.answer = lambda caption: caption.replace("sounds", "seems")
    assert paraphrase([ORIGINAL], "m").reworded == [True]
