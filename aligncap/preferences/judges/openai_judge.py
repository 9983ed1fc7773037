"""Questions put to a language model behind an OpenAI-compatible endpoint, many at once.

Every request is noted in the journal before it leaves and again when its end is known, so that nothing that
was paid is lost or asked twice, and no more than the cap is ever spent, whenever the run is killed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aligncap.errors import UserError
from aligncap.preferences.judges.endpoint import Fault, connect, fault_of
from aligncap.preferences.judges.limits import Gate, Limits, Prices, wait_before_retry
from aligncap.preferences.judges.questions import Ask, BadAnswer, Question, distinct, parse_answer
from aligncap.preferences.judges.verdict_journal import VerdictJournal
from aligncap.progress import track

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CHAT = "/chat/completions"
MOST_FAILED_IN_A_ROW = 20  # an endpoint that fails at all of these is not asked on
LONGEST_ANSWER = 8  # times the usual room, for answers that were cut off


@dataclass
class Tally:
    """What a run did. `failed` says why questions have no answer, by key; `stopped` why it ended early."""

    asked: int = 0  # requests that left
    answered: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None


@dataclass(frozen=True)
class Reading:
    """A response of the endpoint: answer or fault, and the tokens billed (None when it does not say)."""

    answer: dict[str, Any] | None
    fault: Fault | None
    tokens: tuple[int, int] | None
    served: str


def ask_all(
    questions: Sequence[Question],
    ask: Ask,
    journal: VerdictJournal,
    limits: Limits,
    prices: Prices | None,
    base_url: str | None = None,
    api_key: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Tally:
    """Answer every question that the journal does not hold; the answers are in `journal.paid` afterwards.

    Args:
        prices: None counts no cost.
        say: is there for likeness with `run_batches`.

    Raises:
        UserError: no key, a key or model that is refused, no credit, an endpoint that cannot be reached, or
            a journal that cannot be written. Answers so far are kept in the journal.
    """
    run = _Run(questions, ask, journal, limits, prices)
    client = connect(base_url, api_key, limits.timeout)
    asyncio.run(run.all(client))
    if run.fatal:
        raise UserError(f"{run.fatal} ({len(journal.paid)} answers are kept in {journal.path})")
    return run.tally


def read_response(body: Any, kind: str, model: str) -> Reading:
    """What the body of an endpoint's 200 says, a chat completion or not."""
    body = body if isinstance(body, dict) else {}
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    counts: list[Any] = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    tokens = (counts[0], counts[1]) if all(isinstance(n, int) and n >= 0 for n in counts) else None
    served = str(body.get("model") or model)
    try:
        choice = body["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        refused, content = message.get("refusal"), message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        fault = Fault("malformed", "not a chat completion; a --base-url usually ends in /v1", billed=True)
        return Reading(None, fault, tokens, served)
    if refused or ended == "content_filter":
        said = " ".join(str(refused or ended).split())[:100]
        return Reading(None, Fault("refusal", f"the model refuses: {said}", billed=True), tokens, served)
    if ended == "length":
        return Reading(None, Fault("truncation", "the answer was cut off", billed=True), tokens, served)
    try:
        answer = parse_answer(kind, content if isinstance(content, str) else None)
    except BadAnswer as error:
        return Reading(None, Fault(error.kind, str(error), billed=True), tokens, served)
    return Reading(answer, None, tokens, served)


def cost_of(reading: Reading, prices: Prices, worst: float) -> float:
    """Dollars of a response; an answer whose size is not known may have cost what it could at most."""
    if reading.tokens:
        return prices.cost(*reading.tokens)
    return worst if reading.fault is None or reading.fault.billed else 0.0


def known_prices(prices: Prices | None, ask: Ask, limits: Limits) -> Prices:
    """Prices to count with, 0 when they are not known.

    Raises:
        UserError: there is a cap that could not be kept without them.
    """
    if limits.max_cost is not None and prices is None:
        raise UserError(
            f"no price is known for {ask.model!r}, so --max-cost cannot be kept; give --price-in and "
            "--price-out in dollars per million tokens (0 for a local server)"
        )
    return prices or Prices(0, 0)


class _Run:
    """One run's state: what is left, in flight, spent and counted."""

    def __init__(
        self,
        questions: Sequence[Question],
        ask: Ask,
        journal: VerdictJournal,
        limits: Limits,
        prices: Prices | None,
    ) -> None:
        wanted = distinct(questions)
        self.todo = deque(q for q in wanted if q.key not in journal.paid)
        self.ask, self.journal, self.limits = ask, journal, limits
        self.prices = known_prices(prices, ask, limits)
        self.tally = Tally(cached=len(wanted) - len(self.todo))
        self.fatal: str | None = None
        self.in_a_row = 0
        self.in_flight = 0
        self.gate = Gate(limits)
        self.settled = asyncio.Condition()
        self.bar = track(range(len(self.todo)), len(self.todo), "judging")

    async def all(self, client: AsyncOpenAI) -> None:
        workers = min(self.limits.concurrency, len(self.todo))
        self.journal.shared_sync = True
        try:
            async with client:
                await asyncio.gather(*(self.worker(client) for _ in range(workers)))
        finally:
            self.journal.shared_sync = False
            self.bar.close()  # type: ignore[attr-defined]

    async def worker(self, client: AsyncOpenAI) -> None:
        while self.todo and not self.over:
            question = self.todo.popleft()
            await self.answer(client, question)
            next(self.bar, None)

    @property
    def over(self) -> bool:
        return bool(self.fatal or self.tally.stopped)

    async def answer(self, client: AsyncOpenAI, question: Question) -> None:
        """Ask one question until it is answered or has failed for good."""
        room = self.ask.max_tokens
        for attempt in itertools.count():
            fault = await self.attempt(client, question, room)
            if fault is None:
                self.in_a_row = 0
                return
            if self.over:
                return
            nobody_there = fault.kind == "no connection" and not self.tally.answered and attempt >= 2
            if not fault.retry or nobody_there or attempt >= self.limits.retries:
                return self.fail(question, fault, attempt + 1)
            if fault.kind == "truncation":
                room = min(2 * room, LONGEST_ANSWER * self.ask.max_tokens)
            pause = wait_before_retry(attempt, self.limits.backoff, fault.headers)
            if fault.kind == "429":
                self.gate.pause(pause)
            await asyncio.sleep(pause)

    def fail(self, question: Question, fault: Fault, attempts: int) -> None:
        self.tally.failed[question.key] = f"{fault.kind} (attempt {attempts}): {fault.message}"
        self.in_a_row += 1
        if fault.kind == "no connection" and not self.tally.answered:
            self.fatal = f"{fault.message}; start the server or give another --base-url"
        elif self.in_a_row >= MOST_FAILED_IN_A_ROW:
            self.tally.stopped = (
                f"stopped: the last {self.in_a_row} questions all failed, the last with {fault.kind}: "
                f"{fault.message}"
            )

    async def attempt(self, client: AsyncOpenAI, question: Question, room: int) -> Fault | None:
        """Send one request; None when it was answered."""
        await self.gate.enter(question.tokens_guess() + room)
        worst = self.prices.cost(question.tokens_bound(), room)
        if self.over or not await self.affordable(worst):
            return Fault("not asked", "")
        request = self.journal.sent(question.key, worst)
        self.tally.asked += 1
        self.in_flight += 1
        try:
            await self.journal.synced()
            # The plain request: the answer is checked here, and typed objects take half of the time.
            body = await client.post(CHAT, cast_to=object, body=question.body(self.ask, room))
        except UserError:  # of the journal
            raise
        except Exception as error:  # whatever the client raises, the answer is lost
            reading = Reading(None, fault_of(error, client, self.ask.model), None, self.ask.model)
        else:
            reading = read_response(body, question.kind, self.ask.model)
        finally:
            self.in_flight -= 1
        self.settle(request, question, reading, worst)
        async with self.settled:
            self.settled.notify_all()
        await self.journal.synced()
        return reading.fault

    def settle(self, request: str, question: Question, reading: Reading, worst: float) -> None:
        fault = reading.fault
        tokens_in, tokens_out = reading.tokens or (0, 0)
        outcome = fault.kind if fault else "ok"
        more = {"tokens": [tokens_in, tokens_out], "served": reading.served}
        cost = cost_of(reading, self.prices, worst)
        self.journal.done(request, question.key, outcome, cost, reading.answer, **more)
        self.tally.tokens_in += tokens_in
        self.tally.tokens_out += tokens_out
        if fault is None:
            self.tally.answered += 1
            return
        self.tally.faults[fault.kind] += 1
        self.fatal = self.fatal or fault.fatal

    async def affordable(self, worst: float) -> bool:
        """Whether the cap leaves room for a request's worst case, once others have settled if need be."""
        cap = self.limits.max_cost
        if cap is None:
            return True
        async with self.settled:
            while self.journal.spent + worst > cap and self.in_flight:
                await self.settled.wait()
        if self.journal.spent + worst > cap:
            self.tally.stopped = (
                f"stopped at the cap: ${self.journal.spent:.4f} of ${cap:.4f} are spent, the next request "
                f"could cost ${worst:.4f}; raise --max-cost to go on"
            )
            return False
        return True
