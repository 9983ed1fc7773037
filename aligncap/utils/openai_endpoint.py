"""Where an OpenAI-compatible endpoint is, and with which key: the same words for all that reach out."""

from __future__ import annotations

import os

from aligncap.utils.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"


def key_and_url(what: str, base_url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Key and address, from the arguments or else the environment; no address is OpenAI's own.

    Args:
        what: who asks, for the message.

    Raises:
        UserError: no key, or an address that is none.
    """
    key = api_key or os.environ.get(KEY_VARIABLE)
    if not key:
        raise UserError(
            f"{what} needs a key: set the environment variable {KEY_VARIABLE} (any text for a local "
            f"server without keys), and {URL_VARIABLE} or --base_url for a server other than OpenAI's"
        )
    url = base_url or os.environ.get(URL_VARIABLE) or None
    if url and not url.startswith(("http://", "https://")):
        example = "like http://localhost:8000/v1"
        raise UserError(
            f"endpoint {url!r} is no http(s) address; set {URL_VARIABLE} or give --base_url, {example}"
        )
    return key, url
