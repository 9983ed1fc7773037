"""The face nets: boxes by hand, weights in the right order, and the package's own numbers on real ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from aligncap.models.hub import is_ready
from aligncap.models.tfjs import convert_faces, named, read_tfjs
from aligncap.senses.face import FaceSense
from aligncap.senses.face_nets import FaceNets, boxes_of, load_nets
from aligncap.utils.errors import UserError


def cells(*faces):
    """What a detector gives for faces (row, column, anchor, x, y, width, height, score)."""
    found = torch.full((13, 13, 5, 5), -20.0)
    for row, column, anchor, *rest in faces:
        found[row, column, anchor] = torch.tensor(rest)
    return found


def test_a_box_by_hand():
    # in the middle of cell (row 2, column 3), of twice the width and once the height of anchor 0
    (box,) = boxes_of(cells((2, 3, 0, 0.0, 0.0, np.log(2), 0.0, 2.0)))
    x, y, width, height = 3.5 / 13, 2.5 / 13, 2 * 1.603231 / 13, 2.094468 / 13
    assert box == pytest.approx(
        [1 / (1 + np.exp(-2)), x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    )


def test_boxes_of_one_face_are_one_and_weak_ones_none():
    twice = cells(
        (2, 3, 1, 0.1, 0.0, 0.0, 0.0, 3.0), (2, 3, 1, 0.0, 0.0, 0.0, 0.0, 2.0), (2, 4, 1, -3, 0, 0, 0, 1.0)
    )
    apart = cells((2, 2, 0, 0.0, 0.0, 0.0, 0.0, 1.0), (9, 9, 0, 0.0, 0.0, 0.0, 0.0, 3.0))
    assert len(boxes_of(twice)) == 1
    found = boxes_of(apart)
    assert len(found) == 2 and found[0, 0] > found[1, 0]  # the surest first
    assert boxes_of(cells((2, 2, 0, 0.0, 0.0, 0.0, 0.0, -0.01))).shape == (0, 5)


def write_weights(folder: Path, name: str, weights: list) -> Path:
    manifest = folder / f"{name}_model-weights_manifest.json"
    entries, data = [], b""
    for key, values, packed in weights:
        values = np.asarray(values)
        entry = {"name": key, "shape": list(values.shape), "dtype": "float32"}
        if packed:
            entry["quantization"] = {"dtype": "uint8", "scale": packed[0], "min": packed[1]}
        data += values.astype(np.uint8 if packed else "<f4").tobytes()
        entries.append(entry)
    (folder / f"{name}_model.bin").write_bytes(data)
    manifest.write_text(json.dumps([{"weights": entries, "paths": [f"{name}_model.bin"]}]))
    return manifest


def test_packed_values_are_scaled_and_axes_turned(tmp_path):
    filters = np.arange(2 * 3 * 1 * 4).reshape(2, 3, 1, 4)  # height, width, in, out
    single = np.arange(2 * 2 * 3 * 1).reshape(2, 2, 3, 1)  # height, width, channels, 1
    path = write_weights(
        tmp_path,
        "net",
        [
            ("conv0/filters", filters, (0.5, -1.0)),
            ("conv0/bias", [1.5, 2, 3, 4], None),
            ("conv1/depthwise_filter", single, None),
            ("conv1/pointwise_filter", np.ones((1, 1, 3, 2)), None),
            ("conv1/bias", [7.0, 8.0], None),
            ("fc/weights", [[1, 2, 3], [4, 5, 6]], None),
            ("fc/bias", [0.0, 1.0, 2.0], None),
        ],
    )
    tensors = named(dict(read_tfjs(path)))
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        "conv0.weight": (4, 1, 2, 3),
        "conv0.bias": (4,),
        "conv1.depthwise.weight": (3, 1, 2, 2),
        "conv1.pointwise.weight": (2, 3, 1, 1),
        "conv1.pointwise.bias": (2,),
        "fc.weight": (3, 2),
        "fc.bias": (3,),
    }
    assert tensors["conv0.weight"][2, 0, 1, 0] == filters[1, 0, 0, 2] * 0.5 - 1
    assert tensors["conv1.depthwise.weight"][1, 0, 0, 1] == single[0, 1, 1, 0]


def test_a_scale_after_a_convolution_is_folded_into_it():
    rng = np.random.default_rng(0)
    read = {
        "a/conv/filters": rng.normal(size=(3, 3, 2, 4)).astype(np.float32),
        "a/conv/bias": rng.normal(size=4).astype(np.float32),
        "a/scale/weights": rng.normal(size=4).astype(np.float32),
        "a/scale/biases": rng.normal(size=4).astype(np.float32),
    }
    tensors = named(read)
    x = torch.randn(1, 2, 5, 5)
    plain = torch.nn.functional.conv2d(
        x,
        torch.from_numpy(read["a/conv/filters"].transpose(3, 2, 0, 1).copy()),
        torch.from_numpy(read["a/conv/bias"]),
    )
    scale, shift = (torch.from_numpy(read[f"a/scale/{k}"])[:, None, None] for k in ("weights", "biases"))
    folded = torch.nn.functional.conv2d(x, tensors["a.weight"], tensors["a.bias"])
    assert torch.allclose(folded, plain * scale + shift, atol=1e-5)


def test_damaged_weights_are_told(tmp_path):
    path = write_weights(tmp_path, "net", [("fc/weights", np.ones((2, 2)), None)])
    data = tmp_path / "net_model.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(
        UserError, match="net_model-weights_manifest.json: no weights of TensorFlow.js, or cut off"
    ):
        list(read_tfjs(path))
    data.write_bytes(bytes(20))
    with pytest.raises(UserError, match="4 bytes are left over"):
        list(read_tfjs(path))
    with pytest.raises(UserError, match="tiny_face_detector"):
        convert_faces(tmp_path, tmp_path / "out")


def test_nets_of_a_folder_with_other_weights_are_told(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no weights of the face nets; fetch `face-api` again"):
        load_nets(str(tmp_path))


# ---- real weights


@pytest.fixture(scope="module")
def nets() -> FaceNets:
    if not is_ready("face-api"):
        pytest.skip("the face nets are not at hand: run `aligncap models fetch face-api`")
    return load_nets()


def waves(side: int) -> torch.Tensor:
    """Stripes of three colours, which the package's own nets were shown as well."""
    y, x = np.mgrid[:side, :side]
    pixels = [np.floor(127.5 * (1 + np.sin((x * (c + 1) + 2 * y) / 9.0))) for c in range(3)]
    return torch.from_numpy(np.stack(pixels)[None]).float()


