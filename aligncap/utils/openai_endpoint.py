"""Where an OpenAI-compatible endpoint is, and with which key: the same words for all that reach out."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from aligncap.utils.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
OPENAI_URL = "https://api.openai.com/v1"


def key_and_url(
    what: str, base_url: str | None, api_key: str | None, flag: str = "--base_url"
) -> tuple[str, str | None]:
    """Key and address, from the arguments or else the environment; no address is OpenAI's own.

    Args:
        what: who asks, and flag: its option for the address, for messages.

    Raises:
        UserError: no key, or an address that is none.
    """
    key = api_key or os.environ.get(KEY_VARIABLE)
    if not key:
        raise UserError(
            f"{what} needs a key: set the environment variable {KEY_VARIABLE} (any text for a local "
            f"server without keys), and {URL_VARIABLE} or {flag} for a server other than OpenAI's"
        )
    url = base_url or os.environ.get(URL_VARIABLE) or None
    if url and not url.startswith(("http://", "https://")):
        example = "like http://localhost:8000/v1"
        raise UserError(
            f"endpoint {url!r} is no http(s) address; set {URL_VARIABLE} or give {flag}, {example}"
        )
    return key, url


def room_option(url: str | None) -> str:
    """What an answer's limit of tokens is called: OpenAI's new models know one name alone, many compatible
    servers the other.

    >>> room_option(None), room_option("http://localhost:8000/v1")
    ('max_completion_tokens', 'max_tokens')
    """
    own = (urlsplit(url or OPENAI_URL).hostname or "").endswith((".openai.com", ".azure.com"))
    return "max_completion_tokens" if own else "max_tokens"
