from tiny import make_tokenizer

from aligncap.text.prompts import end_token_id, response_ids, student_prompt, teacher_prompt


def test_student_and_teacher_differ_in_the_place_of_the_clues_alone():
    tokenizer = make_tokenizer()
    student = student_prompt(tokenizer, "<|audio|>")
    teacher = teacher_prompt(tokenizer, None, "Voice: angry.")
    assert student == teacher.replace("angry", "<|audio|>")
    assert '"Kids are talking"' in teacher_prompt(tokenizer, " Kids are talking ", "Voice: angry.")


def test_without_a_chat_template_the_plain_form_is_used():
    prompt = student_prompt(make_tokenizer(chat=False), "<|audio|>")
    assert prompt.endswith("Description:") and "Voice: <|audio|>." in prompt


def test_a_template_without_system_messages_gets_the_instruction_in_the_user_turn():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    )
    assert student_prompt(tokenizer, "<|audio|>").startswith("[user] Describe how the speaker sounds.")


def test_an_answer_ends_with_the_token_that_ends_a_turn():
    tokenizer = make_tokenizer()
    assert end_token_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<turn>{% endfor %}"
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert end_token_id(tokenizer) == turn and response_ids(tokenizer, "He sounds calm.")[-1] == turn


def test_a_caption_that_is_cut_has_no_end_token_and_one_that_fits_has():
    tokenizer = make_tokenizer()
    caption = "He sounds angry, with a loud voice."
    whole = response_ids(tokenizer, caption)
    assert whole[-1] == tokenizer.eos_token_id and whole == response_ids(tokenizer, caption, len(whole))
    for limit in (4, len(whole) - 1):
        cut = response_ids(tokenizer, caption, max_tokens=limit)
        assert cut == whole[:limit] and tokenizer.eos_token_id not in cut


def test_the_teacher_is_told_who_speaks_where_that_is_known():
    tokenizer = make_tokenizer()
    assert 'A woman says: "Hello"' in teacher_prompt(tokenizer, "Hello", "Voice: sad.", "female")
    assert "A man says: …" in teacher_prompt(tokenizer, None, "Voice: sad.", "male")
    assert "says" not in teacher_prompt(tokenizer, "Hello", "Voice: sad.")
