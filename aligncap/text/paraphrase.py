"""Optional rewording of captions by a model behind an OpenAI-compatible endpoint.

A rewording is kept only when it says what the original says: the same emotion, no new manner of speaking, no
change of the speaker's gender, no new negation. Otherwise the original stays and is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aligncap.text.claims import manner_claims
from aligncap.text.emotions import emotion_of, emotion_words
from aligncap.utils.errors import UserError
from aligncap.utils.io import load_data
from aligncap.utils.openai_endpoint import KEY_VARIABLE, URL_VARIABLE, key_and_url
from aligncap.utils.progress import track

if TYPE_CHECKING:
    from openai import OpenAI

MOST_WORDS = 25  # a longer answer explains, or invents
_FEMALE = frozenset("she her hers herself woman female lady girl".split())
_MALE = frozenset("he him his himself man male gentleman boy".split())
_NEGATIONS = frozenset("not no never without hardly barely neither nor lacks lacking less".split())


@dataclass
class Paraphrased:
    """Captions in the given order; `reworded` says which differ from the originals.

    `kept_original` counts why originals stayed: "emotion", "manner", "gender", "negation", "form", "same"
    or "request failed".
    """

    captions: list[str]
    reworded: list[bool]
    kept_original: Counter[str] = field(default_factory=Counter)


def paraphrase(
    captions: Sequence[str],
    model: str,
    base_url: str | None = None,
    api_key: str | None = None,
    concurrency: int = 8,
    temperature: float = 0.8,
    timeout: float = 60.0,
    retries: int = 2,
    progress: bool = True,
) -> Paraphrased:
    """Reword captions, one request each, at most `concurrency` at a time.

    Args:
        model: name that the endpoint knows.
        base_url: endpoint; OPENAI_BASE_URL, else OpenAI's own where it is None.
        api_key: key; OPENAI_API_KEY where it is None. It is never printed or logged.
        timeout: seconds a request.
        retries: further attempts of a failed request, with growing pauses.

    Raises:
        UserError: no key, a key or model that is refused, or an endpoint that cannot be reached.
    """
    client = _client(base_url, api_key, timeout, retries)
    if concurrency < 1:
        raise UserError(f"concurrency {concurrency}: at least one request at a time is needed")
    result = Paraphrased([], [])
    if not captions:
        return result
    with ThreadPoolExecutor(concurrency) as pool:
        answers = pool.map(lambda caption: _ask(client, model, caption, temperature), captions)
        try:
            for caption, answer in zip(captions, track(answers, len(captions), "paraphrasing"), strict=True):
                reason = "request failed" if answer is None else refusal(caption, answer)
                result.captions.append(caption if answer is None or reason else answer)
                result.reworded.append(reason is None)
                if reason:
                    result.kept_original[reason] += 1
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return result


def refusal(original: str, reworded: str) -> str | None:
    """Why a rewording does not say what the original says; None when it does."""
    words, before = _words(reworded), _words(original)
    if reworded == original:
        return "same"
    if not 3 <= len(words) <= MOST_WORDS or not re.fullmatch(r"[A-Z][^\n]*[.!]", reworded):
        return "form"
    labels = {mention.label for mention in emotion_words(original)}
    if emotion_of(reworded) != emotion_of(original) or {m.label for m in emotion_words(reworded)} - labels:
        return "emotion"
    if manner_claims([reworded]) - manner_claims([original]):
        return "manner"
    if any(bool(words & sex) and not before & sex for sex in (_FEMALE, _MALE)):
        return "gender"
    if _negates(words) and not _negates(before):
        return "negation"
    return None


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+(?:n't)?", text.lower().replace("\u2019", "'")))


def _negates(words: set[str]) -> bool:
    return bool(words & _NEGATIONS) or any(word.endswith("n't") for word in words)


def _client(base_url: str | None, api_key: str | None, timeout: float, retries: int) -> OpenAI:
    from openai import OpenAI

    key, url = key_and_url("paraphrasing", base_url, api_key)
    return OpenAI(api_key=key, base_url=url, timeout=timeout, max_retries=retries)


def _ask(client: OpenAI, model: str, caption: str, temperature: float) -> str | None:
    """The model's answer, None when the request failed for this caption alone."""
    import openai

    prompt = load_data("caption_templates.yaml")["paraphrase"]
    # errors of the client can quote the key, hence `from None` and messages of our own
    try:
        response = client.chat.completions.create(
            model=model,
            temperature=temperature,
            messages=[
                {"role": "system", "content": prompt["system"]},
                {"role": "user", "content": prompt["user"].format(caption=caption)},
            ],
        )
    except (openai.AuthenticationError, openai.PermissionDeniedError):
        raise UserError(f"{client.base_url} refuses the key; set {KEY_VARIABLE} to a valid one") from None
    except openai.NotFoundError:
        raise UserError(
            f"{client.base_url} knows no model {model!r} (or is no such endpoint); give another model, "
            f"or set {URL_VARIABLE}, which usually ends in /v1"
        ) from None
    except openai.APIConnectionError as error:
        if isinstance(error, openai.APITimeoutError):
            return None
        raise UserError(
            f"{client.base_url} cannot be reached; start the server or set {URL_VARIABLE}"
        ) from None
    except openai.APIError:
        return None
    content = response.choices[0].message.content if response.choices else None
    return " ".join(content.split()).strip("\"'\u201c\u201d") if content else None
