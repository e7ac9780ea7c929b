"""Batch norms as training leaves them: fresh ones change almost nothing, and hide one that is out of its place."""

from torch import nn


def lived_in(module: nn.Module) -> nn.Module:
    """The module itself, its norms' scales, shifts and statistics drawn far from 1 and 0."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return module
