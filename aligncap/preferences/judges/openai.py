"""A language model as judge: questions put to an OpenAI-compatible endpoint, many at once.

What a question costs is kept in a journal (see `endpoint`), so that nothing that was paid is lost or asked
twice, and no more than the cap is ever spent, whenever the run is killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import os
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from aligncap.preferences.judges import CRITERIA, Item
from aligncap.preferences.judges.endpoint import (
    Failure,
    Gate,
    Ledger,
    OpenAIOptions,
    Prices,
    VerdictJournal,
    failure_of,
    read_ledger,
)
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, load_data
from aligncap.utils.openai_endpoint import URL_VARIABLE, key_and_url, room_option
from aligncap.utils.progress import track

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MOST_FAILED_IN_A_ROW = 20  # an endpoint that fails at all of these is not asked on
LONGEST_WAIT = 300.0  # seconds; an endpoint that asks for more is asked again after these
LONGEST_ANSWER = 8  # times the usual room, for answers that were cut off
_log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------- questions

# Listed one by one: strict schemas know `enum` everywhere, `minimum` and `maximum` only here and there.
_Score = Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
_STRICT = ConfigDict(extra="forbid", strict=True)
# The reason first: a model that has said why scores accordingly.
_FIELDS: Any = {"reason": (str, ...)} | {name: (_Score, ...) for name in CRITERIA}


class Winner(BaseModel):
    """The answer to a comparison."""

    model_config = _STRICT
    reason: str
    winner: Literal["first", "second", "tie"]


_ANSWERS: dict[str, type[BaseModel]] = {
    "score": create_model("CaptionScores", __config__=_STRICT, **_FIELDS),
    "compare": Winner,
}


@dataclass(frozen=True)
class Question:
    """One request. `key` is its content hash: equal keys have one answer, paid once."""

    key: str
    kind: str  # "score" or "compare"
    user: str
    prompt_hash: str

    def body(self, options: OpenAIOptions, room: int) -> Row:
        """The request's JSON, as /v1/chat/completions takes it, for an answer of at most `room` tokens."""
        messages = [("system", system_prompt(self.kind)), ("user", self.user)]
        body = {
            "model": options.model,
            "messages": [{"role": role, "content": content} for role, content in messages],
            room_option(options.base_url or os.environ.get(URL_VARIABLE)): room,
            "response_format": response_format(self.kind),
        }
        return body if options.temperature is None else body | {"temperature": options.temperature}

    def _text(self) -> str:
        return f"{system_prompt(self.kind)}{self.user}{json.dumps(response_format(self.kind))}"

    def tokens_bound(self) -> int:
        """Input tokens that no byte-level vocabulary exceeds: one a byte, and room for what frames a chat."""
        return len(self._text().encode()) + 64

    def tokens_guess(self) -> int:
        """Input tokens to be expected: one for four letters of Latin script, one for each character else."""
        text = self._text()
        plain = len(text.encode("ascii", "ignore"))
        return plain // 4 + len(text) - plain + 16


def question(captions: Sequence[Item], options: OpenAIOptions) -> Question:
    """The question for the scores of one caption, or which of two of one clip is better, in this order."""
    kind, names = ("score", ["caption"]) if len(captions) == 1 else ("compare", ["first", "second"])
    quoted = {name: _quoted(item.caption) for name, item in zip(names, captions, strict=True)}
    user = load_data("judge.yaml")[kind]["user"].format(evidence=evidence(captions[0]), **quoted)
    prompt = prompt_hash(kind, options)
    key = hashlib.sha256(f"{prompt}\n{options.model}\n{user}".encode()).hexdigest()[:40]
    return Question(key, kind, user, prompt)


def prompt_hash(kind: str, options: OpenAIOptions) -> str:
    """Twelve hex digits over what the judge is told: rubric, schema, evidence lines, model, temperature.

    The room for an answer is left out: it decides whether there is an answer, not which.
    """
    data = load_data("judge.yaml")
    texts = [system_prompt(kind), data[kind]["user"], data["evidence"], response_format(kind)]
    parts = [*texts, options.model, options.temperature]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@cache
