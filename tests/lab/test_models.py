"""The lab's way into speech models: prompts, passes, edits, and gradients, on both families."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model, voice
from tiny_qwen2_audio import make_qwen2_audio

from aligncap.lab.edits import Add, Attend, Replace, ScaleHeads
from aligncap.lab.families import AlignCapSpeech, Qwen2AudioSpeech, load_speech_model, model_folder
from aligncap.lab.label_words import label_logits, label_tokens
from aligncap.lab.models import Question
from aligncap.models.checkpoints import save_whole
from aligncap.models.merge import merge
from aligncap.utils.errors import UserError

CLIPS = [voice(0.9, 140, seed=1), voice(1.6, 220, seed=2)]
ASKED = [
    Question("Name the emotion. Is it angry?", "Kids are talking by the door"),
    Question("Is she calm?"),
]


@pytest.fixture(scope="module")
def own() -> AlignCapSpeech:
    return AlignCapSpeech(*make_model(speakers=("woman", "man"), encoder_layer="mix"))


@pytest.fixture(scope="module")
def qwen() -> Qwen2AudioSpeech:
    return Qwen2AudioSpeech(*make_qwen2_audio())


@pytest.fixture(params=["own", "qwen"])
def model(request):
    return request.getfixturevalue(request.param)


def asked(model, questions=ASKED, clips=CLIPS):
    return model.prefill(model.listen(clips), questions)


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_our_logits_are_those_of_the_models_own_forward(own):
    inputs = own.processor.captioning_inputs(CLIPS, instruction=ASKED[1].instruction)
    with torch.no_grad():
        plain = own.model(**inputs).logits[:, -1]
    close(own.run(asked(own, [ASKED[1]] * 2)).logits, plain)


def test_qwen2_audios_logits_are_those_of_transformers(qwen):
    content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": "Is she calm?"}]
    chat = [{"role": "user", "content": content}]
    text = qwen.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text.count("<|AUDIO|>") == 1 and "Is she calm?" in text
    for clip in CLIPS:
        inputs = qwen.processor(text=[text], audio=[clip], sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            plain = qwen.model(**inputs).logits[:, -1]
        close(qwen.run(asked(qwen, [ASKED[1]], [clip])).logits, plain)


def test_a_batch_gives_what_its_rows_give_alone(model):
    batch = model.run(asked(model), states=True)
    for row, (clip, question) in enumerate(zip(CLIPS, ASKED, strict=True)):
        alone = model.run(asked(model, [question], [clip]), states=True)
        close(batch.logits[row], alone.logits[0])
        length = alone.states.shape[2]
        close(batch.states[:, row, -length:], alone.states[:, 0])


def test_positions_name_what_is_where(model):
    prefill = asked(model)
    told = [ASKED[0].transcript, ""]
    for row, question in enumerate(ASKED):
        texts = {}
        for name in ("instruction", "transcript"):
            marked = getattr(prefill, name)[row]
            places = prefill.offsets[row]
            own = marked[len(marked) - len(places) :].tolist()
            texts[name] = "".join(
                prefill.texts[row][a:b] for (a, b), on in zip(places, own, strict=True) if on
            )
        assert question.instruction in texts["instruction"]
        assert len(texts["instruction"]) <= len(question.instruction) + 2
        assert (told[row] in texts["transcript"]) and bool(texts["transcript"]) == bool(told[row])
    heard = model.listen(CLIPS)
    assert prefill.audio.sum(1).tolist() == [len(tokens) for tokens in heard]
    close(prefill.embeddings[1][prefill.audio[1]], heard[1])
    assert not (prefill.audio & prefill.text).any() and ((prefill.audio | prefill.text) == prefill.mask).all()
    assert prefill.words(["angry", "nowhere"]).any(1).tolist() == [True, False]
    assert prefill.answer.sum() == 2 and prefill.answer[:, -1].all()


def test_the_models_own_question_none_at_all_and_a_begun_answer(own):
    texts = [
        asked(own, [Question(instruction, begun=begun)] * 2).texts[0]
        for instruction, begun in ((None, ""), ("", ""), (None, "She sounds"))
    ]
    assert "Describe how the speaker sounds." in texts[0]
    assert "Describe" not in texts[1]
    assert texts[2] == texts[0] + "She sounds"


def test_the_transcript_stands_where_the_teacher_reads_it(own):
    text = asked(own).texts[0]
    assert 'A<|speaker|> says: "Kids are talking by the door"\nVoice: <|audio|>' in text
    plain = AlignCapSpeech(*make_model())
    assert '"Kids are talking by the door"\nVoice: <|audio|>' in asked(plain).texts[0]


def test_the_lens_at_the_last_state_is_the_output(model):
    run = model.run(asked(model), states=True)
    assert run.states.shape[0] == model.blocks + 1
    close(model.readout(run.states[-1][:, -1]), run.logits)


def test_replacing_states_by_their_own_changes_nothing_and_by_anothers_gives_the_other(model):
    first, second = asked(model), asked(model, ASKED, [CLIPS[1][: len(CLIPS[0])], CLIPS[1] * 0.2])
    plain, other = model.run(first, states=True), model.run(second, states=True)
    for layer in range(model.blocks + 1):
        same = Replace(layer, first.audio, plain.states[layer])
        close(model.run(first, [same]).logits, plain.logits)
        whole = Replace(layer, first.mask, other.states[layer])
        close(model.run(first, [whole]).logits, other.logits)
    assert (plain.logits - other.logits).abs().max() > 1e-2


def test_sound_replaced_at_the_input_is_the_other_sound(model):
    first, second = asked(model), asked(model, ASKED, [CLIPS[1][: len(CLIPS[0])], CLIPS[1] * 0.2])
    patch = Replace(0, first.audio, second.embeddings)
    close(model.run(first, [patch]).logits, model.run(second).logits)


def test_a_vector_added_is_in_the_states_and_only_there(model):
    prefill, vector = asked(model), torch.linspace(-1, 1, model.width)
    plain = model.run(prefill, states=True).states
    moved = model.run(prefill, [Add(1, prefill.answer, vector)], states=True).states
    gap = moved - plain
    close(gap[1, :, -1], vector.expand(2, -1))
    assert gap[1, :, :-1].abs().max() == 0 and gap[0].abs().max() == 0 and gap[2:, :, -1].abs().max() > 1e-3


def test_attention_that_is_knocked_out_is_gone(model):
    prefill = asked(model)
    plain = model.run(prefill, attention=True)
    assert plain.attention.shape[:3] == (model.blocks, 2, model.heads)
    close(plain.attention.sum(-1), torch.ones(plain.attention.shape[:3]))
    cut = Attend([1], prefill.answer, prefill.audio)
    run = model.run(prefill, [cut], attention=True)
    assert (run.attention[0] * prefill.audio[:, None]).abs().max() < 1e-6
    assert (plain.attention[0] * prefill.audio[:, None]).sum(-1).min() > 1e-5
    assert (run.attention[1] * prefill.audio[:, None]).sum(-1).min() > 1e-5
    close(run.logits, model.run(prefill, [cut]).logits)
    # from everywhere to sound in all blocks: the clip counts no more
    rest = Attend(range(1, model.blocks + 1), prefill.mask & ~prefill.audio, prefill.audio)
    deaf = [Add(0, prefill.audio, torch.randn(model.width)), rest]
    close(model.run(prefill, [rest]).logits, model.run(prefill, deaf).logits)


def test_a_bias_multiplies_a_keys_weight_in_some_heads(model):
    prefill = asked(model)
    plain = model.run(prefill, attention=True).attention
    edit = Attend([1], prefill.answer, prefill.audio, math.log(3), heads=[1])
    run = model.run(prefill, [edit], attention=True).attention
    close(run[0, :, 0], plain[0, :, 0])
    weight = torch.where(prefill.audio, 3.0, 1.0) * plain[0, :, 1]
    close(run[0, :, 1], weight / weight.sum(-1, keepdim=True))


def test_heads_are_scaled_one_by_one(model):
    prefill = asked(model)
    plain = model.run(prefill, heads=True)
    assert plain.heads.shape[:3] == (model.blocks, 2, model.heads)
    factors = torch.ones(model.heads)
    factors[2] = 0.0
    last = ScaleHeads(model.blocks, prefill.answer, factors)
    run = model.run(prefill, [last], states=True)
    weight = model.trunk.output(model.blocks).weight
    size = plain.heads.shape[-1]
    part = plain.heads[-1][:, 2] @ weight[:, 2 * size : 3 * size].T
    assert part.abs().max() > 1e-3
    ones = ScaleHeads(model.blocks, prefill.answer, torch.ones(model.heads))
    close(model.run(prefill, [ones]).logits, plain.logits)
    assert (run.logits - plain.logits).abs().max() > 1e-4


def test_likelihoods_are_those_of_single_passes_and_sum_to_one(model):
    prefill = asked(model)
    answers = [[5], [7, 9], [7, 9, 11], [30, 4]]
    many = model.likelihoods(prefill, answers, at_a_time=4)
    assert many.shape == (2, 4)
    for column, answer in enumerate(answers):
        close(many[:, column], model.likelihood(prefill, [answer, answer]))
    mixed = model.likelihood(prefill, [answers[0], answers[2]])
    close(mixed, torch.stack([many[0, 0], many[1, 2]]))
    vocabulary = model.run(prefill).logits.shape[-1]
    every = model.likelihoods(prefill, [[7, token] for token in range(vocabulary)])
    close(every.logsumexp(1), model.likelihoods(prefill, [[7]])[:, 0])
    with pytest.raises(ValueError, match="each needs a token"):
        model.likelihoods(prefill, [[5], []])


def test_edits_hold_for_the_tokens_that_follow(model):
    prefill = asked(model)
    edits = [
        Add(1, prefill.answer, torch.linspace(-2, 2, model.width)),
        Attend([1, 2], prefill.answer, prefill.audio),
        ScaleHeads(2, prefill.answer, torch.linspace(0, 2, model.heads)),
        Replace(0, prefill.instruction, torch.zeros_like(prefill.embeddings)),
    ]
    answer = [7, 9, 11]
    cached = model.likelihoods(prefill, [answer], edits)[:, 0]
    close(cached, model.likelihood(prefill, [answer, answer], edits))
    assert (cached - model.likelihoods(prefill, [answer])[:, 0]).abs().max() > 1e-3


def test_greedy_answers_are_those_of_the_captioner(own):
    from aligncap.inference.captioner import Captioner

    captioner = Captioner(own.model, own.processor).asking("Is she calm?")
    expected = captioner.generate(CLIPS, max_new_tokens=6)
    assert own.decode(asked(own, [ASKED[1]] * 2), 6) == expected


def test_a_run_with_its_adapter_is_its_merged_model(tmp_path):
    """Passes, and edits through the adapter's layers; a run has no config.json of its own."""
    student, processor = make_model()
    student.save_pretrained(tmp_path / "run/base")
    processor.save_pretrained(tmp_path / "run/base")
    torch.manual_seed(1)
    lora = get_peft_model(student, LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|o_proj)"))
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    run = tmp_path / "run"
    lora.save_pretrained(run)
    merge(run, tmp_path / "merged")
    assert model_folder(str(run)) == run
    models = [load_speech_model(folder, "cpu") for folder in (run, tmp_path / "merged")]
    found = []
    for model in models:
        prefill = asked(model)
        none = ScaleHeads(1, prefill.answer, torch.zeros(model.heads))
        found.append((model.run(prefill).logits, model.run(prefill, [none]).logits))
    plain, scaled = zip(*found, strict=True)
    close(*plain, 1e-3)
    close(*scaled, 1e-3)
    assert not torch.allclose(plain[0], scaled[0], atol=1e-3)