@pytest.mark.real
def test_the_nets_give_what_the_package_gives_in_tensorflow_js(nets):
    """Numbers of @vladmandic/face-api 1.7.15 by its own tfjs, in node on the CPU, for the same pixels."""
    raw = nets.detector(waves(416))[0, 4, 7].flatten()[:5]
    assert raw.tolist() == pytest.approx([2.07911, 0.32396, -0.45845, -0.26128, -13.89346], abs=1e-4)
    scores = nets.expression(waves(150)[:, :, :112, :112]).softmax(-1)[0]
    assert scores.tolist() == pytest.approx([2e-5, 0.00091, 0.999049, 1e-6, 0, 0, 2e-5], abs=2e-6)
    first = nets.descriptor(waves(150))[0, :8]
    told = [-0.0612, 0.12066, 0.04141, -0.03007, -0.02162, -0.04596, -0.06351, 0.0436]
    assert first.tolist() == pytest.approx(told, abs=2e-5)


@pytest.mark.real
def test_faces_are_found_and_read_and_noise_has_none(nets, corpora):
    from PIL import Image

    if not (corpora / "faces" / "CK+48").is_dir():
        pytest.skip(f"real faces are not at hand: {corpora}/faces/CK+48")
    names = {"anger": 3, "fear": 4, "happy": 1, "surprise": 6, "sadness": 2}
    paths = [path for name in names for path in sorted((corpora / "faces" / "CK+48" / name).iterdir())[::24]]
    assert len(paths) >= 10
    sense, rng = FaceSense(nets), np.random.default_rng(0)
    for path in paths[::4]:
        face = Image.open(path).convert("RGB").resize((120, 120))
        picture = Image.new("RGB", (500, 400), (128, 128, 128))
        picture.paste(face, (300, 200))
        (box, *others) = sense.boxes(np.asarray(picture))
        assert not others and 280 < box[1] < 360 and 180 < box[2] < 280, (path.name, box)
    for empty in (np.full((300, 300, 3), 90, np.uint8), rng.integers(0, 255, (300, 300, 3), np.uint8)):
        assert len(sense.boxes(empty)) == 0 and not len(sense.look([empty]).features)
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    logits = sense.look(pictures).features[:, -7:]
    truth = torch.tensor([names[path.parent.name] for path in paths])
    assert (logits.argmax(1) == truth).float().mean() > 0.7  # chance: .2
    alone = torch.cat([sense.look([picture]).features for picture in pictures])
    assert torch.allclose(alone[:, -7:], logits, atol=1e-4)