def system_prompt(kind: str) -> str:
    """The system message of a kind of question, with the rubric written out."""
    data = load_data("judge.yaml")
    lines = "\n".join(f"- {name}: {data['rubric'][name]}" for name in CRITERIA)
    return data[kind]["system"].format(rubric=lines, keys=", ".join(f'"{name}"' for name in CRITERIA))


@cache
def response_format(kind: str) -> Row:
    """The strict JSON schema of an answer."""
    model = _ANSWERS[kind]
    schema = {"name": model.__name__, "strict": True, "schema": model.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}


def evidence(item: Item) -> str:
    """What is known of the clip, as text."""
    utterance = item.utterance
    values: dict[str, str | None] = {
        "instruction": load_data("templates.yaml")["instruction"],
        "references": "\n".join(f"- {_quoted(caption)}" for caption in item.references),
        "emotion": utterance.emotion,
        "gender": utterance.gender,
        "measured": "; ".join(f"{name} {word}" for name, word in utterance.cue_words.items()),
        "transcript": _quoted(utterance.transcript) if utterance.transcript else None,
    }
    lines: dict[str, str] = load_data("judge.yaml")["evidence"]
    return "\n".join(lines[name].format(value=value) for name, value in values.items() if value)


def _quoted(text: str) -> str:
    """Quotation marks and line breaks of a caption cannot end its quotation."""
    return json.dumps(text, ensure_ascii=False)


# --------------------------------------------------------------------------------------------------- answers


def billing(body: Any, model: str) -> tuple[str, tuple[int, int] | None]:
    """Which model answered, and the tokens in and out that are billed (None: the endpoint does not say)."""
    body = body if isinstance(body, dict) else {}
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    a, b = usage.get("prompt_tokens"), usage.get("completion_tokens")
    tokens = (a, b) if isinstance(a, int) and isinstance(b, int) and min(a, b) >= 0 else None
    return str(body.get("model") or model), tokens


def answer_in(body: Any, kind: str) -> Row:
    """The answer in the body of an endpoint's 200, a chat completion or not.

    What stands around the outermost braces is passed over, as a fence of JSON.

    Raises:
        Failure: there is none.
    """
    try:
        choice = body["choices"][0]
        refused, content = choice["message"].get("refusal"), choice["message"].get("content")
        ended = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Failure("malformed", "not a chat completion; a --base_url usually ends in /v1") from None
    if refused or ended == "content_filter":
        why = " ".join(str(refused or ended).split())[:100]
        raise Failure("refusal", f"the model refuses: {why}")
    if ended == "length":
        raise Failure("truncation", "the answer was cut off")
    text = content if isinstance(content, str) else ""
    try:
        value = json.loads(text[text.find("{") : text.rfind("}") + 1])
    except (ValueError, RecursionError):
        raise Failure("malformed", f"no JSON object in the answer {text[:60]!r}") from None
    try:
        answer = _ANSWERS[kind].model_validate(value).model_dump()
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in found["loc"])
        raise Failure("schema", f"{where}: {found['msg']}".lstrip(": ")) from None
    # Half of a surrogate pair is valid JSON and no text that could be written to a file.
    return answer | {"reason": answer["reason"].encode("utf-8", "replace").decode("utf-8")}


# -------------------------------------------------------------------------------------------------- requests


