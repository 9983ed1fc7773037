"""Words that labels are answered with, as tokens and logits at the answer position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aligncap.inference.confidence import first_tokens, masses
from aligncap.text.emotions import chinese_forms, english_forms
from aligncap.text.prompts import Language
from aligncap.utils.errors import UserError


def label_tokens(
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    languages: Sequence[Language] = ("en", "zh"),
) -> dict[str, list[int]]:
    """Of each label the tokens that begin any form of its words and of no other label's.

    Raises:
        UserError: a label has no such token, so that the tokenizer cannot tell it at its first token.
    """
    english = english_forms() if "en" in languages else {}
    forms = english | (chinese_forms() if "zh" in languages else {})
    forms = {form: label for form, label in forms.items() if label in labels}
    found = first_tokens(tokenizer, forms)
    if missing := [label for label in labels if not found.get(label)]:
        raise UserError(f"{', '.join(missing)}: no token of this tokenizer begins words of that label alone")
    return {label: found[label] for label in labels}


def label_logits(logits: Tensor, tokens: Mapping[str, list[int]]) -> Tensor:
    """Log of the summed weight of each label's first tokens, (…, labels), of logits (…, vocabulary).

    Up to a constant that all labels share; of log-probabilities, the labels' log-probabilities.
    """
    return masses(logits, tokens)
