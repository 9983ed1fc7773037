"""A projector of one's own: what is written in a few lines trains, is saved and is read again."""

from __future__ import annotations

import pytest
import torch
from tiny import make_model, voice
from torch import nn

from aligncap.inference.captioner import Captioner
from aligncap.models.checkpoints import load_folder, save_whole
from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.projectors import PROJECTORS, Projector
from aligncap.utils.errors import UserError


class LinearProjector(Projector):
    """Stacked frames through one matrix, without a summary of the clip."""

    def __init__(self, config: AlignCapConfig, text_width: int) -> None:
        super().__init__(config, text_width)
        self.linear = nn.Linear(config.audio_width * config.stack_size, text_width)

    def forward(self, frames, mask, context=None):
        frames = (frames.float() - self.feature_mean) * self.feature_scale
        stacked, mask = self.stack(self.mix_layers(frames) * mask[..., None], mask)
        return self.linear(stacked), mask


@pytest.fixture
def linear(monkeypatch):
    monkeypatch.setitem(PROJECTORS, "linear", LinearProjector)
    return {"projector_type": "linear", "summary_token": False}


@pytest.mark.parametrize("layer", [2, "mix"])
def test_a_new_projector_trains_is_saved_and_read_again(linear, layer, tmp_path):
    model, processor = make_model(encoder_layer=layer, **linear)
    assert isinstance(model.model.multi_modal_projector, LinearProjector)
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
    assert again.config.projector_type == "linear"
    clips = [voice(1.3), voice(0.6, 220)]
    assert Captioner(again, reader)(clips, max_new_tokens=5) == Captioner(model, processor)(
        clips, max_new_tokens=5
    )


def test_an_unknown_projector_is_named_with_the_known_ones(linear, tmp_path, monkeypatch):
    model, processor = make_model(**linear)
    processor.save_pretrained(tmp_path)
    save_whole(model, tmp_path)
    monkeypatch.delitem(PROJECTORS, "linear")
    with pytest.raises(UserError, match="projector_type 'linear': known are mlp; import the module"):
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