def ask_all(
    questions: Sequence[Question], options: OpenAIOptions, journal: Path
) -> tuple[list[Row | str], list[str]]:
    """Answer every question, from the journal where it was paid already.

    Returns:
        Of each question the journal's line ("answer", "served") or why there is none; and notes on the run.

    Raises:
        UserError: no key, a key or model that is refused, no credit, an endpoint that cannot be reached, or
            a journal that cannot be written. Answers so far are kept in the journal.
    """
    from openai import AsyncOpenAI

    key, url = key_and_url("the judge", options.base_url, None)
    client = AsyncOpenAI(api_key=key, base_url=url, timeout=options.timeout, max_retries=0)
    try:
        with VerdictJournal(journal) as book:
            for line in _plan(questions, options, journal, book):
                _log.info(line)
            run = _Run(questions, options, book)
            before, cached = book.spent, len({q.key for q in questions} & book.paid.keys())
            asyncio.run(run.all(client))
    except OSError as error:  # those of the endpoint are failures of its requests
        remedy = "free space or name another journal with --cache"
        raise UserError(f"{journal}: cannot be written: {error.strerror or error}; {remedy}") from error
    if run.fatal:
        raise UserError(f"{run.fatal} ({len(book.paid)} answers are kept in {journal})")
    cost = f", ${book.spent - before:.4f} (${book.spent:.4f} in all, lost answers at most)"
    notes = [
        f"{run.asked} requests, {cached} answers from {journal}, {run.tokens[0]:,} tokens in and "
        f"{run.tokens[1]:,} out" + (cost if options.prices else "")
    ]
    if run.errors:
        notes.append("errors: " + ", ".join(f"{count} {kind}" for kind, count in run.errors.most_common()))
    unasked = "not asked, the run ended before its turn"
    answers = [book.paid.get(q.key) or run.failed.get(q.key, unasked) for q in questions]
    return answers, notes + ([run.stopped] if run.stopped else [])


class _Run:
    """One run's state: what is left, in flight, spent and counted."""

    def __init__(self, questions: Sequence[Question], options: OpenAIOptions, book: VerdictJournal) -> None:
        self.todo = deque({q.key: q for q in questions if q.key not in book.paid}.values())
        self.options, self.journal = options, book
        self.prices = options.prices or Prices(0, 0)
        self.gate = Gate(options.rpm, options.tpm)
        self.settled = asyncio.Condition()
        self.asked = self.answered = self.in_flight = self.in_a_row = 0
        self.tokens = [0, 0]
        self.errors: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.fatal: str | None = None  # why no other request can fare better
        self.stopped: str | None = None  # why the run ended early

    async def all(self, client: AsyncOpenAI) -> None:
        """Answer all questions that the journal does not hold, several at a time."""
        workers = min(self.options.concurrency, len(self.todo))

        async def work(bar: Iterator[int]) -> None:
            while self.todo and not self.over:
                await self.answer(client, self.todo.popleft())
                next(bar, None)

        with closing(track(range(len(self.todo)), len(self.todo), "judging")) as bar:  # type: ignore[type-var]
            async with client:
                await asyncio.gather(*(work(bar) for _ in range(workers)))

    @property
    def over(self) -> bool:
        return bool(self.fatal or self.stopped)

    async def answer(self, client: AsyncOpenAI, question: Question) -> None:
        """Ask one question until it is answered or has failed for good."""
        options, room = self.options, self.options.max_tokens
        for attempt in itertools.count():
            error = await self.attempt(client, question, room)
            if error is None:
                self.in_a_row = 0
                return
            if self.over:
                return
            nobody_there = error.kind == "no connection" and not self.answered
            if not error.retry or attempt >= options.retries or (nobody_there and attempt >= 2):
                self.failed[question.key] = f"{error.kind} (attempt {attempt + 1}): {error.message}"
                self.in_a_row += 1
                if nobody_there:
                    self.fatal = f"{error.message}; start the server or give another --base_url"
                elif self.in_a_row >= MOST_FAILED_IN_A_ROW:
                    last = f"the last with {error.kind}: {error.message}"
                    self.stopped = f"stopped: the last {self.in_a_row} questions all failed, {last}"
                return
            if error.kind == "truncation":
                room = min(2 * room, LONGEST_ANSWER * options.max_tokens)
            pause = error.pause
            if pause is None:
                pause = options.backoff * 2**attempt * random.uniform(0.5, 1.0)
            pause = min(pause, LONGEST_WAIT)
            if error.kind == "429":
                self.gate.pause(pause)
            await asyncio.sleep(pause)

    async def attempt(self, client: AsyncOpenAI, question: Question, room: int) -> Failure | None:
        """Send one request and note what came of it; None when it was answered."""
        await self.gate.enter(question.tokens_guess() + room)
        worst = self.prices.cost(question.tokens_bound(), room)
        if self.over or not await self.affordable(worst):
            return Failure("not asked", "")
        model = str(self.options.model)
        request = self.journal.sent(question.key, worst)
        self.asked += 1
        self.in_flight += 1
        answer: Row | None = None
        failure: Failure | None = None
        served, tokens = model, None
        try:
            # The plain request: the answer is checked here, and typed objects take half of the time.
            body = question.body(self.options, room)
            reply = await client.post("/chat/completions", cast_to=object, body=body)
            served, tokens = billing(reply, model)
            answer = answer_in(reply, question.kind)
        except Failure as error:  # of `answer_in`: there was an answer to pay for
            failure, error.billed = error, True
        except Exception as error:  # whatever the client raises, the answer is lost
            failure = failure_of(error, client, model)
        finally:
            self.in_flight -= 1
        if tokens:
            cost = self.prices.cost(*tokens)
        else:  # what the request may have cost at most
            cost = worst if failure is None or failure.billed else 0.0
        outcome, tokens = failure.kind if failure else "ok", tokens or (0, 0)
        self.journal.done(request, question.key, outcome, cost, answer, tokens=list(tokens), served=served)
        self.tokens = [a + b for a, b in zip(self.tokens, tokens, strict=True)]
        if failure is None:
            self.answered += 1
        else:
            self.errors[failure.kind] += 1
            self.fatal = self.fatal or failure.fatal
        async with self.settled:
            self.settled.notify_all()
        return failure

    async def affordable(self, worst: float) -> bool:
        """Whether the cap leaves room for a request's worst case, once others have settled if need be."""
        cap = self.options.max_cost
        if cap is None:
            return True
        async with self.settled:
            await self.settled.wait_for(lambda: self.journal.spent + worst <= cap or not self.in_flight)
        if self.journal.spent + worst <= cap:
            return True
        self.stopped = (
            f"stopped at the cap: ${self.journal.spent:.4f} of ${cap:.4f} are spent, the next request "
            f"could cost ${worst:.4f}; raise --max_cost to go on"
        )
        return False


