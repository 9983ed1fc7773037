"""A stand-in for an OpenAI-compatible endpoint on 127.0.0.1, with scripted errors."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CRITERIA = ("faithful", "emotion", "acoustics", "fluent", "specific")
OUT_TOKENS = 60
PRICE_IN, PRICE_OUT = 1.0, 4.0  # dollars per million tokens
EIGHT_FAULTS = ("malformed", "schema", "refusal", "truncation", "429", "500", "slow", "drop")


def scores(value: int = 7) -> dict[str, Any]:
    return {"reason": "fits", **dict.fromkeys(CRITERIA, value)}


class Stub:
    """`script(n, body)` names what happens to request n: "ok", one of EIGHT_FAULTS, or a status code.

    `answer(body)` is the object that the model says. `ok` counts answered requests by user message, `billed`
    is [tokens in, tokens out] of all that was worked on, also where the client never got the answer.
    """

    def __init__(self) -> None:
        self.script: Callable[[int, dict[str, Any]], str] = lambda n, body: "ok"
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: scores()
        self.retry_after: str | None = None
        self.message = "stub says no"
        self.model: str | None = "stub-model-2026"
        self.usage = True
        self.requests: list[dict[str, Any]] = []
        self.ok: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.billed = [0, 0]
        self.now = self.most = 0
        self.lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/chat/completions"
                stub.chat(self, json.loads(raw))

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True

            def handle_error(self, request: Any, address: Any) -> None:
                pass  # clients that were killed

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def billed_cost(self) -> float:
        return (self.billed[0] * PRICE_IN + self.billed[1] * PRICE_OUT) / 1e6

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def chat(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        user = body["messages"][-1]["content"]
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.now += 1
            self.most = max(self.most, self.now)
            action = self.script(number, body)
            status, reply = self.reply(action, body)
            if action in EIGHT_FAULTS or action.isdigit():
                self.errors[action] += 1
            if action == "ok":
                self.ok[user] += 1
        try:
            if action == "slow":
                handler.connection.settimeout(20)
                handler.connection.recv(1)  # returns when the client has had enough
                handler.close_connection = True
            elif action == "drop":
                handler.connection.shutdown(socket.SHUT_RDWR)
                handler.close_connection = True
            else:
                headers = {"Retry-After": self.retry_after} if action == "429" and self.retry_after else {}
                self.send(handler, status, reply, headers)
        finally:
            with self.lock:
                self.now -= 1

    def reply(self, action: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and body; what is worked on is billed."""
        if action.isdigit():
            return int(action), {"error": {"message": self.message, "type": "stub", "code": None}}
        if action == "quota":
            return 429, {"error": {"message": self.message, "type": "stub", "code": "insufficient_quota"}}
        if action == "no json":
            return 200, b'{"choices": [{"mess'
        if action == "other json":
            return 200, {"hello": "world"}
        room = body.get("max_tokens") or body.get("max_completion_tokens")
        tokens_in = sum(len(m["content"]) for m in body["messages"]) // 4
        tokens_out = room if action == "truncation" else OUT_TOKENS
        self.billed[0] += tokens_in
        self.billed[1] += tokens_out
        message: dict[str, Any] = {"role": "assistant", "content": json.dumps(self.answer(body))}
        if action == "malformed":
            message["content"] = "The caption is quite good, I would say 7."
        elif action == "schema":
            message["content"] = json.dumps(scores(11))
        elif action == "refusal":
            message |= {"content": None, "refusal": "I cannot judge voices."}
        elif action == "truncation":
            message["content"] = message["content"][:20]
        finish = "length" if action == "truncation" else "stop"
        reply: dict[str, Any] = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": self.model,
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        }
        if self.usage:
            total = tokens_in + tokens_out
            reply["usage"] = {
                "prompt_tokens": tokens_in,
                "completion_tokens": tokens_out,
                "total_tokens": total,
            }
        return 200, reply

    @staticmethod
    def send(
        handler: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str] | None = None
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
