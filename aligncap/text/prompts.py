"""What student and teacher read: prompts in the tokenizer's chat form where it has one, and acoustic prompts.

The words stand in `data/templates.yaml` and `data/prompts.yaml`. The acoustic prompt P_act takes the place of
the audio in the teacher's prompt: the emotion clues of the reference caption, put into a template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from jinja2 import TemplateError

from aligncap.text.lexicon import is_chinese
from aligncap.utils.errors import UserError
from aligncap.utils.io import Row, load_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Language = Literal["en", "zh"]
# Some templates (Llama 3.2, SmolLM3) write the day's date, and a prompt that changes overnight would make
# each day's teacher another one. A macro of the same name takes the place of the clock.
_FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}{{ '' }}"


def _render(tokenizer: Tokenizer, chat: list[dict[str, str]], *, ask: bool) -> str:
    text = tokenizer.apply_chat_template(
        chat,
        chat_template=_FIXED_DATE + tokenizer.get_chat_template(),
        tokenize=False,
        add_generation_prompt=ask,
        enable_thinking=False,  # models that think before they answer (Qwen3, SmolLM3) would begin with that
    )
    return str(text)


def templates(language: Language = "en") -> Row:
    """What student and teacher are told, and captions that no model writes, in the captions' language."""
    found: Row = load_data("templates.yaml")
    return found["zh"] if language == "zh" else found


def _wrap(tokenizer: Tokenizer, content: str, language: Language, instruction: str = "") -> str:
    texts = templates(language)
    instruction = instruction or texts["instruction"]
    if not getattr(tokenizer, "chat_template", None):
        return (tokenizer.bos_token or "") + texts["plain"].format(instruction=instruction, content=content)
    # The instruction is the system message: without one, many templates insert a long one of their own.
    chat = [{"role": "system", "content": instruction}, {"role": "user", "content": content}]
    try:
        return _render(tokenizer, chat, ask=True)
    except TemplateError:
        merged = [{"role": "user", "content": f"{instruction}\n{content}"}]
        return _render(tokenizer, merged, ask=True)


def student_prompt(
    tokenizer: Tokenizer,
    audio_token: str,
    *,
    speaker: str | None = None,
    cues: str | None = None,
    language: Language = "en",
) -> str:
    """The student's whole prompt, with one audio placeholder.

    `speaker` and `cues` are placeholders of who speaks and of measured cues, for students shown them;
    `language` is that of the captions.
    """
    texts = templates(language)
    parts = [
        texts["speaker"].format(speaker=speaker) if speaker else "",
        texts["cues"].format(cues=cues) if cues else "",
        texts["speech"].format(audio=audio_token),
    ]
    return _wrap(tokenizer, "\n".join(part for part in parts if part), language)


def teacher_prompt(
    tokenizer: Tokenizer,
    transcript: str | None,
    acoustic: str,
    gender: str | None = None,
    language: Language = "en",
    instruction: str = "",
) -> str:
    """The teacher's whole prompt: who speaks, the transcript, the acoustic prompt in place of the audio.

    `language` is that of the caption; `instruction` what it answers, in place of "describe".
    """
    words = f'"{transcript.strip()}"' if transcript and transcript.strip() else "…" if gender else ""
    said = templates(language)["says"][gender or "unknown"].format(words=words)
    return _wrap(tokenizer, "\n".join(line for line in (said, acoustic) if line), language, instruction)


def speaker_words(language: Language = "en") -> list[str]:
    """The words that stand for who speaks, a woman's first."""
    return list(templates(language)["speakers"].values())


def speaker_word(gender: str | None, language: Language = "en") -> str | None:
    """ "woman" or "man", None of an unknown gender."""
    return templates(language)["speakers"].get(gender)


def measured_cues(cue_words: Mapping[str, str] | None) -> str:
    """The second kind of acoustic prompt: what was measured in the clip, which a student may be shown.

    >>> measured_cues({"pitch": "low", "rate": "fast"})
    'pitch low, rate fast'
    """
    if not cue_words:
        return str(load_data("templates.yaml")["no_cues"])
    return ", ".join(f"{name} {word}" for name, word in cue_words.items())


def acoustic_prompt(clues: Sequence[str], template: str = "voice", language: str | None = None) -> str:
    """P_act: clues e_1..n inserted into the template P_T at its slot.

    Args:
        clues: clues in the order of the caption, as `ClueParser.parse` gives them. None at all gives the
            template's own words for an unknown voice, so that the teacher's prompt keeps its form.
        template: key under `acoustic` of data/prompts.yaml.
        language: "en" or "zh"; by default Chinese where any clue has Chinese characters.

    Raises:
        UserError: unknown template or language.

    >>> acoustic_prompt(["angry", "very loud", "not calm"])
    'Voice: angry, very loud, not calm.'
    """
    templates = load_data("prompts.yaml")["acoustic"]
    if template not in templates:
        raise UserError(
            f"data/prompts.yaml: no acoustic template {template!r}; choose one of {', '.join(templates)}"
        )
    kept = list(dict.fromkeys(clue.strip() for clue in clues if clue.strip()))
    language = language or ("zh" if any(map(is_chinese, kept)) else "en")
    if language not in templates[template]:
        raise UserError(
            f"data/prompts.yaml: acoustic template {template!r} lacks language {language!r}; it has en and zh"
        )
    words = templates[template][language]
    if not kept:
        return str(words["none"])
    # not str.format: a clue is taken from a caption and may hold braces
    return str(words["text"]).replace("{clues}", str(words["separator"]).join(kept))


def control_tokens(tokenizer: Tokenizer) -> list[str]:
    """Texts that a tokenizer takes for ends, turns or placeholders, and that no text of ours may hold.

    Llama 3 lists its turns' marks among the added tokens alone.
    """
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return [t for t in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if t.strip()]


def end_token_id(tokenizer: Tokenizer) -> int:
    """What closes an answer: the token after an assistant turn of the chat template, or end-of-text.

    The two differ in some families (Gemma's <end_of_turn>), and the LLM stops at the former.
    """
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer.eos_token_id
    answer = "AnswerOfTheAssistant"
    chat = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": answer}]
    rest = _render(tokenizer, chat, ask=False).rpartition(answer)[2]
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
    return next((i for i in ids if i in special), tokenizer.eos_token_id)


def response_ids(tokenizer: Tokenizer, caption: str, max_tokens: int | None = None) -> list[int]:
    """Token ids of the answer, closed by the end token.

    An answer of more than `max_tokens` is cut and then has no end token: a model must not learn to stop where
    the text goes on.
    """
    text = caption if getattr(tokenizer, "chat_template", None) else " " + caption
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], end_token_id(tokenizer)]
    return ids[:max_tokens]
