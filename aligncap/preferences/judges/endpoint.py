"""Paid requests to an OpenAI-compatible endpoint: options, prices, limits, errors, and a journal of them all.

The journal is append-only. A request is noted before it leaves, with the most that it can cost, and again
when its end is known:
    {"event": "sent", "request": its name, "key": of its question, "cost": at most}
    {"event": "done", "request", "key", "outcome": "ok" or an error, "cost", "tokens": [in, out],
     "served": model as the endpoint names it, "answer": where the outcome is "ok"}
So no answer that was paid is lost or asked for again whenever a run is killed, and what all runs have spent
is never more than the journal says. That is why the client's own retries are off: it would send requests that
nobody noted.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.io import Row, load_data
from aligncap.utils.locks import locked
from aligncap.utils.openai_endpoint import KEY_VARIABLE
from aligncap.utils.options import Config, NaturalInt, NonNegativeFloat, PositiveFloat, PositiveInt, option

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_HEAD = json.dumps({"journal": "aligncap verdicts", "format": 1}).encode()
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of the transport: nothing left the machine
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens."""

    tokens_in: float
    tokens_out: float

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Dollars of a request."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


def prices_of(model: str, price_in: float | None = None, price_out: float | None = None) -> Prices | None:
    """Prices of a model: the given ones, else those of data/judge.yaml; None when they are not known.

    Raises:
        UserError: one price of two.
    """
    if price_in is not None and price_out is not None:
        return Prices(price_in, price_out)
    if (price_in, price_out) != (None, None):
        raise UserError("--price_in and --price_out go together: give both, in dollars per million tokens")
    known: dict[str, list[float]] = load_data("judge.yaml")["prices"]
    name, _, date = model.partition("-20")
    found = known.get(model) or (known.get(name) if date.replace("-", "").isdigit() else None)
    return Prices(*found) if found else None


@dataclass
class OpenAIOptions(Config):
    """How a language model is asked. The key is read from OPENAI_API_KEY."""

    model: str | None = option(None, "openai: model that the endpoint knows.")
    base_url: str | None = option(None, "openai: endpoint. Default: OPENAI_BASE_URL, else OpenAI's own.")
    compare: bool = option(False, "openai: compare pairs of captions in both orders instead of scoring.")
    pairs_per_clip: PositiveInt = option(1, "openai: pairs of --compare.")
    dry_run: bool = option(False, "openai: print what would be asked and cost; ask nothing.")
    max_cost: NonNegativeFloat | None = option(None, "openai: most US dollars, former runs included.")
    price_in: NonNegativeFloat | None = option(None, "openai: US dollars for a million tokens read.")
    price_out: NonNegativeFloat | None = option(None, "openai: US dollars for a million tokens written.")
    rpm: PositiveFloat | None = option(None, "openai: requests a minute. Default: no limit.")
    tpm: PositiveFloat | None = option(None, "openai: tokens a minute. Default: no limit.")
    concurrency: PositiveInt = option(8, "openai: requests at a time.")
    retries: NaturalInt = option(6, "openai: further attempts of a request that failed.")
    timeout: PositiveFloat = option(60.0, "openai: seconds a request.")
    backoff: PositiveFloat = option(1.0, "openai: seconds before the first retry, then doubled.")
    temperature: NonNegativeFloat | None = option(0.0, "openai: none leaves it to the endpoint.")
    max_tokens: PositiveInt = option(400, "openai: most tokens of an answer.")
    cache: str | None = option(None, "openai: journal of paid answers. Default: OUT.verdicts.jsonl.")

    @property
    def prices(self) -> Prices | None:
        """What the model costs, None where that is not known."""
        return prices_of(self.model or "", self.price_in, self.price_out)


# --------------------------------------------------------------------------------------------------- journal


@dataclass
class Ledger:
    """What the lines of a journal come to.

    `paid` are the lines of answers ("answer", "served") by key; `settled` dollars were spent for sure, `open`
    are the worst cases of requests whose end is not known.
    """

    paid: dict[str, Row] = field(default_factory=dict)
    open: dict[str, float] = field(default_factory=dict)
    settled: float = 0.0

    @property
    def spent(self) -> float:
        """Dollars spent at most: what is settled, and the worst case of what is open."""
        return self.settled + sum(self.open.values())

    def take(self, event: Row) -> None:
        """Add one line."""
        match event["event"]:
            case "sent":
                self.open[event["request"]] = event["cost"]
            case "done":
                self.open.pop(event["request"], None)
                self.settled += event["cost"]
                if event["outcome"] == "ok":
                    self.paid[event["key"]] = event
            case "batch":  # of the Batch API, which versions before 0.2 could use
                self.open |= {f"{event['batch']}/{key}": cost for key, cost in event["requests"]}
            case "batch-done":
                ended = f"{event['batch']}/"
                self.open = {name: cost for name, cost in self.open.items() if not name.startswith(ended)}


