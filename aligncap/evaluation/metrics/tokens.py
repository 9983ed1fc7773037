"""The tokens that all n-gram scores count: words, and of Chinese characters or words."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import chain
from typing import Any, Literal

from aligncap.utils.errors import UserError

Chinese = Literal["characters", "words"]
NO_SEGMENTER = "chinese=words: needs rjieba; pip install 'aligncap[zh]', or choose characters"
TOKENIZER = "NFKC, lower case, Penn-Treebank clitics, hyphens kept, punctuation dropped, Han and kana by "

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'"})
_BY_CHARACTER = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_LETTERS = rf"[^\W_{_BY_CHARACTER}]"
_TOKEN = re.compile(
    rf"""n't\b                                  # do n't
    | '(?:s|m|d|re|ve|ll)\b                     # he 's
    | [{_BY_CHARACTER}]+                        # a run, cut further
    | \d+(?:[.,]\d+)+                           # 1,440 and 0.5
    | {_LETTERS}+?(?=n't\b)                     # the do of don't
    | {_LETTERS}+(?:-{_LETTERS}+)*              # high-pitched""",
    re.VERBOSE,
)
_HAN = re.compile(f"[{_BY_CHARACTER}]")


@cache
def _segmenter() -> Any:
    """jieba's dictionary and hidden Markov model, as they come: no words that others added in this process.

    Raises:
        UserError: rjieba is not installed.
    """
    try:
        from rjieba import Jieba
    except ImportError:
        raise UserError(NO_SEGMENTER) from None
    return Jieba()


def tokenizer_name(chinese: Chinese = "characters") -> str:
    """What `tokenize` does, for a signature."""
    own = "character" if chinese == "characters" else f"word (jieba's, by rjieba {version('rjieba')})"
    return TOKENIZER + own


@lru_cache(maxsize=200_000)
def tokenize(caption: str, chinese: Chinese = "characters") -> tuple[str, ...]:
    """Words of a caption, lower-case, without punctuation.

    Args:
        chinese: whether Han and kana are cut into characters, or into words by jieba.

    Raises:
        UserError: words are asked for and rjieba is not installed.

    >>> tokenize("He isn't angry; the high-pitched voice shakes.")
    ('he', 'is', "n't", 'angry', 'the', 'high-pitched', 'voice', 'shakes')
    >>> tokenize("声音低沉，sad。")
    ('声', '音', '低', '沉', 'sad')
    """
    text = unicodedata.normalize("NFKC", caption).lower().translate(_APOSTROPHES)
    cut = list if chinese == "characters" else _segmenter().cut
    parts = (cut(token) if _HAN.match(token) else [token] for token in _TOKEN.findall(text))
    return tuple(chain.from_iterable(parts))
