"""How fast requests leave, how long a failed one waits, and what may still be spent."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from aligncap.errors import UserError
from aligncap.io import load_data

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