class VerdictJournal(Ledger):
    """A journal opened for writing by this process alone; every line is on disk before its method returns.

    Raises:
        UserError: another process holds the journal, or it is no journal.
        UserErrors: broken lines before the last.
        OSError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        path = Path(path)
        with ExitStack() as stack:
            stack.enter_context(locked(path))
            for event in read_events(path):
                self.take(event)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._file: IO[bytes] = stack.enter_context(path.open("r+b"))
            self._file.truncate(path.read_bytes().rfind(b"\n") + 1)  # a kill may have torn the last line
            if self._file.seek(0, os.SEEK_END) == 0:
                self._append(_HEAD)
            self._held = stack.pop_all()

    def __enter__(self) -> VerdictJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def sent(self, key: str, cost: float) -> str:
        """Note that a request is about to leave, which costs `cost` at most; returns its name."""
        request = uuid.uuid4().hex[:16]
        self._write({"event": "sent", "request": request, "key": key, "cost": cost})
        return request

    def done(
        self, request: str, key: str, outcome: str, cost: float, answer: Row | None = None, **more: Any
    ) -> None:
        """Note what came of a request, and what it cost."""
        line = {"event": "done", "request": request, "key": key, "outcome": outcome, "cost": cost} | more
        self._write(line | ({"answer": answer} if answer is not None else {}))

    def _write(self, event: Row) -> None:
        self._append(json.dumps(event | {"time": round(time.time(), 3)}).encode())
        self.take(event)

    def _append(self, line: bytes) -> None:
        self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_ledger(path: str | Path) -> Ledger:
    """What a journal comes to, without opening it for writing. Raises as `read_events`."""
    ledger = Ledger()
    for event in read_events(path):
        ledger.take(event)
    return ledger


def read_events(path: str | Path) -> list[Row]:
    """Events of a journal, also while another process writes it; none where there is no file.

    Raises:
        UserError: it is no journal.
        UserErrors: broken lines before the last.
    """
    if not Path(path).exists():
        return []
    head, *lines = Path(path).read_bytes().split(b"\n")
    if head != _HEAD and (lines or not _HEAD.startswith(head)):
        raise UserError(f"{path}: not a journal of verdicts; name another file with --cache")
    events: list[Row] = []
    errors: list[str] = []
    for number, line in enumerate(lines[:-1], 2):  # after the last line break stands at most a torn line
        try:
            event = json.loads(line)
            assert isinstance(event["event"], str)
            events.append(event)
        except (ValueError, KeyError, TypeError, AssertionError):
            remedy = "delete it (its answer is then asked again)"
            errors.append(f"{path}:{number}: a broken line in the journal; {remedy}")
    if errors:
        raise UserErrors(errors)
    return events


# -------------------------------------------------------------------------------------------------- requests


class Gate:
    """Where requests wait: for their place by number and by tokens, and while the endpoint wants a pause.

    So many units pass a minute (None: any number), evenly spaced, first come first served.
    """

    def __init__(self, rpm: float | None, tpm: float | None) -> None:
        self._seconds = [60 / per_minute if per_minute else 0.0 for per_minute in (rpm, tpm)]
        self._next = [0.0, 0.0]
        self._paused_until = 0.0

    def pause(self, seconds: float) -> None:
        """Let nothing pass for some seconds: more requests would be refused too."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def enter(self, tokens: int) -> None:
        """Return when a request of so many tokens may leave."""
        now = time.monotonic()
        starts = [max(now, place) for place in self._next]
        self._next = [starts[0] + self._seconds[0], starts[1] + tokens * self._seconds[1]]
        await asyncio.sleep(max(starts) - now)
        while (rest := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(rest)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for (milliseconds, seconds or a date); None without a usable one."""
    value = headers.get("retry-after", "")
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(float(milliseconds) / 1000, 0.0)
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


@dataclass(eq=False)
class Failure(Exception):
    """A request without a usable answer.

    `kind` is how it is counted. `fatal` is a message when no other request can fare better. `billed`: it may
    have been paid for all the same. `retry` is false for what will not go away; `pause` are the seconds after
    which the endpoint wants to be asked again.
    """

    kind: str
    message: str
    fatal: str | None = None
    retry: bool = True
    billed: bool = False
    pause: float | None = None


def failure_of(error: Exception, client: AsyncOpenAI, model: str) -> Failure:
    """What an exception of the client means. Messages are our own or shorn of the key: servers quote it."""
    import openai

    url = str(client.base_url)
    never = type(error.__cause__).__name__ in _NEVER_SENT
    if isinstance(error, openai.APITimeoutError):
        return Failure("time-out", "no answer in time", billed=not never)
    if isinstance(error, openai.APIConnectionError):
        if never:
            return Failure("no connection", f"{url} cannot be reached")
        return Failure("dropped connection", "the connection broke", billed=True)
    if not isinstance(error, openai.APIStatusError):  # a body that is no JSON, or JSON of another kind
        unread = f"the endpoint's answer cannot be read ({type(error).__name__})"
        return Failure("malformed", unread, billed=True)
    quote = " ".join(error.message.replace(client.api_key, "…").split())[:300]
    status = error.status_code
    if status in (401, 403):
        return Failure("refused key", quote, f"{url} refuses the key; set {KEY_VARIABLE} to a valid one")
    if status == 404:
        remedy = "give another --model, or a --base_url, which usually ends in /v1"
        return Failure("not found", quote, f"{url} knows no model {model!r} (or is no endpoint); {remedy}")
    if status == 402 or (status == 429 and error.code in _NO_CREDIT):
        return Failure("no credit", quote, f"{url} has no credit left for this key: {quote}")
    if status in (408, 409, 425, 429) or status >= 500:
        kind = str(status) if status <= 500 else "5xx"
        return Failure(kind, quote, pause=retry_after(error.response.headers))
    return Failure("rejected", f"{status}: {quote}", retry=False)
