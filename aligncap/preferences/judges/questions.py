"""What a language model is asked about captions, and what counts as its answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from aligncap.io import load_data
from aligncap.preferences.verdicts import CRITERIA, Item, Verdict, weighted_overall

FILE = "judge.yaml"
# Listed one by one: strict schemas know `enum` everywhere, `minimum` and `maximum` only here and there.
_Score = Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
_STRICT = ConfigDict(extra="forbid", strict=True)
# The reason first: a model that has said why scores accordingly.
_FIELDS: Any = {"reason": (str, ...)} | {name: (_Score, ...) for name in CRITERIA}
Scores: type[BaseModel] = create_model("CaptionScores", __config__=_STRICT, **_FIELDS)


class Winner(BaseModel):
    """The answer to a comparison."""

    model_config = _STRICT
    reason: str
    winner: Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Ask:
    """How questions are put: to which model, how freely it answers, and how long an answer may be.

    `temperature` None leaves it to the endpoint (models that reason refuse any). `max_tokens` is not part of
    the prompt hash: it decides whether there is an answer, not which. `limit_field` is the endpoint's name
    for it: OpenAI's new models know "max_completion_tokens" alone, many compatible servers "max_tokens".
    """

    model: str
    temperature: float | None = 0.0
    max_tokens: int = 400
    limit_field: str = "max_completion_tokens"


@dataclass(frozen=True)
class Question:
    """One request. `key` is its content hash: equal keys have one answer, paid once."""

    key: str
    kind: str  # "score" or "compare"
    system: str
    user: str
    prompt_hash: str

    def body(self, ask: Ask, max_tokens: int | None = None) -> dict[str, Any]:
        """The request's JSON, as /v1/chat/completions takes it."""
        body: dict[str, Any] = {
            "model": ask.model,
            "messages": [
                {"role": "system", "content": self.system},
                {"role": "user", "content": self.user},
            ],
            ask.limit_field: max_tokens or ask.max_tokens,
            "response_format": response_format(self.kind),
        }
        if ask.temperature is not None:
            body["temperature"] = ask.temperature
        return body

    def tokens_bound(self) -> int:
        """Input tokens that no byte-level vocabulary exceeds: one a byte, and room for what frames a chat."""
        schema = json.dumps(response_format(self.kind))
        return len(f"{self.system}{self.user}{schema}".encode()) + 64

    def tokens_guess(self) -> int:
        """Input tokens to be expected: one for four letters of Latin script, one for each character else."""
        text = f"{self.system}{self.user}{json.dumps(response_format(self.kind))}"
        plain = len(text.encode("ascii", "ignore"))
        return plain // 4 + len(text) - plain + 16


class BadAnswer(Exception):
    """An answer that holds no verdict. `kind` is "malformed" or "schema"."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def scoring_question(item: Item, ask: Ask) -> Question:
    """The question for the scores of one caption."""
    user = _texts("score")["user"].format(evidence=evidence(item), caption=_quoted(item.caption))
    return _question("score", user, ask)


def comparing_question(first: Item, second: Item, ask: Ask) -> Question:
    """The question which of two captions of one clip is better, in this order."""
    user = _texts("compare")["user"].format(
        evidence=evidence(first), first=_quoted(first.caption), second=_quoted(second.caption)
    )
    return _question("compare", user, ask)


def prompt_hash(kind: str, ask: Ask) -> str:
    """Twelve hex digits over what the judge is told: rubric, schema, evidence lines, model, temperature."""
    parts = [
        system_prompt(kind),
        _texts(kind)["user"],
        load_data(FILE)["evidence"],
        response_format(kind),
        ask.model,
        ask.temperature,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@cache
def system_prompt(kind: str) -> str:
    """The system message of a kind of question, with the rubric written out."""
    rubric: dict[str, str] = load_data(FILE)["rubric"]
    lines = "\n".join(f"- {name}: {rubric[name]}" for name in CRITERIA)
    keys = ", ".join(f'"{name}"' for name in CRITERIA)
    return _texts(kind)["system"].format(rubric=lines, keys=keys)


@cache
def response_format(kind: str) -> dict[str, Any]:
    """The strict JSON schema of an answer."""
    model = _model(kind)
    schema = {"name": model.__name__, "strict": True, "schema": model.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}


def evidence(item: Item) -> str:
    """What is known of the clip, as text."""
    utterance = item.utterance
    measured = "; ".join(f"{name} {word}" for name, word in utterance.cue_words.items())
    values: dict[str, str | None] = {
        "instruction": item.instruction,
        "references": "\n".join(f"- {_quoted(caption)}" for caption in item.references),
        "emotion": utterance.emotion,
        "gender": utterance.gender,
        "measured": measured,
        "transcript": _quoted(utterance.transcript) if utterance.transcript else None,
    }
    lines: dict[str, str] = load_data(FILE)["evidence"]
    return "\n".join(lines[name].format(value=value) for name, value in values.items() if value)


def parse_answer(kind: str, text: str | None) -> dict[str, Any]:
    """The answer's object.

    What stands around the outermost braces is passed over: some endpoints fence JSON.

    Raises:
        BadAnswer: no JSON, or not of the schema.
    """
    text = text or ""
    start, end = text.find("{"), text.rfind("}")
    try:
        value = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        value = None
    if value is None:
        raise BadAnswer("malformed", f"no JSON object in the answer {text[:60]!r}")
    try:
        answer = _model(kind).model_validate(value).model_dump()
        # Half of a surrogate pair is valid JSON and no text that could be written to a file.
        return {k: _written(v) if isinstance(v, str) else v for k, v in answer.items()}
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in found["loc"])
        raise BadAnswer("schema", f"{where}: {found['msg']}".lstrip(": ")) from None


def _written(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def verdict_of(answer: Mapping[str, Any], served: str, question_hash: str, ask: Ask) -> Verdict:
    """Verdict of a scoring answer; `served` is the model as the endpoint named it."""
    scores = {name: answer[name] for name in CRITERIA}
    return Verdict(
        scores=scores,
        overall=weighted_overall(scores),
        reason=answer["reason"],
        judge=f"openai:{ask.model}",
        version=served,
        prompt_hash=question_hash,
    )


def distinct(questions: Sequence[Question]) -> list[Question]:
    """The first question of each key, in order."""
    return list({question.key: question for question in reversed(questions)}.values())[::-1]


def _question(kind: str, user: str, ask: Ask) -> Question:
    told = prompt_hash(kind, ask)
    key = hashlib.sha256(f"{told}\n{ask.model}\n{user}".encode()).hexdigest()[:40]
    return Question(key=key, kind=kind, system=system_prompt(kind), user=user, prompt_hash=told)


def _model(kind: str) -> type[BaseModel]:
    return Scores if kind == "score" else Winner


def _texts(kind: str) -> dict[str, str]:
    return load_data(FILE)[kind]


def _quoted(text: str) -> str:
    """Quotation marks and line breaks of a caption cannot end its quotation."""
    return json.dumps(text, ensure_ascii=False)
