"""The converted default models, proved by what they do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aligncap.models.hub import DEFAULT_ENCODER, DEFAULT_LLM, DEFAULT_SPACY, resolve
from aligncap.utils.errors import UserError

pytestmark = pytest.mark.real

SENTENCES = [
    "The train to the coast leaves at nine in the morning.",
    "My sister planted three apple trees behind the house.",
    "Please close the window before the rain begins.",
    "The teacher read the letter to the whole class.",
    "We walked along the river until it was dark.",
]
PARAGRAPH = (
    "Water is one of the most important substances on Earth. All living things need water to survive. "
    "About seventy percent of the surface of our planet is covered by oceans, and most of the fresh "
    "water is stored in ice and in the ground. When the sun heats the surface of the sea, some of the "
    "water turns into vapor and rises into the air. As the air cools, the vapor forms small drops, "
    "which we see as clouds. When the drops become too heavy, they fall to the ground as rain or snow. "
    "The water then flows into streams and rivers and finally returns to the ocean, where the cycle "
    "begins again. This process is called the water cycle."
)
# in a process of its own, since the synthesiser keeps global state and may end its process
SPEAK = """
import ctypes, sys
import numpy as np, espeakng_loader
library = ctypes.CDLL(espeakng_loader.get_library_path())
rate = library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0x8000)
blocks = []
def receive(samples, count, events):
    if count > 0:
        blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
    return 0
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
callback = Callback(receive)
library.espeak_SetSynthCallback(callback)
assert library.espeak_SetVoiceByName(b"en-us") == 0
library.espeak_SetParameter(1, 150, 0)
clips = []
for sentence in sys.argv[2:]:
    blocks.clear()
    text = sentence.encode() + b"\\0"
    library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, 1, None, None)
    clips.append(np.concatenate(blocks).astype(np.float32) / 32768)
np.savez(sys.argv[1], rate=rate, **{str(i): clip for i, clip in enumerate(clips)})
"""


def model_folder(name: str) -> Path:
    try:
        return resolve(name, fetch=False)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[np.ndarray]:
    """The sentences as speech of 16 kHz."""
    import soxr

    pytest.importorskip("espeakng_loader")
    path = tmp_path_factory.mktemp("speech") / "clips.npz"
    subprocess.run([sys.executable, "-c", SPEAK, str(path), *SENTENCES], check=True, timeout=60)
    data = np.load(path)
    return [soxr.resample(data[str(i)], int(data["rate"]), 16_000) for i in range(len(SENTENCES))]


@pytest.fixture(scope="module")
def whisper():
    from transformers import AutoProcessor, WhisperForConditionalGeneration

    folder = model_folder(DEFAULT_ENCODER)
    return WhisperForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def llm():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(DEFAULT_LLM)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def word_errors(reference: list[str], hypothesis: list[str]) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(hypothesis, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def test_whisper_transcribes_made_speech(whisper, clips):
    model, processor = whisper
    features = processor(clips, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        ids = model.generate(features, language="en", task="transcribe", max_new_tokens=40)
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    errors = sum(word_errors(words(a), words(b)) for a, b in zip(SENTENCES, texts, strict=True))
    total = sum(len(words(sentence)) for sentence in SENTENCES)
    print(f"word error rate {errors}/{total}: {texts}")
    assert errors / total <= 0.25, texts


def test_whisper_finds_the_language_itself(whisper, clips):
    model, processor = whisper
    features = processor(clips[0], sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        (language,) = model.detect_language(features).tolist()
    assert processor.tokenizer.convert_ids_to_tokens(language) == "<|en|>"


def test_whispers_encoder_hears_speech_and_not_padding(whisper, clips):
    model, processor = whisper
    features = processor(clips[:2], sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        states = model.model.encoder(features, output_hidden_states=True).hidden_states
    assert len(states) == 7 and states[-1].shape == (2, 1500, 512)
    assert all(torch.isfinite(state).all() for state in states)
    # frames of speech change from one to the next much more than frames of silence after it
    frames = states[4][0]
    change = (frames[1:] - frames[:-1]).norm(dim=-1)
    spoken = len(clips[0]) // 320
    assert change[: spoken - 10].median() > 2 * change[spoken + 100 :].median()
    # and two sentences differ where both are spoken
    pooled = states[4][:, : spoken - 10].mean(1)
    assert torch.cosine_similarity(pooled[0], pooled[1], dim=0) < 0.999


def test_whispers_encoder_positions_are_sinusoids(whisper):
    from transformers.models.whisper.modeling_whisper import sinusoids

    table = whisper[0].model.encoder.embed_positions.weight
    assert torch.allclose(table, sinusoids(*table.shape), atol=1e-3)


def test_smollm2_knows_the_capital_of_france(llm):
    model, tokenizer = llm
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(ids)
    assert ids[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"


def test_smollm2_reads_plain_english_easily(llm):
    model, tokenizer = llm
    ids = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.inference_mode():
        perplexity = float(model(input_ids=ids, labels=ids).loss.exp())
    print(f"perplexity {perplexity:.1f} over {ids.shape[1]} tokens")
    assert perplexity < 10  # 7.7 where the conversion is right


def test_smollm2_takes_digits_one_by_one(llm):
    _, tokenizer = llm
    pieces = [tokenizer.decode([i]) for i in tokenizer("In 2025, 1234567 of 3.14").input_ids]
    digits = [piece for piece in pieces if any(c.isdigit() for c in piece)]
    assert digits == list("20251234567314")


@pytest.mark.parametrize(
    "text", ["Zürich, naïve — żółć 你好", "two  spaces\n\n\tand a tab ", "<|im_start|>x<|im_end|>"]
)
def test_smollm2_gives_text_back_unchanged(llm, text):
    _, tokenizer = llm
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_smollm2s_embeddings_are_shared_and_saved_once(llm):
    from safetensors import safe_open

    model, _ = llm
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.dtype == torch.float32
    with safe_open(model_folder(DEFAULT_LLM) / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()


@pytest.mark.parametrize(
    ("name", "tokens"), [("qwen2.5-coder-0.5b-instruct", 151_936), ("gemma-3-270m", 262_144)]
)
def test_other_packaged_llms_know_a_capital_read_chinese_and_have_one_matrix(name, tokens):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert len(tokenizer) == tokens
    for text in ("In 2024, 9876 voices.", "男人的声音听起来很悲伤。"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and len(ids) < 1.2 * len(text)
    digits = tokenizer("9876", add_special_tokens=False)["input_ids"]
    assert len(tokenizer.convert_ids_to_tokens(digits)) == 4
    if tokenizer.chat_template:
        said = [{"role": "user", "content": "What is the capital of France?"}]
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    else:
        text = "Question: What is the capital of France? Answer:"
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        ids = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"]
        perplexity = model(ids, labels=ids).loss.exp()
    assert "Paris" in tokenizer.decode(made[0, inputs["input_ids"].shape[1] :])
    assert perplexity < 30


def test_spacys_parser_finds_subject_and_negation():
    spacy = pytest.importorskip("spacy")
    document = spacy.load(model_folder(DEFAULT_SPACY))("The man does not sound angry.")
    roles = {token.text: token.dep_ for token in document}
    assert roles["man"] == "nsubj" and roles["not"] == "neg"
    assert next(token.pos_ for token in document if token.text == "angry") == "ADJ"
