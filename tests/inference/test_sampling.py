import math

import pytest
import torch
from tiny import make_model, voice, with_adapters
from transformers import TopPLogitsWarper

from aligncap.inference.captioner import Captioner
from aligncap.inference.sampling import pick, random_numbers, sample_captions, sample_tokens

CLIPS = [voice(1.31, 150), voice(2.7, 220), voice(0.5, 100)]
NUM, LENGTH = 6, 12
SAMPLING = {"num": NUM, "temperature": 1.0, "top_p": 0.95, "seed": 0}


@pytest.fixture(scope="module", params=["tied", "untied"])
def pair(request):
    """Tiny models that end their captions early enough for rows to leave the batch."""
    model, processor = make_model(tied=request.param == "tied", seed=5)
    model.generation_config.eos_token_id = [0, *range(40, 60)]
    return model, processor


def numbers(ids, num=NUM, length=LENGTH, seed=0):
    return torch.stack([torch.from_numpy(random_numbers(seed, i, num, length)) for i in ids])


def full_sort(logits, number, temperature, top_p):
    """Top-p and inversion as the definition reads: every word sorted, no shortcut."""
    p = (logits.double() / temperature).softmax(-1)
    order = p.argsort(descending=True)
    keep = (p[order].cumsum(-1) < top_p).sum() + 1
    kept = torch.zeros_like(p)
    kept[order[:keep]] = p[order[:keep]]
    reached = kept.cumsum(-1)
    return int((reached <= number * reached[-1]).sum())


@torch.no_grad()
def plain(model, processor, clip, rows, temperature, top_p):
    """The prompt repeated for each candidate, no cache: everything again for every token."""
    inputs = processor.captioning_inputs([clip] * len(rows))
    made = [[] for _ in rows]
    ended = [False] * len(rows)
    for step in range(rows.shape[1]):
        logits = model(**inputs).logits[:, -1]
        new = [full_sort(x, rows[c, step], temperature, top_p) for c, x in enumerate(logits)]
        for c, token in enumerate(new):
            ended[c] |= token in model.generation_config.eos_token_id
            if not ended[c]:
                made[c].append(token)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor(new)[:, None]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return made


@pytest.mark.parametrize("temperature, top_p", [(1.0, 0.95), (0.6, 0.5), (1.5, 1.0)])
def test_one_prefill_gives_the_tokens_of_repeated_prompts(pair, temperature, top_p):
    model, processor = pair
    ids = ["a", "b", "c"]
    made = sample_tokens(
        model, processor.captioning_inputs(CLIPS), numbers(ids), temperature=temperature, top_p=top_p
    )
    for clip, name, candidates in zip(CLIPS, ids, made):
        assert candidates == plain(model, processor, clip, numbers([name])[0], temperature, top_p)
    lengths = {len(c) for candidates in made for c in candidates}
    assert len(lengths) > 1  # or nothing was ever dropped from the batch


def test_greedy_equals_generate(pair):
    model, processor = pair
    inputs = processor.captioning_inputs(CLIPS)
    made = sample_tokens(model, inputs, numbers("abc"), temperature=0, top_p=1.0)
    ends = model.generation_config.eos_token_id
    generated = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
    for candidates, row in zip(made, generated[:, inputs["input_ids"].shape[1] :].tolist()):
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        assert candidates == [row[:stop]] * NUM


def test_candidates_do_not_depend_on_the_other_clips_of_the_batch(pair):
    captioner = Captioner(*pair)
    options = {**SAMPLING, "max_new_tokens": LENGTH, "seed": 3}
    together = sample_captions(captioner, CLIPS, ["a", "b", "c"], **options)
    for place in range(3):
        assert sample_captions(captioner, [CLIPS[place]], ["abc"[place]], **options) == [together[place]]
    backwards = sample_captions(captioner, CLIPS[::-1], ["c", "b", "a"], **options)
    assert backwards[::-1] == together


