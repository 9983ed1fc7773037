"""Commands killed with SIGKILL at random moments and resumed end as unbroken runs do, to the last bit.

Each runs once unbroken, on tiny models. Then the same command, in a fresh folder with fresh caches, is killed
at a moment drawn over the unbroken run's duration from its first file on, resumed, killed again … and its
losses, weights, caches and files, or the bytes of its rows, must be equal, not close. tests/kills.py says how
commands are started. One kill by default:

    KILLS=20 bash scripts/test.sh tests/test_kills.py -s        # twenty of each command
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kills import (
    Case,
    Found,
    compare_rows,
    compare_training,
    kill_and_compare,
    rows_phase,
    training_phase,
    unbroken,
    uniform,
)
from tiny import SENTENCES, save_model

from aligncap.cli import main as aligncap
from aligncap.utils.io import write_jsonl

KILLS = int(os.environ.get("KILLS", "1"))
CRITERIA = ("faithful", "emotion", "acoustics", "fluent", "specific")
CLIPS = 8  # of the manifest fixture
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 60 * KILLS)]


class Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that takes a tenth of a second; equal captions get equal answers."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(0.1)
        marks = hashlib.sha256(body["messages"][-1]["content"].encode()).digest()
        answer = {"reason": "fits"} | {name: mark % 11 for name, mark in zip(CRITERIA, marks, strict=False)}
        message = {"role": "assistant", "content": json.dumps(answer)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 500, "completion_tokens": 60, "total_tokens": 560}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "stub", "usage": usage}
        data = json.dumps(reply | {"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, address: object) -> None:
        pass  # clients that were killed


def words(*parts: object) -> list[str]:
    return [str(part) for part in parts]


class Commands:
    """The commands by name, on a tiny model, its candidates and pairs of the manifest's captions."""

    def __init__(self, work: Path, manifest: Path, parts: dict[str, str], port: int) -> None:
        self.work, self.manifest, self.parts, self.port = work, manifest, parts, port
        self.model = save_model(work / "model")
        rows = [
            {"id": f"clip{i}", "chosen": SENTENCES[i % 3], "rejected": SENTENCES[(i + 1) % 3], "kind": "made"}
            for i in range(CLIPS)
        ]
        write_jsonl(work / "pairs.jsonl", [row | {"manifest": str(manifest)} for row in rows])
        assert aligncap(self.candidates(work)) == 0

    def case(self, name: str) -> Case:
        resume = ("--resume_from_checkpoint", "true")
        if name in ("distill", "dpo"):
            return Case(name, getattr(self, name), resume, training_phase, compare_training)
        if name == "candidates":
            phase = rows_phase("made.jsonl.partial", CLIPS)
            return Case(name, self.candidates, (), phase, compare_rows("made.jsonl"))
        if name == "rubric":
            return Case(name, self.rubric, (), lambda folder, began: "judging", compare_rows("scored.jsonl"))
        phase = rows_phase("gpt.jsonl.verdicts.jsonl", 2 * CLIPS * 5)  # four candidates and a reference
        return Case(name, self.openai, (), phase, compare_paid)

    def training(self, folder: Path, *more: object) -> list[str]:
        steps = ("--max_steps", 24, "--save_steps", 5, "--logging_steps", 1, "--warmup_steps", 2)
        folders = ("--output_dir", folder / "out", "--cache_dir", folder / "cache")
        return words("train", *more, *steps, *folders, "--per_device_train_batch_size", 4)

    def distill(self, folder: Path) -> list[str]:
        data = ("--train_manifest", self.manifest, "--dev_manifest", self.manifest, "--eval_steps", 10)
        model = ("--encoder", self.parts["encoder"], "--llm", self.parts["llm"], "--align_steps", 40)
        return self.training(folder, "distill", *data, *model, "--gradient_accumulation_steps", 2)

    def dpo(self, folder: Path) -> list[str]:
        data = ("--train_pairs", self.work / "pairs.jsonl", "--dev_manifest", self.manifest, "--dev_clips", 8)
        return self.training(folder, "dpo", "--model", self.model, *data, "--eval_steps", 5)

    def candidates(self, folder: Path) -> list[str]:
        size = ("--num", 4, "--batch_size", 2, "--max_new_tokens", 24)
        data = ("--model", self.model, "--manifest", self.manifest, "--out", folder / "made.jsonl")
        return words("candidates", *data, *size)

    def rubric(self, folder: Path) -> list[str]:
        # Without its language model, which is a real one.
        out = ("--out", folder / "scored.jsonl", "--fluency", "false")
        return words("judge", self.work / "made.jsonl", *out)

    def openai(self, folder: Path) -> list[str]:
        endpoint = ("--judge", "openai", "--model", "stub", "--base_url", f"http://127.0.0.1:{self.port}/v1")
        cost = ("--price_in", 1, "--price_out", 4, "--max_cost", 5, "--concurrency", 4)
        return words("judge", self.work / "made.jsonl", *endpoint, *cost, "--out", folder / "gpt.jsonl")


def compare_paid(reference: Path, folder: Path) -> Found:
    """Rows as `compare_rows`; and no question is asked again once its answer is in the journal."""
    found = compare_rows("gpt.jsonl")(reference, folder)
    answered: Counter[str] = Counter()
    for line in (folder / "gpt.jsonl.verdicts.jsonl").read_text().splitlines()[1:]:
        event = json.loads(line)
        found.repeated += bool(event["event"] == "sent" and answered[event["key"]])
        answered[event["key"]] += event["event"] == "done" and event["outcome"] == "ok"
    found.repeated += sum(count > 1 for count in answered.values())
    return found


@pytest.fixture(scope="module")
def commands(tmp_path_factory, manifest, parts):
    server = Server(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    os.environ.setdefault("OPENAI_API_KEY", "none")
    yield Commands(tmp_path_factory.mktemp("kills"), manifest, parts, server.server_port)
    server.shutdown()


@pytest.mark.parametrize("number, name", enumerate(("distill", "candidates", "rubric", "openai", "dpo")))
def test_killed_and_resumed_it_is_the_unbroken_run(commands, number, name):
    if name == "distill" and "KILLS" not in os.environ:
        pytest.skip("tests/training/test_resume.py kills it; set KILLS to kill it here")
    case, folder = commands.case(name), commands.work / name
    first, seconds = unbroken(case, folder / "unbroken")
    moments = uniform(first, seconds, number)
    result = kill_and_compare(case, folder / "unbroken", folder, KILLS, moments)
    found = result.found
    print(
        f"\n{name}: {len(result.phases)} kills, {found.lost} lost, {found.repeated} repeated, greatest "
        f"difference {found.greatest:g}; killed at {'; '.join(result.phases)}"
    )
    assert found.equal and len(result.phases) == KILLS, "\n".join(found.errors)
