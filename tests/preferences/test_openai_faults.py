from __future__ import annotations

import errno
import importlib.util
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub_server import EIGHT_FAULTS, Stub
from synthetic_candidates import KEY, asked, judge_in_a_process_of_its_own, make_candidates

from aligncap.preferences.judge import JudgeSummary, judge_candidates
from aligncap.preferences.judges import openai as openai_judge
from aligncap.preferences.judges import read_scored
from aligncap.preferences.judges.endpoint import read_events, read_ledger
from aligncap.utils.errors import UserError

# error of the stub: how the judge counts it
COUNTED = {name: name for name in EIGHT_FAULTS} | {"slow": "time-out", "drop": "dropped connection"}
LOST = {"slow", "drop", "no json"}
KILLS = int(os.environ.get("KILLS", "2"))  # of a run of 256 verdicts for each


def judge(path: Path, url: str, **options: Any) -> JudgeSummary:
    return judge_candidates(asked(path, url, **({"timeout": 0.5, "retries": 2} | options)))


@pytest.mark.parametrize("error", [*EIGHT_FAULTS, "503", "408", "no json", "other json"])
def test_a_fault_is_counted_paid_for_and_overcome(
    candidates: Callable[..., Path], stub: Stub, error: str
) -> None:
    stub.script = lambda n, body: error if n == 0 else "ok"
    path = candidates(clips=2)
    done = judge(path, stub.url)
    assert done.complete and done.scored == 4 and len(stub.requests) == 5 and set(stub.ok.values()) == {1}
    counted = COUNTED.get(error) or {"503": "5xx", "408": "408"}.get(error, "malformed")
    assert f"errors: 1 {counted}" in done.lines
    spent = read_ledger(path.with_name("s.jsonl.verdicts.jsonl")).spent
    if error in LOST or error == "other json":
        assert spent > stub.billed_cost  # counted at its worst case
    else:
        assert spent == pytest.approx(stub.billed_cost)
    if error == "truncation":
        assert sorted(body["max_tokens"] for body in stub.requests) == [400, 400, 400, 400, 800]


def test_an_item_that_keeps_failing_is_listed_and_the_same_command_goes_on_with_it(
    candidates: Callable[..., Path], stub: Stub
) -> None:
    path = candidates(clips=3)
    stub.script = lambda n, body: "refusal" if "number 1 0" in body["messages"][1]["content"] else "ok"
    done = judge(path, stub.url)
    assert not done.complete and done.scored == 5 and len(stub.requests) == 5 + 3
    text = "\n".join(done.lines)
    assert "without a verdict: 1 of 6 captions" in text
    assert "clip1, candidate 0: refusal (attempt 3): the model refuses: I cannot judge voices." in text
    assert len(read_scored(path.with_name("s.jsonl"))) == 5
    stub.script = lambda n, body: "ok"
    assert judge(path, stub.url).complete and len(stub.requests) == 9
    assert [r["candidate"] for r in read_scored(path.with_name("s.jsonl"))] == [0, 1] * 3


