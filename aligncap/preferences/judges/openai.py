"""Questions put to a language model behind an OpenAI-compatible endpoint, many at once.

Every request is noted in the journal before it leaves and again when its end is known, so that nothing that
was paid is lost or asked twice, and no more than the cap is ever spent, whenever the run is killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from aligncap.preferences.verdicts import CRITERIA, Item, Verdict, weighted_overall
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import load_data
from aligncap.utils.openai_endpoint import KEY_VARIABLE, URL_VARIABLE, key_and_url
from aligncap.utils.progress import track

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of the transport: nothing left the machine
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


@dataclass(frozen=True)
class Fault:
    """A failed request.

    `kind` is how it is counted. `fatal` is a message when no other request can fare better. `billed`: it may
    have been paid for all the same. A error that will not go away is not `retry`.
    """

    kind: str
    message: str
    fatal: str | None = None
    retry: bool = True
    billed: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


def connect(base_url: str | None, api_key: str | None, timeout: float) -> AsyncOpenAI:
    """A client that makes one attempt a call; retries are the caller's, who counts them.

    Raises:
        UserError: no key, or an address that is none.
    """
    from openai import AsyncOpenAI

    key, url = key_and_url("the judge", base_url, api_key)
    return AsyncOpenAI(api_key=key, base_url=url, timeout=timeout, max_retries=0)


def limit_field(base_url: str | None) -> str:
    """Name under which an endpoint takes the greatest length of an answer."""
    host = urlsplit(base_url or os.environ.get(URL_VARIABLE) or "https://api.openai.com/v1").hostname or ""
    return "max_completion_tokens" if host.endswith((".openai.com", ".azure.com")) else "max_tokens"


def error_of(error: Exception, client: AsyncOpenAI, model: str) -> Fault:
    """What an exception of the client means. Messages are our own or shorn of the key: servers quote it."""
    import openai

    url = str(client.base_url)
    if isinstance(error, openai.APITimeoutError):
        never = type(error.__cause__).__name__ in _NEVER_SENT
        return Fault("time-out", "no answer in time", billed=not never)
    if isinstance(error, openai.APIConnectionError):
        if type(error.__cause__).__name__ in _NEVER_SENT:
            return Fault("no connection", f"{url} cannot be reached")
        return Fault("dropped connection", "the connection broke", billed=True)
    if not isinstance(error, openai.APIStatusError):
        # a body that is no JSON, or JSON of another kind
        said = f"the endpoint's answer cannot be read ({type(error).__name__})"
        return Fault("malformed", said, billed=True)
    said = _shorn(error.message, client.api_key)
    headers = error.response.headers
    match error.status_code:
        case 401 | 403:
            fatal = f"{url} refuses the key; set {KEY_VARIABLE} to a valid one"
            return Fault("refused key", said, fatal)
        case 404:
            fatal = (
                f"{url} knows no model {model!r} (or is no such endpoint); give another --model, or a "
                "--base-url, which usually ends in /v1"
            )
            return Fault("not found", said, fatal)
        case 402:
            return Fault("no credit", said, f"{url} wants to be paid: {said}")
        case 429 if error.code in _NO_CREDIT:
            return Fault("no credit", said, f"{url} has no credit left for this key: {said}")
        case 408 | 409 | 425 | 429:
            return Fault(str(error.status_code), said, headers=headers)
        case status if status >= 500:
            return Fault("500" if status == 500 else "5xx", said, headers=headers)
    return Fault("rejected", f"{error.status_code}: {said}", retry=False)


def _shorn(message: str, key: str) -> str:
    return " ".join(message.replace(key, "\u2026").split())[:300]


LONGEST_WAIT = 300.0  # seconds; an endpoint that asks for more is asked again after these


@dataclass(frozen=True)
class Limits:
    """Limits of a run.

    `requests_per_minute` and `tokens_per_minute` None are no limit. `retries` are further attempts of a
    failed request, `timeout` seconds of one, `backoff` seconds before the first retry (doubled each time,
    jittered). `max_cost` is in US dollars, over all that the journal records. `poll` is the time in seconds
    between two looks at a batch.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int = 8
    retries: int = 6
    timeout: float = 60.0
    backoff: float = 1.0
    max_cost: float | None = None
    poll: float = 30.0

    def __post_init__(self) -> None:
        positive = {
            "rpm": self.requests_per_minute,
            "tpm": self.tokens_per_minute,
            "concurrency": self.concurrency,
            "timeout": self.timeout,
            "poll": self.poll,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise UserError(f"--{name} {value}: must be above 0")
        for name, value in {"retries": self.retries, "max-cost": self.max_cost}.items():
            if value is not None and not value >= 0:
                raise UserError(f"--{name} {value}: must not be below 0")


class Pace:
    """A token bucket without burst: so many units pass a minute, evenly spaced, first come first served."""

    def __init__(self, per_minute: float | None) -> None:
        self._rate = per_minute / 60 if per_minute else None
        self._next = 0.0

    def reserve(self, amount: float = 1.0) -> float:
        """Seconds until `amount` may pass; its place is taken."""
        if self._rate is None:
            return 0.0
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + amount / self._rate
        return start - now


class Gate:
    """Where requests wait: for their place by number and by tokens, and while the endpoint wants a pause."""

    def __init__(self, limits: Limits) -> None:
        self._requests = Pace(limits.requests_per_minute)
        self._tokens = Pace(limits.tokens_per_minute)
        self._paused_until = 0.0

    def pause(self, seconds: float) -> None:
        """Let nothing pass for some seconds: more requests would be refused too."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def enter(self, tokens: int) -> None:
        await asyncio.sleep(max(self._requests.reserve(), self._tokens.reserve(tokens)))
        while (rest := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(rest)


def wait_before_retry(attempt: int, backoff: float, headers: Mapping[str, str] | None = None) -> float:
    """Seconds to wait after attempt 0, 1, ... failed: as the endpoint asks, else doubled, with jitter."""
    asked = retry_after(headers or {})
    if asked is not None:
        return min(asked, LONGEST_WAIT)
    return min(backoff * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for (milliseconds, seconds or a date); None without a usable one."""
    try:
        if value := headers.get("retry-after-ms"):
            return max(float(value) / 1000, 0.0)
        if not (value := headers.get("retry-after")):
            return None
        try:
            return max(float(value), 0.0)
        except ValueError:
            return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens."""

    tokens_in: float
    tokens_out: float

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6

    def scaled(self, share: float) -> Prices:
        return Prices(self.tokens_in * share, self.tokens_out * share)


def prices_of(model: str, price_in: float | None = None, price_out: float | None = None) -> Prices | None:
    """Prices of a model: the given ones, else those of data/judge.yaml; None when they are not known.

    Raises:
        UserError: one price of two, or a negative one.
    """
    if (price_in is None) != (price_out is None):
        raise UserError("--price-in and --price-out go together: give both, in dollars per million tokens")
    if price_in is not None and price_out is not None:
        if min(price_in, price_out) < 0:
            raise UserError("--price-in and --price-out must not be below 0")
        return Prices(price_in, price_out)
    known: dict[str, list[float]] = load_data("judge.yaml")["prices"]
    name, _, tail = model.partition("-20")
    dated = tail.replace("-", "").isdigit()
    found = known.get(model) or (known.get(name) if dated else None)
    return Prices(*found) if found else None


FILE = "judge.yaml"
# Listed one by one: strict schemas know `enum` everywhere, `minimum` and `maximum` only here and there.
_Score = Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
_STRICT = ConfigDict(extra="forbid", strict=True)
# The reason first: a model that has said why scores accordingly.
_FIELDS: Any = {"reason": (str, ...)} | {name: (_Score, ...) for name in CRITERIA}
Scores: type[BaseModel] = create_model("CaptionScores", __config__=_STRICT, **_FIELDS)


class Winner(BaseModel):
    """The answer to a comparison."""

    model_config = _STRICT
    reason: str
    winner: Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Ask:
    """How questions are put: to which model, how freely it answers, and how long an answer may be.

    `temperature` None leaves it to the endpoint (models that reason refuse any). `max_tokens` is not part of
    the prompt hash: it decides whether there is an answer, not which. `limit_field` is the endpoint's name
    for it: OpenAI's new models know "max_completion_tokens" alone, many compatible servers "max_tokens".
    """

    model: str
    temperature: float | None = 0.0
    max_tokens: int = 400
    limit_field: str = "max_completion_tokens"


@dataclass(frozen=True)
class Question:
    """One request. `key` is its content hash: equal keys have one answer, paid once."""

    key: str
    kind: str  # "score" or "compare"
    system: str
    user: str
    prompt_hash: str

    def body(self, ask: Ask, max_tokens: int | None = None) -> dict[str, Any]:
        """The request's JSON, as /v1/chat/completions takes it."""
        body: dict[str, Any] = {
            "model": ask.model,
            "messages": [
                {"role": "system", "content": self.system},
                {"role": "user", "content": self.user},
            ],
            ask.limit_field: max_tokens or ask.max_tokens,
            "response_format": response_format(self.kind),
        }
        if ask.temperature is not None:
            body["temperature"] = ask.temperature
        return body

    def tokens_bound(self) -> int:
        """Input tokens that no byte-level vocabulary exceeds: one a byte, and room for what frames a chat."""
        schema = json.dumps(response_format(self.kind))
        return len(f"{self.system}{self.user}{schema}".encode()) + 64

    def tokens_guess(self) -> int:
        """Input tokens to be expected: one for four letters of Latin script, one for each character else."""
        text = f"{self.system}{self.user}{json.dumps(response_format(self.kind))}"
        plain = len(text.encode("ascii", "ignore"))
        return plain // 4 + len(text) - plain + 16


class BadAnswer(Exception):
    """An answer that holds no verdict. `kind` is "malformed" or "schema"."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def scoring_question(item: Item, ask: Ask) -> Question:
    """The question for the scores of one caption."""
    user = _texts("score")["user"].format(evidence=evidence(item), caption=_quoted(item.caption))
    return _question("score", user, ask)


def comparing_question(first: Item, second: Item, ask: Ask) -> Question:
    """The question which of two captions of one clip is better, in this order."""
    user = _texts("compare")["user"].format(
        evidence=evidence(first), first=_quoted(first.caption), second=_quoted(second.caption)
    )
    return _question("compare", user, ask)


def prompt_hash(kind: str, ask: Ask) -> str:
    """Twelve hex digits over what the judge is told: rubric, schema, evidence lines, model, temperature."""
    parts = [
        system_prompt(kind),
        _texts(kind)["user"],
        load_data(FILE)["evidence"],
        response_format(kind),
        ask.model,
        ask.temperature,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@cache
def system_prompt(kind: str) -> str:
    """The system message of a kind of question, with the rubric written out."""
    rubric: dict[str, str] = load_data(FILE)["rubric"]
    lines = "\n".join(f"- {name}: {rubric[name]}" for name in CRITERIA)
    keys = ", ".join(f'"{name}"' for name in CRITERIA)
    return _texts(kind)["system"].format(rubric=lines, keys=keys)


@cache
def response_format(kind: str) -> dict[str, Any]:
    """The strict JSON schema of an answer."""
    model = _model(kind)
    schema = {"name": model.__name__, "strict": True, "schema": model.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}


def evidence(item: Item) -> str:
    """What is known of the clip, as text."""
    utterance = item.utterance
    measured = "; ".join(f"{name} {word}" for name, word in utterance.cue_words.items())
    values: dict[str, str | None] = {
        "instruction": item.instruction,
        "references": "\n".join(f"- {_quoted(caption)}" for caption in item.references),
        "emotion": utterance.emotion,
        "gender": utterance.gender,
        "measured": measured,
        "transcript": _quoted(utterance.transcript) if utterance.transcript else None,
    }
    lines: dict[str, str] = load_data(FILE)["evidence"]
    return "\n".join(lines[name].format(value=value) for name, value in values.items() if value)


def parse_answer(kind: str, text: str | None) -> dict[str, Any]:
    """The answer's object.

    What stands around the outermost braces is passed over: some endpoints fence JSON.

    Raises:
        BadAnswer: no JSON, or not of the schema.
    """
    text = text or ""
    start, end = text.find("{"), text.rfind("}")
    try:
        value = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        value = None
    if value is None:
        raise BadAnswer("malformed", f"no JSON object in the answer {text[:60]!r}")
    try:
        answer = _model(kind).model_validate(value).model_dump()
        # Half of a surrogate pair is valid JSON and no text that could be written to a file.
        return {k: _written(v) if isinstance(v, str) else v for k, v in answer.items()}
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in found["loc"])
        raise BadAnswer("schema", f"{where}: {found['msg']}".lstrip(": ")) from None


def _written(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def verdict_of(answer: Mapping[str, Any], served: str, question_hash: str, ask: Ask) -> Verdict:
    """Verdict of a scoring answer; `served` is the model as the endpoint named it."""
    scores = {name: answer[name] for name in CRITERIA}
    return Verdict(
        scores=scores,
        overall=weighted_overall(scores),
        reason=answer["reason"],
        judge=f"openai:{ask.model}",
        version=served,
        prompt_hash=question_hash,
    )


def distinct(questions: Sequence[Question]) -> list[Question]:
    """The first question of each key, in order."""
    return list({question.key: question for question in reversed(questions)}.values())[::-1]


def _question(kind: str, user: str, ask: Ask) -> Question:
    told = prompt_hash(kind, ask)
    key = hashlib.sha256(f"{told}\n{ask.model}\n{user}".encode()).hexdigest()[:40]
    return Question(key=key, kind=kind, system=system_prompt(kind), user=user, prompt_hash=told)


def _model(kind: str) -> type[BaseModel]:
    return Scores if kind == "score" else Winner


def _texts(kind: str) -> dict[str, str]:
    return load_data(FILE)[kind]


def _quoted(text: str) -> str:
    """Quotation marks and line breaks of a caption cannot end its quotation."""
    return json.dumps(text, ensure_ascii=False)


_HEAD = json.dumps({"journal": "aligncap verdicts", "format": 1})


@dataclass(frozen=True)
class Paid:
    """An answer that was paid for; `served` is the model as the endpoint named it."""

    answer: dict[str, Any]
    served: str


@dataclass
class Batch:
    """A batch under way; `remote` is the endpoint's name for it, None until that is known.

    `worst` are the worst costs by key; `kind`, `model` and `prices` (in, out) are those of its questions.
    """

    name: str
    worst: dict[str, float]
    kind: str
    model: str
    prices: tuple[float, float]
    remote: str | None = None

    def request(self, key: str) -> str:
        """Name of one of its requests."""
        return f"{self.name}/{key}"


@dataclass
class Ledger:
    """What the lines of a journal come to.

    `paid` are the answers by key; `settled` dollars were spent for sure, `open` are the worst cases of
    requests whose end is not known.
    """

    paid: dict[str, Paid] = field(default_factory=dict)
    open: dict[str, float] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)
    settled: float = 0.0

    @property
    def spent(self) -> float:
        """Dollars spent at most: what is settled, and the worst case of what is open."""
        return self.settled + sum(self.open.values())

    def take(self, event: dict[str, Any]) -> None:
        """Add one line."""
        match event["event"]:
            case "sent":
                self.open[event["request"]] = event["cost"]
            case "done":
                self.open.pop(event["request"], None)
                self.settled += event["cost"]
                if event["outcome"] == "ok":
                    self.paid[event["key"]] = Paid(event["answer"], event["served"])
            case "batch":
                batch = Batch(
                    event["batch"],
                    dict(event["requests"]),
                    event["kind"],
                    event["model"],
                    tuple(event["prices"]),
                )
                self.batches[batch.name] = batch
                self.open |= {batch.request(key): cost for key, cost in batch.worst.items()}
            case "batch-created":
                self.batches[event["batch"]].remote = event["id"]
            case "batch-done":
                batch = self.batches.pop(event["batch"])
                for key in batch.worst:
                    self.open.pop(batch.request(key), None)


class VerdictJournal(Ledger):
    """A journal opened for writing by this process alone.

    `shared_sync`: writers await `synced` instead of a sync of their own.

    Raises:
        UserError: another process holds the journal, it is no journal, or cannot be written.
        UserErrors: broken lines before the last.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._file: IO[bytes] | None = None
        self._written = self._synced = 0  # lines
        self._syncing: asyncio.Task[None] | None = None
        self.shared_sync = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(f"{self.path}.lock", timeout=0)
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.path}: another process is judging with this journal; wait for it, or name another "
                "journal with --cache"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> VerdictJournal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.release()

    async def synced(self) -> None:
        """Return when all lines written so far are on disk; one sync serves all tasks that wait.

        Raises:
            UserError: the disk is full.
        """
        wanted = self._written
        while self._synced < wanted:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)

    def sent(self, key: str, cost: float, **more: Any) -> str:
        """Note that a request is about to leave; returns its name."""
        request = uuid.uuid4().hex[:16]
        self._write({"event": "sent", "request": request, "key": key, "cost": cost} | more)
        return request

    def done(
        self,
        request: str,
        key: str,
        outcome: str,
        cost: float,
        answer: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Note what came of a request, and what it cost."""
        line = {"event": "done", "request": request, "key": key, "outcome": outcome, "cost": cost} | more
        self._write(line | ({"answer": answer} if answer is not None else {}))

    def batch(
        self, requests: list[tuple[str, float]], kind: str, model: str, prices: tuple[float, float]
    ) -> Batch:
        """Note that a batch of (key, worst cost) is about to leave."""
        name = uuid.uuid4().hex[:16]
        event = {"event": "batch", "batch": name, "requests": requests}
        self._write(event | {"kind": kind, "model": model, "prices": prices})
        return self.batches[name]

    def batch_created(self, batch: Batch, remote: str) -> None:
        """Note the endpoint's name of a batch."""
        self._write({"event": "batch-created", "batch": batch.name, "id": remote})

    def batch_done(self, batch: Batch, outcome: str) -> None:
        """Note that no more answers of a batch will come."""
        self._write({"event": "batch-done", "batch": batch.name, "outcome": outcome})

    def _open(self) -> None:
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if not whole and not f"{_HEAD}\n".encode().startswith(content):
                raise self._foreign()
            for event in _events(self.path, whole):
                self.take(event)
            self._file = self.path.open("r+b" if content else "wb")
            self._file.truncate(len(whole))
            self._file.seek(0, os.SEEK_END)
            if not whole:
                self._append(_HEAD)
        except OSError as error:
            raise self._unwritable(error) from error

    def _foreign(self) -> UserError:
        return UserError(f"{self.path}: not a journal of verdicts; name another file with --cache")

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path}: cannot be written: {error.strerror or error}; free space or name another journal "
            "with --cache"
        )

    def _write(self, event: dict[str, Any]) -> None:
        try:
            self._append(json.dumps(event | {"time": round(time.time(), 3)}))
        except OSError as error:
            raise self._unwritable(error) from error
        self.take(event)

    def _append(self, line: str) -> None:
        assert self._file is not None
        self._file.write(f"{line}\n".encode())
        self._file.flush()
        self._written += 1
        if not self.shared_sync:
            os.fsync(self._file.fileno())
            self._synced = self._written

    async def _sync(self) -> None:
        assert self._file is not None
        until = self._written
        try:
            await asyncio.to_thread(os.fsync, self._file.fileno())
            self._synced = until
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self._syncing = None