def plan_lines(questions: Sequence[Question], options: OpenAIOptions, journal: Path | None) -> list[str]:
    """What a run would send and cost, and one whole question. Nothing is sent."""
    ledger = read_ledger(journal) if journal else Ledger()
    lines = _plan(questions, options, journal, ledger)
    if questions:
        shown = next((q for q in questions if q.key not in ledger.paid), questions[0])
        lines += ["", "[system]", system_prompt(shown.kind), "", "[user]", shown.user]
    return lines


def _plan(
    questions: Sequence[Question], options: OpenAIOptions, journal: Path | None, ledger: Ledger
) -> list[str]:
    wanted = {question.key: question for question in questions}
    todo = [question for key, question in wanted.items() if key not in ledger.paid]
    tokens_in = sum(q.tokens_guess() for q in todo)
    tokens_out = load_data("judge.yaml")["usual_answer_tokens"] * len(todo)
    paid = f" ({len(wanted) - len(todo)} answers are in {journal})" if len(todo) < len(wanted) else ""
    first = (
        f"{len(questions)} questions to {options.model}, {len(todo)} requests to send{paid}, about "
        f"{tokens_in:,} tokens in and {tokens_out:,} out"
    )
    prices = options.prices
    if prices is None:
        return [first, f"cost unknown: no price for {options.model!r}; give --price_in and --price_out"]
    most = prices.cost(sum(q.tokens_bound() for q in todo), options.max_tokens * len(todo))
    line = f"about ${prices.cost(tokens_in, tokens_out):.4f}, ${most:.4f} if every answer took all its room"
    if ledger.spent:
        line += f"; ${ledger.spent:.4f} are spent already"
    if options.max_cost is not None:
        line += f"; the cap is ${options.max_cost:.4f}"
    return [first, line]