def test_answers_follow_edits(model):
    prefill = asked(model)
    loud = Add(model.blocks, prefill.answer, 1e4 * model.model.lm_head.weight[40])
    text = model.tokenizer.decode([40])
    assert all(answer.startswith(text.strip()) for answer in model.decode(prefill, 3, [loud]))
    assert len(model.decode(prefill, 3)) == 2


def test_tensors_are_heard_as_arrays_are(model):
    plain = model.listen(CLIPS)
    tensors = model.listen([torch.tensor(clip) for clip in CLIPS])
    for a, b in zip(plain, tensors, strict=True):
        close(a, b, 2e-3)


def test_gradients_come_back_to_the_samples(model):
    waves = [torch.tensor(clip, requires_grad=True) for clip in CLIPS]
    prefill = model.prefill(model.listen(waves), ASKED)
    logits = model.run(prefill).logits[:, 5].sum()
    logits.backward()
    for wave in waves:
        assert wave.grad is not None and wave.grad.isfinite().all() and wave.grad.abs().max() > 0
    # the slope along the gradient is that of finite differences
    direction, step = waves[0].grad / waves[0].grad.norm(), 1e-2
    values = []
    for side in (-1, 1):
        moved = [waves[0].detach() + side * step * direction, waves[1].detach()]
        values.append(float(model.run(model.prefill(model.listen(moved), ASKED)).logits[:, 5].sum()))
    slope = (values[1] - values[0]) / (2 * step)
    assert slope == pytest.approx(float(waves[0].grad.norm()), rel=0.1)
    assert model.model.lm_head.weight.grad is None