def test_a_rejected_request_is_not_sent_again(candidates: Callable[..., Path], stub: Stub) -> None:
    stub.script = lambda n, body: "400" if "number 0 0" in body["messages"][1]["content"] else "ok"
    done = judge(candidates(), stub.url)
    assert len(stub.requests) == 6 and len(done.unscored) == 1
    assert "rejected (attempt 1): 400: " in done.unscored[0] and "stub says no" in done.unscored[0]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("401", "OPENAI_API_KEY"),
        ("403", "OPENAI_API_KEY"),
        ("404", "knows no model 'm'"),
        ("quota", "no credit"),
    ],
)
def test_what_no_retry_can_mend_stops_at_once_and_never_shows_the_key(
    candidates: Callable[..., Path], stub: Stub, action: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stub.message = f"Incorrect API key provided: {KEY}"
    stub.script = lambda n, body: action
    path = candidates(clips=20)
    with pytest.raises(UserError, match=message) as caught:
        judge(path, stub.url, concurrency=2)
    assert len(stub.requests) <= 2
    assert KEY not in str(caught.value) + caplog.text
    assert KEY not in path.with_name("s.jsonl.verdicts.jsonl").read_text()
    assert read_ledger(path.with_name("s.jsonl.verdicts.jsonl")).spent == 0


def test_answers_before_a_stop_are_kept(candidates: Callable[..., Path], stub: Stub) -> None:
    stub.script = lambda n, body: "ok" if n < 4 else "401"
    path = candidates(clips=5)
    with pytest.raises(UserError, match="4 answers are kept"):
        judge(path, stub.url, concurrency=1)
    stub.script = lambda n, body: "ok"
    assert judge(path, stub.url).complete and set(stub.ok.values()) == {1}


def test_missing_keys_and_endpoints_are_named(
    candidates: Callable[..., Path], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = candidates()
    with pytest.raises(UserError, match="cannot be reached"):
        judge(path, "http://127.0.0.1:9/v1")
    assert read_ledger(path.with_name("s.jsonl.verdicts.jsonl")).spent == 0
    with pytest.raises(UserError, match="no http"):
        judge(path, "localhost:8000")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        judge(path, stub.url)


def test_an_endpoint_that_fails_at_everything_is_not_asked_for_ever(
    candidates: Callable[..., Path], stub: Stub
) -> None:
    stub.script = lambda n, body: "malformed"
    done = judge(candidates(clips=100), stub.url, retries=1, concurrency=4)
    assert len(stub.requests) <= 2 * (openai_judge.MOST_FAILED_IN_A_ROW + 4)
    assert done.scored == 0 and len(done.unscored) == 200
    text = "\n".join(done.lines)
    assert "questions all failed, the last with malformed" in text and "and 180 more" in text


def test_retry_after_is_honoured_by_everybody(candidates: Callable[..., Path], stub: Stub) -> None:
    stub.retry_after = "0.6"
    times: list[float] = []

    def script(n: int, body: dict[str, Any]) -> str:
        times.append(time.monotonic())
        return "429" if n == 0 else "ok"

    stub.script = script
    judge(candidates(clips=10), stub.url, concurrency=2)
    late = [t - times[0] for t in times if t - times[0] > 0.3]
    assert late and min(late) >= 0.55 and len(late) >= 10


def test_an_endpoint_without_usage_is_counted_at_its_worst_case(
    candidates: Callable[..., Path], stub: Stub
) -> None:
    stub.usage, stub.model = False, None
    path = candidates(clips=1, each=1)
    judge(path, stub.url)
    sent = read_events(path.with_name("s.jsonl.verdicts.jsonl"))[0]
    assert read_ledger(path.with_name("s.jsonl.verdicts.jsonl")).spent == sent["cost"] > stub.billed_cost
    assert read_scored(path.with_name("s.jsonl"))[0]["verdict"]["version"] == "m"


def test_a_full_disk_stops_the_run_before_another_request_leaves(
    candidates: Callable[..., Path], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written = candidates(clips=5), []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 4:  # the head, two requests and one answer
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("aligncap.preferences.judges.endpoint.os.fsync", full)
    with pytest.raises(UserError, match=r"verdicts\.jsonl: cannot be written: No space left.*--cache"):
        judge(path, stub.url, concurrency=1)
    assert len(stub.requests) <= 2


class Killed(BaseException):
    """Stands for kill -9: nothing after it is written."""


@pytest.mark.parametrize("moment", ["sent", "answered"])
def test_a_request_lost_to_a_kill_is_spent_at_its_worst_case_also_in_the_next_run(
    candidates: Callable[..., Path], stub: Stub, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def die(*_: Any, **__: Any) -> Any:
        raise Killed

    path = candidates(clips=1, each=1)
    journal = path.with_name("s.jsonl.verdicts.jsonl")
    with monkeypatch.context() as patch:
        if moment == "sent":
            patch.setattr(openai_judge, "failure_of", die)
            stub.script = lambda n, body: "drop"
        else:
            patch.setattr(openai_judge.VerdictJournal, "done", die)
        with pytest.raises(Killed):
            judge(path, stub.url)
    worst = read_events(journal)[0]["cost"]
    assert read_ledger(journal).spent == worst > stub.billed_cost > 0
    stub.script = lambda n, body: "ok"
    cap = worst * 1.9  # room for one worst case, not for two
    done = judge(path, stub.url, max_cost=cap)
    assert not done.complete and len(stub.requests) == 1
    assert judge(path, stub.url, max_cost=2 * worst).complete
    assert read_ledger(journal).spent > worst


@pytest.mark.slow
@pytest.mark.timeout(300 + 10 * KILLS)
def test_verdicts_survive_thirty_per_cent_faults_and_kills(tmp_path: Path, stub: Stub) -> None:
    rng, faults = random.Random(3), random.Random(3)  # of the kills, and of the endpoint
    concurrency, clips, each = 24, 32 * KILLS, 8
    wanted = clips * each
    cap = 0.006 * wanted
    path, out = make_candidates(tmp_path, clips, each), tmp_path / "s.jsonl"
    journal = tmp_path / "s.jsonl.verdicts.jsonl"
    stub.script = lambda n, body: faults.choice(EIGHT_FAULTS) if faults.random() < 0.3 else "ok"
    stub.retry_after = "0.05"
    # forked from one that has done the imports, which take longer than all the rest
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["aligncap.preferences.judge", "aligncap.preferences.judges.openai"])
    arguments = (path, out, stub.url, concurrency, cap)
    moments = sorted(rng.sample(range(100, wanted), KILLS))
    for moment in moments:
        process = processes.Process(target=judge_in_a_process_of_its_own, args=arguments)
        process.start()
        looked = 0.0
        while len(stub.requests) < moment:
            assert process.is_alive()
            if journal.exists() and time.monotonic() > looked + 0.4:
                looked = time.monotonic()
                read_events(journal)  # readable while it is written
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        ledger = read_ledger(journal)
        assert stub.billed_cost <= ledger.spent <= cap
        assert len(ledger.paid) <= len(stub.ok)
    process = processes.Process(target=judge_in_a_process_of_its_own, args=arguments)
    process.start()
    process.join(200)
    assert process.exitcode == 0

    rows = read_scored(out)
    assert [(r["id"], r["candidate"]) for r in rows] == [
        (f"clip{i}", n) for i in range(clips) for n in range(each)
    ]
    assert all(r["verdict"]["overall"] == 7 for r in rows)
    events = read_events(journal)
    answers = Counter(event["key"] for event in events if event.get("outcome") == "ok")
    assert len(answers) == wanted and set(answers.values()) == {1}
    assert len(stub.ok) == wanted
    assert sum(count - 1 for count in stub.ok.values()) <= KILLS * concurrency
    assert set(stub.errors) == set(EIGHT_FAULTS)
    assert 0.25 < sum(stub.errors.values()) / len(stub.requests) < 0.35
    assert stub.billed_cost <= read_ledger(journal).spent <= cap
    lost = {event["request"] for event in events if event["event"] == "sent"} - {
        event["request"] for event in events if event["event"] == "done"
    }
    assert len(lost) <= KILLS * concurrency
    print(f"{len(stub.requests)} requests, kills at {moments}, {len(lost)} open at a kill")


@pytest.mark.slow
def test_transformers_serve_that_answers_garbage_ends_cleanly(
    parts: dict[str, str], candidates: Callable[..., Path], tmp_path: Path, stub: Stub
) -> None:
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [str(Path(sys.executable).with_name("transformers")), "serve", parts["llm"], "--device", "cpu"]
    log = (tmp_path / "serve.log").open("w")
    server = subprocess.Popen(
        [*serve, "--host", "127.0.0.1", "--port", str(port)],
        stdout=log,
        stderr=log,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    try:
        for _ in range(300):
            assert server.poll() is None, (tmp_path / "serve.log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        path = candidates(clips=2, each=2)
        limits = {"concurrency": 2, "retries": 1, "timeout": 60, "price_in": None, "price_out": None}
        url = f"http://127.0.0.1:{port}/v1"
        done = judge_candidates(asked(path, url, model=parts["llm"], max_tokens=24, **limits))
    finally:
        server.terminate()
        server.wait(20)
        log.close()
    text = "\n".join(done.lines)
    assert not done.complete and done.scored == 0 and len(done.unscored) == 4
    outcomes = Counter(
        event["outcome"]
        for event in read_events(tmp_path / "s.jsonl.verdicts.jsonl")
        if event["event"] == "done"
    )
    assert sum(outcomes.values()) == 8 and set(outcomes) <= {"malformed", "truncation"}, text
    assert f"{outcomes.most_common(1)[0][1]} {outcomes.most_common(1)[0][0]}" in text
    assert json.loads((tmp_path / "s.jsonl.verdicts.jsonl").read_text().splitlines()[1])["event"] == "sent"