def read_ledger(path: str | Path) -> Ledger:
    """What a journal comes to, without opening it for writing; empty where there is none.

    Raises:
        UserError, UserErrors: as `read_events`.
    """
    ledger = Ledger()
    for event in read_events(path) if Path(path).exists() else []:
        ledger.take(event)
    return ledger


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """Events of a journal, also while another process writes it.

    Raises:
        UserError: it is no journal.
        UserErrors: broken lines before the last.
    """
    content = Path(path).read_bytes()
    return _events(Path(path), content[: content.rfind(b"\n") + 1])


def _events(path: Path, content: bytes) -> list[dict[str, Any]]:
    lines = content.split(b"\n")[:-1]
    if lines and lines[0].decode("utf-8", "replace") != _HEAD:
        raise UserError(f"{path}: not a journal of verdicts; name another file with --cache")
    events: list[dict[str, Any]] = []
    errors: list[str] = []
    for number, line in enumerate(lines[1:], 2):
        try:
            event = json.loads(line)
            assert isinstance(event["event"], str)
            events.append(event)
        except (ValueError, KeyError, TypeError, AssertionError):
            errors.append(
                f"{path}:{number}: a broken line in the journal; delete it (its answer is then asked again)"
            )
    if errors:
        raise UserErrors(errors)
    return events


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
    errors: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None