def test_a_likelihood_has_gradients_too(own):
    wave = torch.tensor(CLIPS[0], requires_grad=True)
    prefill = own.prefill(own.listen([wave]), ASKED[:1])
    own.likelihood(prefill, [[5, 6]]).sum().backward()
    assert wave.grad.abs().max() > 0


def test_arrays_leave_no_graph(model):
    assert not model.run(asked(model)).logits.requires_grad


def test_words_of_labels_in_two_languages(own):
    tokens = label_tokens(own.tokenizer, ["angry", "calm"], ["en"])
    ids = {label: set(found) for label, found in tokens.items()}
    assert not ids["angry"] & ids["calm"]
    assert own.tokenizer.encode("angry")[0] in ids["angry"] or len(ids["angry"]) > 0
    logits = torch.zeros(3, 400)
    logits[1, tokens["calm"]] = 10.0
    found = label_logits(logits, tokens)
    assert found.shape == (3, 2)
    close(found[0], torch.tensor([len(ids["angry"]), len(ids["calm"])]).log())
    assert found[1].argmax() == 1
    probabilities = label_logits(logits.log_softmax(-1), tokens).exp()
    assert probabilities[0, 0] == pytest.approx(len(ids["angry"]) / 400)


def test_only_whole_words_and_the_plain_words_beginnings_name_a_label(own):
    tokens = label_tokens(own.tokenizer, ["angry", "disgusted"], ["en"])
    whole = own.tokenizer.encode(" angry")
    assert len(whole) == 1 and whole[0] in tokens["angry"]  # a word of the tokenizer's training text
    assert own.tokenizer.encode("disgusted")[0] in tokens["disgusted"]  # the plain word's beginning
    assert own.tokenizer.encode("furious")[0] not in tokens["angry"]  # another word's


