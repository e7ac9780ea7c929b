"""Random weights from which the networks of this room train."""

import math

from torch import Tensor, nn
from torch.nn import init

from separable.layers import DepthwiseConv2d


def initialize(network: nn.Module) -> None:
    """Convolutions normal with variance 2 / fan_out, linear layers normal with deviation 0.01, biases zero.

    fan_out counts the outputs that one input reaches: kernel area * out_channels / groups. torch.nn.init does not know
    of groups, and would start a depthwise filter too small by the square root of the number of channels.

    Source: He et al. 2015, "Delving Deep into Rectifiers", arXiv:1502.01852, section 2.2, backward case.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, DepthwiseConv2d)):
            groups = module.groups if isinstance(module, nn.Conv2d) else min(module.in_channels, module.out_channels)
            fan_out = math.prod(module.kernel_size) * module.out_channels // groups
            init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.01)
        else:
            continue
        if isinstance(module.bias, Tensor):
            init.zeros_(module.bias)
