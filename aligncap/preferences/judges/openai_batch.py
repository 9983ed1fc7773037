"""Questions through the Batch API: half the price, an answer within a day.

A batch is noted in the journal before it is made and carries its name in its metadata, so that a run that was
killed at any moment finds it again; results are joined by custom_id.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from aligncap.preferences.judges.openai import (
    Ask,
    Batch,
    Fault,
    Limits,
    Prices,
    Question,
    Reading,
    Tally,
    VerdictJournal,
    connect,
    cost_of,
    distinct,
    error_of,
    known_prices,
    read_response,
    wait_before_retry,
)
from aligncap.utils.errors import UserError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MOST_REQUESTS = 50_000  # the Batch API's own limits, the second with some room
MOST_BYTES = 190_000_000
URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
_NAME = "aligncap"
_ENDED = ("completed", "failed", "expired", "cancelled")
T = TypeVar("T")


def run_batches(
    questions: Sequence[Question],
    ask: Ask,
    journal: VerdictJournal,
    limits: Limits,
    prices: Prices | None,
    base_url: str | None = None,
    api_key: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Tally:
    """Answer every question that the journal does not hold, in batches; first those under way are awaited.

    Questions that fail are put into a further batch, up to `limits.retries` times.

    Args:
        prices: of batches; None counts no cost.

    Raises:
        UserError: no key, a key or model that is refused, a batch that the endpoint rejects, or an endpoint
            that cannot be reached. Batches under way go on there; the same command takes them up.
    """
    run = _Batches(questions, ask, journal, limits, known_prices(prices, ask, limits), say)
    asyncio.run(run.all(connect(base_url, api_key, max(limits.timeout, 60.0))))
    return run.tally


class _Batches:
    def __init__(
        self,
        questions: Sequence[Question],
        ask: Ask,
        journal: VerdictJournal,
        limits: Limits,
        prices: Prices,
        say: Callable[[str], None],
    ) -> None:
        self.wanted = distinct(questions)
        self.ask, self.journal, self.limits, self.prices, self.say = ask, journal, limits, prices, say
        self.tally = Tally(cached=sum(q.key in journal.paid for q in self.wanted))
        self.attempts: Counter[str] = Counter()
        self.hopeless: set[str] = set()

    async def all(self, client: AsyncOpenAI) -> None:
        async with client:
            for batch in list(self.journal.batches.values()):
                await self.take_up(client, batch)
            while todo := self.todo():
                chunk = self.chunk(todo)
                if not chunk:
                    return
                await self.collect(client, await self.send(client, chunk))

    def todo(self) -> list[Question]:
        return [
            q
            for q in self.wanted
            if q.key not in self.journal.paid
            and q.key not in self.hopeless
            and self.attempts[q.key] <= self.limits.retries
        ]

    def chunk(self, todo: list[Question]) -> list[Question]:
        """As many questions as one batch, and the cap, can hold."""
        chosen: list[Question] = []
        cap, spent, size = self.limits.max_cost, self.journal.spent, 0
        for question in todo[:MOST_REQUESTS]:
            spent += self.worst(question)
            size += len(self.line(question))
            if cap is not None and spent > cap:
                if not chosen:
                    self.tally.stopped = (
                        f"stopped at the cap: ${self.journal.spent:.4f} of ${cap:.4f} are spent, the next "
                        f"request could cost ${self.worst(question):.4f}; raise --max-cost to go on"
                    )
                break
            if size > MOST_BYTES and chosen:
                break
            chosen.append(question)
        return chosen

    def room(self, question: Question) -> int:
        # An answer may have been cut off: each further attempt gets more room.
        return self.ask.max_tokens * min(1 + self.attempts[question.key], 4)

    def worst(self, question: Question) -> float:
        return self.prices.cost(question.tokens_bound(), self.room(question))

    def line(self, question: Question) -> bytes:
        body = question.body(self.ask, self.room(question))
        request = {"custom_id": question.key, "method": "POST", "url": URL, "body": body}
        return (json.dumps(request, ensure_ascii=False) + "\n").encode()

    async def send(self, client: AsyncOpenAI, chunk: list[Question]) -> Batch:
        content = b"".join(self.line(question) for question in chunk)
        upload = client.with_options(timeout=600.0)
        file = await self.patiently(
            client, lambda: upload.files.create(file=("questions.jsonl", content), purpose="batch")
        )
        requests = [(q.key, self.worst(q)) for q in chunk]
        prices = (self.prices.tokens_in, self.prices.tokens_out)
        batch = self.journal.batch(requests, chunk[0].kind, self.ask.model, prices)
        self.tally.asked += len(chunk)

        async def create() -> str:
            # An earlier attempt may have arrived though its answer did not.
            known = await find(client, batch.name)
            if known is not None:
                return known
            made = await client.batches.create(
                input_file_id=file.id,
                endpoint=URL,
                completion_window="24h",
                metadata={_NAME: batch.name},
            )
            return made.id

        remote = await self.patiently(client, create)
        self.journal.batch_created(batch, remote)
        self.say(f"batch {remote}: {len(chunk)} questions sent; the command may be stopped and given again")
        return batch

    async def take_up(self, client: AsyncOpenAI, batch: Batch) -> None:
        """Await a batch of an earlier run, if it was made at all."""
        if batch.remote is None:
            remote = await self.patiently(client, lambda: find(client, batch.name))
            if remote is None:
                return self.journal.batch_done(batch, "never made")
            self.journal.batch_created(batch, remote)
        self.say(f"batch {batch.remote}: {len(batch.worst)} questions of an earlier run")
        await self.collect(client, batch)

    async def collect(self, client: AsyncOpenAI, batch: Batch) -> None:
        """Wait for the end of a batch and note its results."""
        remote = batch.remote
        assert remote is not None
        while True:
            state = await self.patiently(client, lambda: client.batches.retrieve(remote))
            if state.status in _ENDED:
                break
            await asyncio.sleep(self.limits.poll)
        for name in (state.output_file_id, state.error_file_id):
            if name:
                file = await self.patiently(client, lambda name=name: client.files.content(name))  # type: ignore[misc]
                for line in file.text.split("\n"):
                    if line.strip():
                        self.settle(batch, line)
        for key in batch.worst:
            if batch.request(key) in self.journal.open:
                self.failed(key, Fault("no result", f"the batch {state.status} without its answer"))
        self.journal.batch_done(batch, state.status)
        if state.status == "failed":
            errors = (state.errors.data if state.errors else None) or []
            said = "; ".join(str(error.message) for error in errors) or "no reason given"
            raise UserError(f"the endpoint rejects batch {remote}: {said}")
        if state.status == "cancelled":
            raise UserError(f"batch {remote} was cancelled at the endpoint; give the command again to go on")

    def settle(self, batch: Batch, line: str) -> None:
        """Note one line of a batch's results."""
        try:
            row = json.loads(line)
            key = row["custom_id"]
        except (ValueError, KeyError, TypeError):
            self.tally.errors["malformed"] += 1
            return
        request = batch.request(key)
        if request not in self.journal.open:
            return  # a repeated line, or none of ours
        response = row.get("response") or {}
        if response.get("status_code") == 200:
            reading = read_response(response.get("body"), batch.kind, batch.model)
        else:
            reading = Reading(None, _error(row.get("error"), response), None, batch.model)
        cost = cost_of(reading, Prices(*batch.prices), batch.worst[key])
        tokens_in, tokens_out = reading.tokens or (0, 0)
        outcome = reading.error.kind if reading.error else "ok"
        more: dict[str, Any] = {"tokens": [tokens_in, tokens_out], "served": reading.served}
        self.journal.done(request, key, outcome, cost, reading.answer, **more)
        self.tally.tokens_in += tokens_in
        self.tally.tokens_out += tokens_out
        if reading.error:
            self.failed(key, reading.error)
        else:
            self.tally.answered += 1
            self.tally.failed.pop(key, None)

    def failed(self, key: str, error: Fault) -> None:
        self.tally.errors[error.kind] += 1
        self.attempts[key] += 1
        self.tally.failed[key] = f"{error.kind} (attempt {self.attempts[key]}): {error.message}"
        if not error.retry:
            self.hopeless.add(key)

    async def patiently(self, client: AsyncOpenAI, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call that costs nothing, tried again while there is hope."""
        for attempt in range(self.limits.retries + 1):
            try:
                return await call()
            except Exception as error:  # whatever the client raises
                problem = error_of(error, client, self.ask.model)
            if problem.fatal or not problem.retry:
                break
            await asyncio.sleep(wait_before_retry(attempt, self.limits.backoff, problem.headers))
        said = problem.fatal or f"{client.base_url}: {problem.kind}: {problem.message}"
        raise UserError(f"{said}; batches under way go on, give the same command again to take them up")


async def find(client: AsyncOpenAI, name: str) -> str | None:
    """The endpoint's name of the batch that carries ours, None where there is none."""
    async for batch in client.batches.list(limit=100):
        if (batch.metadata or {}).get(_NAME) == name:
            return batch.id
    return None


def _error(error: Any, response: dict[str, Any]) -> Fault:
    body = response.get("body") or {}
    inner = body.get("error") if isinstance(body, dict) else None
    message = next((e["message"] for e in (error, inner) if isinstance(e, dict) and e.get("message")), "")
    status = response.get("status_code")
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 409, 425, 429):
        return Fault("rejected", f"{status}: {message}", retry=False)
    return Fault(str(status or "no result"), str(message)[:300])
