"""The connection to an OpenAI-compatible endpoint, and what its failures mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aligncap.openai_endpoint import KEY_VARIABLE, URL_VARIABLE, key_and_url

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of the transport: nothing left the machine
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


@dataclass(frozen=True)
class Fault:
    """A failed request.

    `kind` is how it is counted. `fatal` is a message when no other request can fare better. `billed`: it may
    have been paid for all the same. A fault that will not go away is not `retry`.
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


def fault_of(error: Exception, client: AsyncOpenAI, model: str) -> Fault:
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
