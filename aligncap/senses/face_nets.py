"""Three small nets for faces: a detector, expressions, and descriptors of 128 numbers, in torch.

Their weights are those of the npm package `@vladmandic/face-api` (MIT, `aligncap models fetch face-api`),
a continuation of face-api.js (V. Mühler 2018); the graphs are written after its description of itself. The
detector is a Tiny YOLO v2 of separable convolutions, the expression net four dense blocks of them, the
descriptor net a ResNet in the manner of dlib's. All take pixels 0 to 255 as (n, 3, side, side) in RGB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from aligncap.models.hub import resolve
from aligncap.utils.errors import UserError

NAME = "face-api"  # of data/models.yaml
SIDES = {"detector": 416, "expression": 112, "descriptor": 150}  # pixels of a side that each net takes
DESCRIPTOR = 128
# Faces come in these sizes, in cells of 32 pixels; the detector says how far a face is from them.
_ANCHORS = (
    (1.603231, 2.094468),
    (6.041143, 7.080126),
    (2.882459, 3.518061),
    (4.266906, 5.178857),
    (9.041765, 10.66308),
)
_OVERLAP = 0.4  # intersection over union from which two boxes are of one face
_RESNET = (  # stages of the descriptor net: their channels, and how many plain blocks follow the strided one
    (32, None, 3),
    (64, 32, 3),
    (128, 64, 2),
    (256, 128, 2),
    (256, 256, 0),
)


class Separable(nn.Module):
    """A 3 x 3 convolution of each channel by itself, then a mix of channels; padded as TensorFlow pads."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inside, inside, 3, stride, groups=inside, bias=False)
        self.pointwise = nn.Conv2d(inside, outside, 1)
        # "same" of TensorFlow: a stride of 2 over an even side needs one more pixel, at the end
        self.padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(F.pad(x, self.padding)))


class Detector(nn.Module):
    """Pixels (n, 3, 416, 416) to (n, 13, 13, 5 anchors, 5): place, size and score of a face in each cell."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", _pixel((117.001, 114.697, 97.404)), persistent=False)
        self.conv0 = nn.Conv2d(3, 16, 3)
        sizes = (16, 32, 64, 128, 256, 512)
        for i in range(1, 6):
            setattr(self, f"conv{i}", Separable(sizes[i - 1], sizes[i]))
        self.conv8 = nn.Conv2d(512, 5 * len(_ANCHORS), 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv0((pixels - self.mean) / 255), 0.1)
        for i in range(1, 6):
            x = F.max_pool2d(x, 2, ceil_mode=True)
            x = F.leaky_relu(getattr(self, f"conv{i}")(x), 0.1)
        x = self.conv8(F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, 1))
        return x.permute(0, 2, 3, 1).unflatten(-1, (len(_ANCHORS), 5))


class Dense(nn.Module):
    """Four separable convolutions at half the size; each sees the sum of what those before it gave."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        first = inside == 3
        self.conv0 = nn.Conv2d(3, outside, 3, 2) if first else Separable(inside, outside, 2)
        self.conv1, self.conv2, self.conv3 = (Separable(outside, outside) for _ in range(3))
        self.padding = (0, 1, 0, 1) if first else (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        total = F.relu(self.conv0(F.pad(x, self.padding)))
        seen = total
        for conv in (self.conv1, self.conv2, self.conv3):
            total = total + conv(seen)
            seen = F.relu(total)
        return seen


class Expression(nn.Module):
    """Faces (n, 3, 112, 112) to logits (n, 7) in the order of `moments.SEVEN`, which is the package's own."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", _pixel((122.782, 117.001, 104.298)), persistent=False)
        sizes = (3, 32, 64, 128, 256)
        for i in range(4):
            setattr(self, f"dense{i}", Dense(sizes[i], sizes[i + 1]))
        self.fc = nn.Linear(256, 7)

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels - self.mean) / 255
        for i in range(4):
            x = getattr(self, f"dense{i}")(x)
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    """Two convolutions beside the identity; with a stride, the halved input padded to the output's shape."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=2 - stride)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.conv1(x)))
        if self.conv1.stride == (2, 2):
            x = F.avg_pool2d(x, 2)
            x = F.pad(x, (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
            short = x.shape[-1] - out.shape[-1]  # a pixel, where the side was even
            out = F.pad(out, (0, short, 0, short))
        return F.relu(out + x)


class Descriptor(nn.Module):
    """Faces (n, 3, 150, 150) to (n, 128): near each other for pictures of one person."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", _pixel((122.782, 117.001, 104.298)), persistent=False)
        self.conv32_down = nn.Conv2d(3, 32, 7, 2)
        self.names = []
        for outside, inside, plain in _RESNET:
            if inside is not None:
                name = f"conv{outside}_down" + ("_out" if inside == outside else "")
                self.names.append(name)
                self.add_module(name, Residual(inside, outside, 2))
            for i in range(1, plain + 1):
                self.names.append(f"conv{outside}_{i}")
                self.add_module(self.names[-1], Residual(outside, outside, 1))
        self.fc = nn.Linear(256, DESCRIPTOR, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv32_down((pixels - self.mean) / 255)), 3, 2)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.fc(x.mean((2, 3)))


class FaceNets(nn.Module):
    """The three nets, in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.detector, self.expression, self.descriptor = Detector(), Expression(), Descriptor()
        self.eval().requires_grad_(False)


def load_nets(name: str = NAME, device: str = "cpu") -> FaceNets:
    """The nets of a folder or a name of data/models.yaml that was fetched before.

    Raises:
        UserError: not fetched, or other weights than these nets have.
    """
    folder = resolve(name, fetch=False)
    nets = FaceNets()
    try:
        nets.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder}: holds no weights of the face nets; fetch `{NAME}` again") from error
    return nets.to(device)


def boxes_of(found: Tensor, score: float = 0.5) -> np.ndarray:
    """Faces of one picture, best first, (faces, 5): score, then left, top, right, bottom as shares of a side.

    Args:
        found: what the detector gave for it, (13, 13, 5, 5).
        score: least score of a face, 0 to 1.
    """
    cells = found.shape[0]
    rows, columns = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    corner = torch.stack([columns, rows], -1)[:, :, None]
    centre = (corner + found[..., :2].sigmoid()) / cells
    half = found[..., 2:4].exp() * torch.tensor(_ANCHORS) / cells / 2
    boxes = torch.cat([found[..., 4:].sigmoid(), centre - half, centre + half], -1).flatten(0, 2)
    boxes = boxes[boxes[:, 0] > score]
    left = boxes[boxes[:, 0].argsort(descending=True)].double().numpy()
    kept: list[np.ndarray] = []
    while len(left):
        kept.append(left[0])
        left = left[1:][_overlap(left[0, 1:], left[1:, 1:]) <= _OVERLAP]
    return np.array(kept).reshape(-1, 5)


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with others (n, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (box, others)]
    return shared / (areas[0] + areas[1] - shared)


def _pixel(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)
