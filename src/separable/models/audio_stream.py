"""Sound as it comes from a microphone, in pieces of any length, to the scores of a causal network.

What is remembered has a fixed size: the samples of an unfinished frame and the network's state. The scores are those of
the whole sound, however it was cut.
"""

import torch
from torch import Tensor

from separable.data.features import Features
from separable.errors import InputError
from separable.models.time_channel import TimeChannelNet


class AudioStream:
    """One stream; `hear` its pieces in order.

    Args:
        features: what the network was trained on; `features.rate` is the rate the samples must have.
        network: in evaluation mode.

    >>> stream = AudioStream(Features(8000), TimeChannelNet(num_classes=10).eval())
    >>> stream.hear(torch.zeros(500)).shape, stream.hear(torch.zeros(140)).shape
    (torch.Size([2, 10]), torch.Size([1, 10]))
    """

    def __init__(self, features: Features, network: TimeChannelNet):
        if network.training:
            raise InputError("network", type(network).__name__, "must be in evaluation mode; call .eval()")
        self.features, self.network = features, network
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next samples begin a new sound."""
        self.rest = self.network.classifier.weight.new_zeros(0)  # samples that later frames need
        self.state = self.network.start()

    @torch.inference_mode()
    def hear(self, samples: Tensor) -> Tensor:
        """The next samples [n], in -1..1 -> the class scores after each frame they complete, [frames, num_classes]."""
        if samples.dim() != 1:
            raise InputError("samples", list(samples.shape), "must have one dimension, time")
        joined = torch.cat([self.rest, samples.to(self.rest)])
        frames = self.features(joined[None])  # [1, T, size]
        self.rest = joined[frames.shape[1] * self.features.hop :].clone()
        scores, self.state = self.network.step(frames, self.state)
        return scores[0]

    @property
    def remembered_bytes(self) -> int:
        """What is held between two pieces."""
        kept = [self.rest, *self.state.held, self.state.recent]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)