def test_one_clip_twice_is_sampled_apart_by_its_id(pair):
    first, second = sample_captions(
        Captioner(*pair), [CLIPS[0]] * 2, ["a", "b"], max_new_tokens=20, **SAMPLING
    )
    assert first != second and len(set(first)) > 1


def test_more_candidates_and_longer_captions_extend_what_was_there():
    small = random_numbers(1, "clip", 3, 5)
    assert (random_numbers(1, "clip", 8, 20)[:3, :5] == small).all()
    assert len({random_numbers(s, c, 1, 1).item() for s in (0, 1) for c in ("a", "b", "1\ta")}) == 6


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])  # flat: the head must grow; peaked: it is far too large
def test_tokens_come_as_often_as_transformers_says(top_p, spread):
    torch.manual_seed(0)
    logits = spread * torch.randn(2, 700)
    logits[:, 650:] = torch.finfo(torch.float32).min
    wanted = (logits / 0.8).softmax(-1)
    if top_p < 1:
        wanted = TopPLogitsWarper(top_p)(None, logits / 0.8).softmax(-1)
    count = 4_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    for row in range(2):
        tokens = pick(logits, torch.full((count,), row), grid, 0.8, top_p)
        found = tokens.bincount(minlength=700) / count
        assert (found - wanted[row]).abs().max() < 2 / count + 1e-6
        assert not found[wanted[row] == 0].any()


def test_numbers_at_the_very_end_still_give_words_of_the_nucleus():
    logits = torch.tensor([[0.0, 1.0, -50.0, torch.finfo(torch.float32).min]])
    last = torch.tensor([math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert pick(logits, torch.tensor([0]), last, 1.0, 0.95).item() == 1
    assert pick(logits, torch.tensor([0]), last, 1.0, 1.0).item() in (1, 2)
    assert pick(logits, torch.tensor([0]), 0 * last, 1.0, 0.95).item() == 0


def test_the_placeholder_is_never_sampled(pair):
    model, processor = pair
    made = sample_tokens(
        model, processor.captioning_inputs(CLIPS), numbers("abc", 16), temperature=100.0, top_p=1.0
    )
    assert max(t for candidates in made for tokens in candidates for t in tokens) < processor.audio_token_id


def test_the_prompt_runs_once_and_rows_are_shared_until_captions_part(pair, monkeypatch):
    model, processor = pair
    shapes = []
    forward = type(model).forward

    def counted(self, **inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(self, **inputs)

    monkeypatch.setattr(type(model), "forward", counted)
    inputs = processor.captioning_inputs(CLIPS)
    made = sample_tokens(model, inputs, numbers("abc"), temperature=1.0, top_p=0.95)
    assert shapes[0] == tuple(inputs["input_ids"].shape)
    for step, shape in enumerate(shapes[1:]):
        alive = {(i, *c[: step + 1]) for i, cs in enumerate(made) for c in cs if len(c) > step}
        assert shape == (len(alive), 1)
    assert shapes[-1][0] < 3 * NUM


def test_an_adapter_is_folded_in_before_captioning(tmp_path, manifest):
    from aligncap.models.merge import merge
    from aligncap.training.sft import SpeechSFTConfig

    model, processor = make_model(seed=3)
    model.save_pretrained(tmp_path / "run" / "base")
    processor.save_pretrained(tmp_path / "run" / "base")
    args = SpeechSFTConfig(output_dir=str(tmp_path), train_manifest=str(manifest))
    adapted = with_adapters(model, args, projector=True)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    adapted.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    merge(tmp_path / "run", tmp_path / "merged")
    for dtype in ("float32", "bfloat16"):
        ours = Captioner.from_pretrained(tmp_path / "run", device="cpu", dtype=dtype).model
        other = Captioner.from_pretrained(tmp_path / "merged", device="cpu", dtype=dtype).model
        assert type(ours) is type(other)
        left, right = dict(ours.named_parameters()), dict(other.named_parameters())
        left |= dict(ours.named_buffers())
        right |= dict(other.named_buffers())
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert tensor.dtype == right[name].dtype, name
            assert torch.equal(tensor, right[name]), name
