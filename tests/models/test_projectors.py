"""A projector of one's own: what is written in a few lines trains, is saved and is read again."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from tiny import make_model, voice
from torch import nn

from aligncap.inference.captioner import Captioner
from aligncap.models.checkpoints import load_folder, save_whole
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.encoders import pool_frames
from aligncap.models.projectors import PROJECTORS, Projector
from aligncap.utils.errors import UserError


class MeanProjector(Projector):
    """The mean of every few frames through one matrix, without a summary of the clip."""

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__(config, text_width)
        self.linear = nn.Linear(config.audio_width, text_width)

    def project(self, frames, mask):
        means, mask = pool_frames(frames, mask, self.stack_size)
        return self.linear(means), mask


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setitem(PROJECTORS, "mean", MeanProjector)
    return {"projector_type": "mean", "summary_token": False}


CLIPS = [voice(1.3), voice(0.6, 220), voice(0.3, 90)]


@pytest.mark.parametrize("summary", [True, False])
@pytest.mark.parametrize("layer", [2, "mix"])
@pytest.mark.parametrize("name", list(PROJECTORS))
def test_every_projector_gives_a_clip_its_tokens_whatever_it_is_with(name, layer, summary):
    words = {"speakers": ["woman", "man"], "emotions": ["sad", "angry"]}
    options = {"projector_type": name, "queries": 5 if name == "qformer" else 0, "summary_token": summary}
    model, processor = make_model(encoder_layer=layer, pool_size=4, stack_size=3, **options, **words)
    projector = model.model.multi_modal_projector
    assert type(projector) is PROJECTORS[name]
    inputs = processor.captioning_inputs(CLIPS)  # placeholders are counted, and must be as many as tokens
    pooled = model.model.encode_audio(inputs["input_features"], inputs["input_features_mask"])
    tokens, mask = projector(*pooled)
    frames = [ceil(len(clip) / 320) for clip in CLIPS]
    wanted = [2 + summary + (5 if name == "qformer" else ceil(ceil(f / 4) / 3)) for f in frames]
    assert mask.sum(1).tolist() == wanted
    for i, clip in enumerate(CLIPS):
        one = processor.features([clip])
        alone, _ = projector(*model.model.encode_audio(**one))
        torch.testing.assert_close(tokens[i][mask[i]], alone[0], atol=1e-5, rtol=1e-4)
    assert tokens[0].std() > 0.01 and (tokens[0, 2:5] - tokens[1, 2:5]).abs().max() > 1e-3


def test_a_query_can_tell_layers_and_places_apart():
    """The same states in another order, of layers or of frames, give other tokens."""
    model, _ = make_model(encoder_layer="mix", projector_type="qformer", queries=4, summary_token=False)
    projector = model.model.multi_modal_projector
    frames, mask = torch.randn(1, 6, 4, 16), torch.ones(1, 6, dtype=torch.bool)
    with torch.no_grad():
        projector.layer.normal_()
        for name, weight in projector.former.named_parameters():
            if "attention" in name and weight.dim() == 2:
                weight *= 20
        tokens, _ = projector(frames, mask)
        for other in (frames.flip(1), frames.flip(2)):
            assert (projector(other, mask)[0] - tokens).abs().max() > 1e-4


@pytest.mark.parametrize("layer", [2, "mix"])
def test_a_new_projector_trains_is_saved_and_read_again(own, layer, tmp_path):
    model, processor = make_model(encoder_layer=layer, **own)
    assert isinstance(model.model.multi_modal_projector, MeanProjector)
    shape = model.model.multi_modal_projector.feature_mean.shape
    model.model.multi_modal_projector.fit(torch.full(shape, 0.1), torch.full(shape, 2.0))
    inputs = processor.captioning_inputs([voice(1.3), voice(0.6, 220)])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= processor.audio_token_id, -100)
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    weight = model.model.multi_modal_projector.linear.weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    with torch.no_grad():
        weight -= 0.1 * weight.grad
    assert model(**inputs, labels=labels).loss < loss

    processor.save_pretrained(tmp_path)
    save_whole(model, tmp_path)
    again, reader = load_folder(tmp_path)
    assert again.config.projector_type == "mean"
    clips = [voice(1.3), voice(0.6, 220)]
    assert Captioner(again, reader)(clips, max_new_tokens=5) == Captioner(model, processor)(
        clips, max_new_tokens=5
    )


def test_an_unknown_projector_is_named_with_the_known_ones(own, tmp_path, monkeypatch):
    model, processor = make_model(**own)
    processor.save_pretrained(tmp_path)
    save_whole(model, tmp_path)
    monkeypatch.delitem(PROJECTORS, "mean")
    with pytest.raises(UserError, match="projector_type 'mean': known are mlp, linear, conv, qformer"):
        load_folder(tmp_path)


def test_a_checkpoint_from_before_projectors_had_names_loads(tmp_path):
    import json

    model, processor = make_model()
    processor.save_pretrained(tmp_path)
    save_whole(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("projector_type", "max_response_tokens"):
        assert config.pop(key) is not None
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, _ = load_folder(tmp_path)
    inputs = processor.captioning_inputs([voice(1.0)])
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)
    assert again.config.max_response_tokens == 64
