"""What student and teacher read: the chat form where the tokenizer has one, else a plain instruction form."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from aligncap.io import load_data


def _wrap(tokenizer: Any, content: str) -> str:
    texts = load_data("templates.yaml")
    instruction = texts["instruction"]
    if not getattr(tokenizer, "chat_template", None):
        return (tokenizer.bos_token or "") + texts["plain"].format(instruction=instruction, content=content)
    # The instruction is the system message: without one, many templates insert a long one of their own.
    chat = [{"role": "system", "content": instruction}, {"role": "user", "content": content}]
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        merged = [{"role": "user", "content": f"{instruction}\n{content}"}]
        return tokenizer.apply_chat_template(merged, tokenize=False, add_generation_prompt=True)


def student_prompt(tokenizer: Any, audio_token: str) -> str:
    """The student's whole prompt, with one audio placeholder."""
    return _wrap(tokenizer, load_data("templates.yaml")["speech"].format(audio=audio_token))


def teacher_prompt(tokenizer: Any, transcript: str | None, acoustic: str, gender: str | None = None) -> str:
    """The teacher's whole prompt: who says what, and the acoustic prompt P_act in place of the audio."""
    words = f'"{transcript.strip()}"' if transcript and transcript.strip() else "…" if gender else ""
    said = load_data("templates.yaml")["says"][gender or "unknown"].format(words=words)
    return _wrap(tokenizer, "\n".join(line for line in (said, acoustic) if line))


def speaker_word(gender: str | None) -> str | None:
    """ "woman" or "man"."""
    return load_data("templates.yaml")["speakers"].get(gender)


def end_token_id(tokenizer: Any) -> int:
    """What closes an answer: the token after an assistant turn of the chat template, or end-of-text.

    The two differ in some families (Gemma's <end_of_turn>), and the LLM stops at the former.
    """
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer.eos_token_id
    answer = "AnswerOfTheAssistant"
    chat = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": answer}]
    rest = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(answer)[2]
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
    return next((i for i in ids if i in special), tokenizer.eos_token_id)


def response_ids(tokenizer: Any, caption: str, max_tokens: int | None = None) -> list[int]:
    """Token ids of the answer, closed by the end token.

    `max_tokens` cuts the caption, not the end.
    """
    text = caption if getattr(tokenizer, "chat_template", None) else " " + caption
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if max_tokens is not None:
        ids = ids[: max_tokens - 1]
    return [*ids, end_token_id(tokenizer)]