def test_a_label_without_a_token_of_its_own_is_an_error(own):
    # bytes begin Chinese words alike in a tokenizer without Chinese
    with pytest.raises(UserError, match="no token of this tokenizer names that label alone"):
        label_tokens(own.tokenizer, ["angry", "calm", "happy", "sad", "fearful", "surprised"], ["zh"])


def test_folders_of_both_families_load(tmp_path, own, qwen):
    save_whole(own.model, tmp_path / "own")
    own.processor.save_pretrained(tmp_path / "own")
    qwen.model.save_pretrained(tmp_path / "qwen")
    qwen.processor.save_pretrained(tmp_path / "qwen")
    for name, kind, model in (("own", AlignCapSpeech, own), ("qwen", Qwen2AudioSpeech, qwen)):
        loaded = load_speech_model(tmp_path / name, "cpu")
        assert isinstance(loaded, kind)
        close(loaded.run(asked(loaded)).logits, model.run(asked(model)).logits)
    own.model.model.language_model.save_pretrained(tmp_path / "text")
    with pytest.raises(UserError, match="AlignCap's models and Qwen2-Audio"):
        load_speech_model(tmp_path / "text", "cpu")


def test_clips_that_cannot_be_heard_are_refused(model):
    with pytest.raises(UserError, match="longer than"):
        model.listen([torch.zeros(31 * 16_000)])
    with pytest.raises(UserError, match="non-empty"):
        model.listen([torch.zeros(0)])
    with pytest.raises(ValueError, match="not both"):
        model.listen([np.ones(100, np.float32), torch.ones(100)])


def test_blocks_that_are_not_there_are_refused(model):
    prefill = asked(model)
    with pytest.raises(ValueError, match="blocks 1 to 2"):
        model.run(prefill, [Add(3, prefill.answer, torch.zeros(model.width))])


def test_a_resumed_pass_gives_what_a_whole_one_does(model):
    prefill = asked(model)
    states = model.run(prefill, states=True).states
    edits = [
        Add(2, prefill.answer, torch.linspace(-1, 1, model.width)),
        Attend([2], prefill.answer, prefill.audio),
    ]
    whole = model.run(prefill, edits).logits
    close(model.run(prefill, edits, resume=(1, states[1])).logits, whole)
    close(model.run(prefill, edits).logits, whole)  # the blocks are in their places again
    with pytest.raises(ValueError, match="above the layer"):
        model.run(prefill, edits, resume=(2, states[2]))


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2", "smollm2"])
def test_every_family_of_language_models_has_the_parts_that_are_hooked(family):
    from tiny import make_whisper
    from tiny_families import FAMILIES
    from transformers import WhisperFeatureExtractor

    from aligncap.models.build import assemble

    torch.manual_seed(0)
    llm, tokenizer = FAMILIES[family].make()
    parts = make_whisper().encoder, WhisperFeatureExtractor(), llm, tokenizer
    model = AlignCapSpeech(*assemble(*parts, encoder_layer=2, projector_hidden=24))
    prefill = asked(model)
    run = model.run(prefill, states=True, heads=True, attention=True)
    close(model.readout(run.states[-1][:, -1]), run.logits)
    assert run.heads.shape[:3] == (model.blocks, 2, model.heads)
    cut = Attend([2], prefill.answer, prefill.audio)
    close(model.run(prefill, [cut], resume=(1, run.states[1])).logits, model.run(prefill, [cut]).logits)
    moved = ScaleHeads(2, prefill.answer, torch.zeros(model.heads))
    assert (model.run(prefill, [moved]).logits - run.logits).abs().max() > 1e-4
