"""A causal 1-D network of time-channel separable convolutions: keywords while they are spoken.

Each block filters every channel along time, mixes channels at each step, normalises, adds its input. Nothing sees what
comes later, so the network runs on a stream, frame by frame, with a state of fixed size. The scores after a frame are
those of the mean over the last `memory` frames.
Source: Kriman et al. 2019, "QuartzNet", arXiv:1910.10261, section 3; Majumdar and Ginsburg 2020, "MatchboxNet",
arXiv:2004.08531 (keywords). Causal padding and the sliding mean are ours.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from separable import functional
from separable.layers import SeparableConv1d
from separable.layers.depthwise import check_channels
from separable.models.folding import fold_inside


@dataclass
class State:
    """What a stream must remember; its size does not depend on how long it has run.

    held: the last steps of each block's input, [N, C, reach]. recent: the last memory - 1 results, [N, C, memory - 1].
    frames: how many there have been, counted up to memory.
    """

    held: list[Tensor]
    recent: Tensor
    frames: int


class CausalBlock(nn.Module):
    """relu(x + norm(separable convolution of x and its past)); without the sum where channels differ.

    Shapes: [N, in_channels, T] -> [N, out_channels, T].
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int):
        super().__init__()
        self.conv = SeparableConv1d(
            in_channels, out_channels, kernel_size, padding="causal", dilation=dilation, bias=False, norm=nn.BatchNorm1d
        )
        self.adds_input, self.reach = in_channels == out_channels, dilation * (kernel_size - 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(x + y if self.adds_input else y)

    def step(self, x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """The next steps of a stream, and what the steps after them need: held [N, in_channels, reach]."""
        dw, pw, norm = self.conv.conv_dw, self.conv.conv_pw, self.conv.norm
        joined = torch.cat([held, x], 2)  # [N, in_channels, reach + T]
        y = functional.separable_conv1d(joined, dw.weight, pw.weight, dw.bias, pw.bias, dilation=dw.dilation)
        y = y if norm is None else norm(y)
        return F.relu(x + y if self.adds_input else y), joined[
            :, :, x.shape[2] :
        ].clone()  # not a view: what was heard is let go


class TimeChannelNet(nn.Module):
    """Features of sound to class scores, of the whole or frame by frame.

    Args:
        num_classes: outputs of the last layer.
        bands: numbers of each frame.
        channels: of every block.
        kernel_size: steps that each depthwise filter sees.
        dilations: of each block.
        memory: frames over which the mean is taken.

    Shapes: [N, frames, bands] -> [N, num_classes], the scores after the last frame; at least one frame.

    Raises:
        InputError: an argument breaks one of these rules.

    >>> network = TimeChannelNet(num_classes=10).eval()
    >>> frames = torch.randn(1, 30, 40)
    >>> first, state = network.step(frames[:, :20], network.start())
    >>> later, state = network.step(frames[:, 20:], state)
    >>> torch.allclose(later[:, -1], network(frames), atol=1e-5)
    True
    """

    def __init__(
        self,
        num_classes: int = 12,
        bands: int = 40,
        channels: int = 64,
        kernel_size: int = 5,
        dilations: Sequence[int] = (1, 1, 1, 2, 2, 2),
        memory: int = 49,
    ):
        super().__init__()
        check_channels(num_classes=num_classes, bands=bands, channels=channels, memory=memory)
        widths = [bands, *[channels] * len(dilations)]
        self.blocks = nn.Sequential(
            *(CausalBlock(a, b, kernel_size, d) for a, b, d in zip(widths[:-1], widths[1:], dilations, strict=True))
        )
        self.memory = memory
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, features: Tensor) -> Tensor:
        x = self.blocks(features.transpose(1, 2))  # [N, C, T]
        return self.classifier(x[:, :, -self.memory :].mean(2))

    def start(self, batch: int = 1) -> State:
        """The state before the first frame: silence has come before, in every layer."""
        like = self.classifier.weight
        held = [like.new_zeros(batch, block.conv.in_channels, block.reach) for block in self._blocks()]
        return State(held, like.new_zeros(batch, self.classifier.in_features, self.memory - 1), 0)

    def step(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """The next frames of a stream [N, T, bands] -> the scores after each, [N, T, num_classes], and the next state.

        Joined, the scores of all steps are those of one step with all frames; for inference (`eval()`).
        """
        steps = features.shape[1]
        if not steps:
            return features.new_zeros(len(features), 0, self.classifier.out_features), state
        x, held = features.transpose(1, 2), []
        for block, before in zip(self._blocks(), state.held, strict=True):
            x, after = block.step(x, before)
            held.append(after)
        joined = torch.cat([state.recent, x], 2)  # [N, C, memory - 1 + T]
        means = F.avg_pool1d(joined, self.memory, 1)  # [N, C, T], of what was before the start, too
        counts = torch.arange(1, steps + 1, device=x.device, dtype=x.dtype) + state.frames
        means = means * (self.memory / counts.clamp(max=self.memory))
        scores = self.classifier(means.transpose(1, 2))
        return scores, State(held, joined[:, :, steps:].clone(), min(state.frames + steps, self.memory))

    def folded(self) -> "TimeChannelNet":
        """A copy for inference whose batch norms are part of the convolutions before them; the same outputs."""
        other = copy.deepcopy(self).eval()
        for block in other._blocks():
            fold_inside(block.conv)
        return other

    def _blocks(self) -> list[CausalBlock]:
        return [block for block in self.blocks if isinstance(block, CausalBlock)]
