"""Answers as tokens: what a model learns to write, checked before anything is trained."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from aligncap.text.prompts import control_tokens, end_token_id
from aligncap.utils.errors import UserError, UserErrors

_log = logging.getLogger(__name__)
MOST_CUT = 0.01  # share of captions that may be longer than the limit


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
    end = end_token_id(tokenizer)
    space = "" if getattr(tokenizer, "chat_template", None) else " "
    place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    once = [space + caption for caption in place]
    plain = {"add_special_tokens": False, "return_attention_mask": False}
    found = (
        np.array([*ids, end], np.int32)
        for start in range(0, len(once), 1024)
        for ids in tokenizer(once[start : start + 1024], **plain)["input_ids"]
    )
    whole = TokenLists(found, np.array([place[caption] for caption in captions], np.int64))
    longer = int((whole.lengths > limit).sum())
    if not longer:
        return whole
    longest = int(whole.lengths.max())
    told = (
        f"{path}: {longer} of {len(captions)} captions are longer than max_response_tokens={limit}, "
        f"the longest has {longest} tokens"
    )
    if longer > MOST_CUT * len(captions):
        raise UserError(f"{told}; shorten them, or {remedy} {longest}")
    _log.info("%s; their ends are not learnt", told)
    return TokenLists(ids[:limit] for ids in whole)
