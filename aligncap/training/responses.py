"""Answers as tokens: what a model learns to write, checked before anything is trained."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from aligncap.text.prompts import control_tokens, end_token_id
from aligncap.utils.errors import UserError, UserErrors
from aligncap.utils.progress import track

_log = logging.getLogger(__name__)
MOST_CUT = 0.01  # share of captions that may be longer than the limit
MOST_AT_ONCE = 1 << 16  # captions that are tokenised before training: 70 µs and 160 bytes each
SAMPLE = 1 << 14  # of more captions, by which their lengths are judged


def spelling(tokens: Sequence[str]) -> re.Pattern[bytes]:
    """What a line of a JSONL file holds at the least if one of these texts is in it, however it is escaped.

    >>> bool(spelling(["</s>"]).search(rb'"Say \u003c/s>"')), bool(spelling(["</s>"]).search(b'"Say s"'))
    (True, False)
    """
    plain = (json.dumps(token, ensure_ascii=False)[1:-1] for token in tokens)
    wide = [token.encode("utf-16-be", "surrogatepass") for token in tokens]
    units = sorted({text[i : i + 2].hex() for text in wide for i in range(0, len(text), 2)})
    either = [re.escape(text.encode()) for text in plain]
    either += [rb"\\u(?i:" + "|".join(units).encode() + b")"] * bool(units)
    either += [rb"\\/"] * any("/" in token for token in tokens)
    return re.compile(b"|".join(either) or b"(?!)")


def refuse_special_tokens(
    path: str, texts: Iterable[tuple[int, str, Sequence[str]]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A caption or transcript that holds a control token would end a turn, or put audio where there is none.

    Args:
        texts: line of `path`, id and texts of each.

    Raises:
        UserErrors: every such text.
    """
    special = sorted(control_tokens(tokenizer), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, special)) or "(?!)")
    errors = [
        f"{path}:{number}: {name}: {token!r} in its texts is a control token of the LLM; take it out"
        for number, name, said in texts
        for token in dict.fromkeys(token for text in said for token in pattern.findall(text))
    ]
    if errors:
        raise UserErrors(errors)


class TokenLists(Sequence[list[int]]):
    """Lists of token ids in one array; `which`, where given: which of `lists` each of them is."""

    def __init__(self, lists: Iterable[Sequence[int] | np.ndarray], which: np.ndarray | None = None) -> None:
        parts = [np.asarray(ids, dtype=np.int32) for ids in lists]
        self.starts = np.cumsum([0, *map(len, parts)])
        self.tokens = np.concatenate([*parts, np.empty(0, np.int32)])
        self.which = np.arange(len(parts)) if which is None else which

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: Any) -> Any:
        place = self.which[index]
        return self.tokens[self.starts[place] : self.starts[place + 1]].tolist()

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)[self.which]


class Responses(Protocol):
    """Answers as tokens, by their place: `TokenLists` or, of very many, `LateTokens`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> list[int]: ...

    @property
    def lengths(self) -> np.ndarray: ...


@dataclass(frozen=True)
class LateTokens(Sequence[list[int]]):
    """Captions as answers, each tokenised when it is read.

    end: closes an answer; limit: longest answer in tokens, what is longer is cut and not closed.
    """

    tokenizer: PreTrainedTokenizerBase
    captions: Sequence[str]
    end: int
    limit: int

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: Any) -> Any:
        return next(_answers(self.tokenizer, [self.captions[index]], self.end)).tolist()[: self.limit]

    @cached_property
    def lengths(self) -> np.ndarray:
        """(captions,): tokens of each; the first call tokenises all."""
        found = (len(ids) for ids in _answers(self.tokenizer, self.captions, self.end))
        counts = np.fromiter(track(found, len(self), "counting tokens"), np.int32, len(self))
        return np.minimum(counts, self.limit)


def responses_of(
    tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], limit: int, path: str
) -> Responses:
    """Captions as answers, each closed by the end token.

    More than `MOST_AT_ONCE` are tokenised when they are read, and their lengths are judged by a sample.

    Raises:
        UserError: as `tokenize_responses`.
    """
    if len(captions) <= MOST_AT_ONCE:
        return tokenize_responses(tokenizer, list(captions), limit, path)
    drawn = np.random.default_rng(0).choice(len(captions), SAMPLE, replace=False)
    end, texts = end_token_id(tokenizer), (captions[i] for i in np.sort(drawn).tolist())
    lengths = [len(ids) for ids in _answers(tokenizer, texts, end)]
    _refuse_long(np.array(lengths), limit, f"{SAMPLE} captions drawn at random", path)
    return LateTokens(tokenizer, captions, end, limit)


def tokenize_responses(
    tokenizer: PreTrainedTokenizerBase,
    captions: Sequence[str],
    limit: int,
    path: str,
    remedy: str = "set max_response_tokens to",
) -> TokenLists:
    """Captions as answers, each closed by the end token: `text.prompts.response_ids`, many at a time.

    A caption of more than `limit` tokens is cut and not closed: what was cut off is no end of a sentence.

    Raises:
        UserError: more than 1 % of the captions of `path` are longer.
    """
    place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    which = np.array([place[caption] for caption in captions], np.int64)
    whole = TokenLists(_answers(tokenizer, place, end_token_id(tokenizer)), which)
    if _refuse_long(whole.lengths, limit, f"{len(captions)} captions", path, remedy):
        return TokenLists(ids[:limit] for ids in whole)
    return whole


def _answers(tokenizer: PreTrainedTokenizerBase, captions: Iterable[str], end: int) -> Iterator[np.ndarray]:
    """Tokens of each caption, closed by `end`."""
    space = "" if getattr(tokenizer, "chat_template", None) else " "
    plain = {"add_special_tokens": False, "return_attention_mask": False}
    waiting = iter(captions)
    while texts := [space + caption for caption in islice(waiting, 1024)]:
        for ids in tokenizer(texts, **plain)["input_ids"]:
            yield np.array([*ids, end], np.int32)


def _refuse_long(
    lengths: np.ndarray, limit: int, of: str, path: str, remedy: str = "set max_response_tokens to"
) -> bool:
    """Whether some captions are longer than the limit; more than 1 % are an error."""
    longer = int((lengths > limit).sum())
    if not longer:
        return False
    longest = int(lengths.max())
    told = (
        f"{path}: {longer} of {of} are longer than max_response_tokens={limit}, "
        f"the longest has {longest} tokens"
    )
    if longer > MOST_CUT * len(lengths):
        raise UserError(f"{told}; shorten them, or {remedy} {longest}")
    _log.info("%s; their ends are not learnt", told)
    return True
