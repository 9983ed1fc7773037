"""Words that labels are answered with, as tokens and logits at the answer position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aligncap.inference.confidence import masses, spellings
from aligncap.text.emotions import chinese_forms, english_forms
from aligncap.text.lexicon import is_chinese
from aligncap.text.prompts import Language
from aligncap.text.questions import label_word
from aligncap.utils.errors import UserError


def label_tokens(
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    languages: Sequence[Language] = ("en", "zh"),
) -> dict[str, list[int]]:
    """Of each label the tokens by which an answer names it, in any spelling.

    Those are words of the label that are one token each, and the first tokens of its plain word, by which the
    lists of questions name it ("dis" of "disgusted"). First tokens of other words are left out: they begin
    too much else ("at" of "at ease"). A token of two labels is of neither.

    Raises:
        UserError: a label has no such token.
    """
    forms: dict[str, str] = {}
    for language, known in (("en", english_forms), ("zh", chinese_forms)):
        if language in languages:
            forms |= {form: label for form, label in known().items() if label in labels}
    plain = {label_word(label, language): label for label in labels for language in languages}
    forms |= plain
    named: dict[int, set[str]] = {}
    for (form, label), rows in zip(forms.items(), spellings(tokenizer, forms), strict=True):
        for row in rows[1:2] if is_chinese(form) else rows:  # Chinese knows no spaces
            if len(row) == 1 or form in plain:
                named.setdefault(row[0], set()).add(label)
    found = {label: sorted(t for t, own in named.items() if own == {label}) for label in labels}
    if missing := [label for label in labels if not found[label]]:
        remedy = "leave it out, or compare whole words by their likelihood"
        raise UserError(f"{', '.join(missing)}: no token of this tokenizer names that label alone; {remedy}")
    return found


def label_logits(logits: Tensor, tokens: Mapping[str, list[int]]) -> Tensor:
    """Log of the summed weight of each label's tokens, (…, labels), of logits (…, vocabulary).

    It has gradients, and a constant that all labels share; of log-probabilities, it is that of the labels.
    """
    return masses(logits, tokens)
