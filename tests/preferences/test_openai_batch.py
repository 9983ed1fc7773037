from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub_server import PRICE_IN, PRICE_OUT, Stub, scores

from aligncap.preferences.judge import JudgeSummary, judge_candidates
from aligncap.preferences.judges import openai_batch
from aligncap.preferences.judges.openai import Endpoint, Limits, read_events, read_ledger
from aligncap.preferences.verdicts import read_scored
from aligncap.utils.errors import UserError


def judge(path: Path, stub: Stub, **options: Any) -> JudgeSummary:
    limits = Limits(**{"poll": 0.02, "backoff": 0.01, "retries": 2} | options.pop("limits", {}))
    return judge_candidates(
        path,
        path.with_name("s.jsonl"),
        "openai",
        model="m",
        batch=True,
        limits=limits,
        endpoint=Endpoint(stub.url, price_in=PRICE_IN, price_out=PRICE_OUT),
        **options,
    )


def journal(path: Path) -> Path:
    return path.with_name("s.jsonl.verdicts.jsonl")


def sizes(stub: Stub) -> list[int]:
    return [batch["sizes"] for batch in stub.batches.values()]


def test_results_are_joined_by_custom_id_and_cost_half(candidates: Callable[..., Path], stub: Stub) -> None:
    path = candidates()
    stub.answer = lambda body: scores(2 if "number 1" in body["messages"][1]["content"] else 8)
    done = judge(path, stub)
    assert done.complete and sizes(stub) == [6] and not stub.requests
    assert [r["verdict"]["overall"] for r in read_scored(path.with_name("s.jsonl"))] == [8, 8, 2, 2, 8, 8]
    assert read_ledger(journal(path)).spent == pytest.approx(stub.billed_cost / 2)
    line = json.loads(stub.files["file-0"].splitlines()[0])
    assert line["method"] == "POST" and line["url"] == "/v1/chat/completions"
    assert line["body"]["response_format"]["json_schema"]["strict"] is True
    judge(path, stub)
    assert sizes(stub) == [6]


def test_what_failed_goes_into_a_new_batch_and_is_counted(
    candidates: Callable[..., Path], stub: Stub
) -> None:
    path = candidates(clips=4)
    errors = ["ok", "ok", "refusal", "500", "missing", "schema", "truncation", "malformed"]
    stub.batch_line = lambda n, line: errors[n] if len(stub.batches) == 1 else "ok"
    done = judge(path, stub)
    assert done.complete and sizes(stub) == [8, 6] and set(stub.ok.values()) == {1}
    text = "\n".join(done.lines())
    for name in ("refusal", "500", "no result", "schema", "truncation", "malformed"):
        assert f"1 {name}" in text
    assert read_ledger(journal(path)).spent == pytest.approx(stub.billed_cost / 2)


def test_what_keeps_failing_is_listed_and_what_is_rejected_is_not_sent_again(
    candidates: Callable[..., Path], stub: Stub
) -> None:
    path = candidates(clips=2)

    def line(n: int, line: dict[str, Any]) -> str:
        user = line["body"]["messages"][1]["content"]
        return "refusal" if "number 0 0" in user else "400" if "number 0 1" in user else "ok"

    stub.batch_line = line
    done = judge(path, stub)
    assert sizes(stub) == [4, 1, 1] and done.scored == 2
    assert "refusal (attempt 3)" in done.unscored[0] and "rejected (attempt 1)" in done.unscored[1]


class Killed(BaseException):
    """Stands for kill -9: nothing after it is written."""


@pytest.mark.parametrize(
    "moment", ["before it was made", "after it was made", "while waiting", "amid results"]
)
def test_a_killed_run_takes_its_batch_up_again_and_pays_once(
    candidates: Callable[..., Path], stub: Stub, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = candidates()

    def die(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "before it was made":
            patch.setattr(openai_batch, "find", die)
        elif moment == "after it was made":
            patch.setattr(openai_batch.VerdictJournal, "batch_created", die)
        elif moment == "while waiting":
            patch.setattr(openai_batch.asyncio, "sleep", die)
        else:
            settle, seen = openai_batch._Batches.settle, []

            def three(self: Any, batch: Any, line: str) -> None:
                seen.append(line)
                if len(seen) > 3:
                    raise Killed
                settle(self, batch, line)

            patch.setattr(openai_batch._Batches, "settle", three)
        with pytest.raises(Killed):
            judge(path, stub)
    killed = read_ledger(journal(path))
    assert killed.spent >= stub.billed_cost / 2 and killed.batches
    assert len(killed.paid) == (3 if moment == "amid results" else 0)
    done = judge(path, stub)
    assert done.complete and len(stub.batches) == 1 and set(stub.ok.values()) == {1}
    answers = [event["key"] for event in read_events(journal(path)) if event.get("outcome") == "ok"]
    assert len(answers) == len(set(answers)) == 6
    assert read_ledger(journal(path)).spent == pytest.approx(stub.billed_cost / 2)
    assert not read_ledger(journal(path)).batches


def test_batches_stay_within_the_cap_and_the_endpoints_limits(
    candidates: Callable[..., Path], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_batch, "MOST_REQUESTS", 4)
    path = candidates(clips=5)
    assert judge(path, stub).complete and sizes(stub) == [4, 4, 2]
    for found in path.parent.glob("s.jsonl*"):
        found.unlink()
    stub.batches.clear()
    stub.billed = [0, 0]
    done = judge(path, stub, limits={"max_cost": 0.006})
    assert not done.complete and done.scored > 0 and any("--max-cost" in line for line in done.lines())
    assert stub.billed_cost / 2 <= read_ledger(journal(path)).spent <= 0.006
    assert judge(path, stub, limits={"max_cost": 1.0}).complete


def test_a_batch_that_the_endpoint_rejects_costs_nothing_and_says_why(
    candidates: Callable[..., Path], stub: Stub
) -> None:
    path = candidates()
    stub.poll = lambda name: (
        stub.batches[name]
        | {  # type: ignore[method-assign]
            "status": "failed",
            "errors": {"object": "list", "data": [{"code": "x", "message": "Enqueued token limit reached."}]},
        }
    )
    with pytest.raises(UserError, match="Enqueued token limit reached"):
        judge(path, stub)
    assert read_ledger(journal(path)).spent == 0
