"""The one tokenizer of all metrics, so that every score counts the same words.

It follows what COCO's caption evaluation does with English (Penn Treebank word splits, lower case,
punctuation dropped) without Java, and takes text without spaces between words (Han, kana) character by
character.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

DESCRIPTION = (
    "NFKC, lower case, Penn-Treebank clitics, hyphens kept, punctuation dropped, Han and kana by character"
)

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'"})
_BY_CHARACTER = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_LETTERS = rf"[^\W_{_BY_CHARACTER}]"
_TOKEN = re.compile(
    rf"""n't\b                                  # do n't
    | '(?:s|m|d|re|ve|ll)\b                     # he 's
    | [{_BY_CHARACTER}]
    | \d+(?:[.,]\d+)+                           # 1,440 and 0.5
    | {_LETTERS}+?(?=n't\b)                     # the do of don't
    | {_LETTERS}+(?:-{_LETTERS}+)*              # high-pitched""",
    re.VERBOSE,
)


@lru_cache(maxsize=200_000)
def tokenize(caption: str) -> tuple[str, ...]:
    """Words of a caption, lower-case, without punctuation.

    >>> tokenize("He isn't angry; the high-pitched voice shakes.")
    ('he', 'is', "n't", 'angry', 'the', 'high-pitched', 'voice', 'shakes')
    >>> tokenize("声音低沉，sad。")
    ('声', '音', '低', '沉', 'sad')
    """
    text = unicodedata.normalize("NFKC", caption).lower().translate(_APOSTROPHES)
    return tuple(_TOKEN.findall(text))