@dataclass(frozen=True)
class Reading:
    """A response of the endpoint: answer or error, and the tokens billed (None when it does not say)."""

    answer: dict[str, Any] | None
    error: Fault | None
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
        error = Fault("malformed", "not a chat completion; a --base-url usually ends in /v1", billed=True)
        return Reading(None, error, tokens, served)
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
    return worst if reading.error is None or reading.error.billed else 0.0


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
            error = await self.attempt(client, question, room)
            if error is None:
                self.in_a_row = 0
                return
            if self.over:
                return
            nobody_there = error.kind == "no connection" and not self.tally.answered and attempt >= 2
            if not error.retry or nobody_there or attempt >= self.limits.retries:
                return self.fail(question, error, attempt + 1)
            if error.kind == "truncation":
                room = min(2 * room, LONGEST_ANSWER * self.ask.max_tokens)
            pause = wait_before_retry(attempt, self.limits.backoff, error.headers)
            if error.kind == "429":
                self.gate.pause(pause)
            await asyncio.sleep(pause)

    def fail(self, question: Question, error: Fault, attempts: int) -> None:
        self.tally.failed[question.key] = f"{error.kind} (attempt {attempts}): {error.message}"
        self.in_a_row += 1
        if error.kind == "no connection" and not self.tally.answered:
            self.fatal = f"{error.message}; start the server or give another --base-url"
        elif self.in_a_row >= MOST_FAILED_IN_A_ROW:
            self.tally.stopped = (
                f"stopped: the last {self.in_a_row} questions all failed, the last with {error.kind}: "
                f"{error.message}"
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
            reading = Reading(None, error_of(error, client, self.ask.model), None, self.ask.model)
        else:
            reading = read_response(body, question.kind, self.ask.model)
        finally:
            self.in_flight -= 1
        self.settle(request, question, reading, worst)
        async with self.settled:
            self.settled.notify_all()
        await self.journal.synced()
        return reading.error

    def settle(self, request: str, question: Question, reading: Reading, worst: float) -> None:
        error = reading.error
        tokens_in, tokens_out = reading.tokens or (0, 0)
        outcome = error.kind if error else "ok"
        more = {"tokens": [tokens_in, tokens_out], "served": reading.served}
        cost = cost_of(reading, self.prices, worst)
        self.journal.done(request, question.key, outcome, cost, reading.answer, **more)
        self.tally.tokens_in += tokens_in
        self.tally.tokens_out += tokens_out
        if error is None:
            self.tally.answered += 1
            return
        self.tally.errors[error.kind] += 1
        self.fatal = self.fatal or error.fatal

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


@dataclass(frozen=True)
class Endpoint:
    """Where questions go and what an answer costs.

    `base_url` None is OPENAI_BASE_URL, else OpenAI's own; `api_key` None is OPENAI_API_KEY. Prices are in US
    dollars per million tokens, None those of data/judge.yaml.
    """

    base_url: str | None = None
    api_key: str | None = None
    price_in: float | None = None
    price_out: float | None = None


@dataclass(frozen=True)
class Session:
    """How a set of questions is asked."""

    ask: Ask
    limits: Limits
    endpoint: Endpoint
    batch: bool = False

    @property
    def prices(self) -> Prices | None:
        found = prices_of(self.ask.model, self.endpoint.price_in, self.endpoint.price_out)
        return found.scaled(load_data(FILE)["batch_price_share"]) if found and self.batch else found


@dataclass(frozen=True)
class Done:
    """`answers` by key, and lines about the run."""

    answers: dict[str, Paid]
    tally: Tally
    notes: list[str]

    def reason(self, question: Question) -> str:
        """Why a question has no answer."""
        return self.tally.failed.get(question.key) or "not asked, the run ended before its turn"


def journal_of(out: str | Path | None, cache: str | Path | None) -> Path | None:
    """The journal: the named one, else OUT.verdicts.jsonl."""
    if cache is not None:
        return Path(cache)
    return Path(out).with_name(f"{Path(out).name}.verdicts.jsonl") if out is not None else None


def plan_lines(
    questions: Sequence[Question], session: Session, journal: Path | None, prompt: bool = False
) -> list[str]:
    """What a run would send and cost; with `prompt` one whole question. Nothing is sent."""
    ledger = read_ledger(journal) if journal else Ledger()
    todo = [q for q in distinct(questions) if q.key not in ledger.paid]
    room, usual = session.ask.max_tokens, load_data(FILE)["usual_answer_tokens"]
    tokens_in = sum(q.tokens_guess() for q in todo)
    paid = len(distinct(questions)) - len(todo)
    lines = [
        f"{len(questions)} questions to {session.ask.model}, {len(todo)} requests to send"
        + (f" ({paid} answers are in {journal})" if paid else "")
        + f", about {tokens_in:,} tokens in and {usual * len(todo):,} out"
    ]
    if session.prices is None:
        lines.append(f"cost unknown: no price for {session.ask.model!r}; give --price-in and --price-out")
    else:
        likely = session.prices.cost(tokens_in, usual * len(todo))
        most = session.prices.cost(sum(q.tokens_bound() for q in todo), room * len(todo))
        line = f"about ${likely:.4f}, ${most:.4f} if every answer took all its room"
        if ledger.spent:
            line += f"; ${ledger.spent:.4f} are spent already"
        if (cap := session.limits.max_cost) is not None:
            line += f"; the cap is ${cap:.4f}"
        lines.append(line)
    if prompt and questions:
        shown = (todo or questions)[0]
        lines += ["", "[system]", shown.system, "", "[user]", shown.user]
    return lines


def run_questions(
    questions: Sequence[Question], session: Session, journal: Path | None, say: Callable[[str], None]
) -> Done:
    """Answer questions, from the journal where they were paid already.

    Args:
        say: is told the plan before anything is sent.

    Raises:
        UserError: see `ask_all` and `run_batches`.
    """
    from aligncap.preferences.judges.openai_batch import run_batches

    assert journal is not None
    prices, endpoint = session.prices, session.endpoint
    known_prices(prices, session.ask, session.limits)
    ask = replace(session.ask, limit_field=limit_field(endpoint.base_url))
    with VerdictJournal(journal) as book:
        for line in plan_lines(questions, session, journal):
            say(line)
        before = book.spent
        asking = run_batches if session.batch else ask_all
        tally = asking(questions, ask, book, session.limits, prices, endpoint.base_url, endpoint.api_key, say)
        answers = {q.key: book.paid[q.key] for q in questions if q.key in book.paid}
        return Done(answers, tally, _notes(tally, book, before, prices is not None))


def _notes(tally: Tally, book: VerdictJournal, before: float, priced: bool) -> list[str]:
    lines = [
        f"{tally.asked} requests, {tally.cached} answers from {book.path}, {tally.tokens_in:,} tokens in and "
        f"{tally.tokens_out:,} out"
        + (f", ${book.spent - before:.4f} (${book.spent:.4f} in all, lost answers at most)" if priced else "")
    ]
    if tally.errors:
        counted = ", ".join(f"{count} {kind}" for kind, count in tally.errors.most_common())
        lines.append(f"errors: {counted}")
    return lines + ([tally.stopped] if tally.stopped else [])
