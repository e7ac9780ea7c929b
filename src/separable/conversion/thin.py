"""Fewer channels between two layers: the first gives some of its outputs, the second is fitted to read those alone.

Both stay dense, and so run as fast as dense layers do; each costs as many times less as there are channels less.

Which channels go is found backwards, one after the other: the one that the second layer's output misses least once the
weights of those that stay are set anew. With S the covariance of the channels, P its inverse and w the second layer's
weights, channel j costs |w_j|^2 / P_jj, and the weights that stay become w - w_j P_j / P_jj.
Source: Hassibi and Stork 1993, "Optimal brain surgeon", equations 4 and 5, here for a channel of a layer and the error
of its output; Luo, Wu and Lin 2017, arXiv:1707.06342 (channels chosen by the next layer's output); He, Zhang and Sun
2017, arXiv:1707.06168 (the next layer fitted to what is left).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion import watch
from separable.conversion.moments import Moments, root
from separable.conversion.patches import grouped_weight, is_transposed, write_weight
from separable.conversion.trial import tried
from separable.inputs import Inputs, tensors

FIRST, SECOND = "fewer outputs", "fewer inputs"
THIN = (FIRST, SECOND)
_SAME = 1e-3  # of the largest number, that two ways to leave channels out may differ by


def elimination(weight: Tensor, moments: Moments, importance: Tensor) -> tuple[list[int], list[float]]:
    """The input channels in the order in which they go, and what is lost of the output once each has gone.

    weight [1, O, C, K] of the second layer, importance [1, O] of its outputs. Losses are shares of the variance of the
    output, by the Kronecker product of the moments.
    """
    covariance = moments.channels[0]
    seen = (weight[0] * importance[0].sqrt().view(-1, 1, 1)) @ root(moments.taps)[0]  # [O, C, K]
    energy = torch.einsum("ock,odk->cd", seen, seen)
    whole = float((energy * covariance).sum())
    inverse = torch.linalg.inv(_kept_from_singular(covariance))
    left, order, losses, lost = torch.ones(len(covariance), dtype=torch.bool), [], [], 0.0
    for _ in range(len(covariance)):
        price = (energy.diagonal() / inverse.diagonal()).masked_fill(~left, float("inf"))
        j = int(price.argmin())
        lost += max(0.0, float(price[j]))
        order.append(j)
        losses.append(min(1.0, lost / whole) if whole > 0 else 0.0)
        left[j] = False
        share = inverse[j] / inverse[j, j]
        energy = energy - torch.outer(energy[:, j], share) - torch.outer(share, energy[j]) \
            + energy[j, j] * torch.outer(share, share)  # fmt: skip
        inverse = inverse - torch.outer(inverse[:, j], share)
        inverse[j, j] = 1.0  # gone: it is never looked at again
    return order, losses


def _kept_from_singular(covariance: Tensor) -> Tensor:
    floor = 1e-6 * covariance.diagonal().mean().clamp_min(1e-30)
    return covariance + floor * torch.eye(len(covariance), dtype=covariance.dtype)


def made_up(weight: Tensor, moments: Moments, kept: Tensor) -> Tensor:
    """[1, O, r, K]: the weights of the input channels that stay, with what they can tell of those that go."""
    covariance = _kept_from_singular(moments.channels[0])
    told = torch.linalg.solve(covariance[kept][:, kept], covariance[kept])  # [r, C]
    return torch.einsum("rc,gock->gork", told, weight)


def narrow(conv: Any, *, outputs: Tensor | None = None, inputs: Tensor | None = None) -> Any:
    """The convolution, of one group, with these of its channels."""
    axes = (0, 1) if is_transposed(conv) else (1, 0)  # of the inputs, of the outputs
    made, weight, bias = copy.deepcopy(conv), conv.weight.detach(), conv.bias
    if inputs is not None:
        weight, made.in_channels = weight.index_select(axes[0], inputs), len(inputs)
    if outputs is not None:
        weight, made.out_channels = weight.index_select(axes[1], outputs), len(outputs)
        bias = None if bias is None else nn.Parameter(bias.detach()[outputs].clone(), bias.requires_grad)
    made.weight, made.bias = nn.Parameter(weight.clone(), conv.weight.requires_grad), bias
    return made


def narrow_norm(norm: Any, kept: Tensor) -> Any:
    """A batch norm of these of its channels."""
    made = copy.deepcopy(norm)
    made.num_features = len(kept)
    for held in (made._parameters, made._buffers):
        for name, tensor in held.items():
            if tensor is not None and tensor.dim():
                some: Any = tensor.detach()[kept].clone()
                held[name] = nn.Parameter(some, tensor.requires_grad) if held is made._parameters else some
    return made


def thin(network: nn.Module, first: str, norm: str | None, second: str, kept: Tensor) -> None:
    """Leave out, in place, all channels but these between two layers."""
    network.set_submodule(first, narrow(network.get_submodule(first), outputs=kept))
    if norm:
        network.set_submodule(norm, narrow_norm(network.get_submodule(norm), kept))
    network.set_submodule(second, narrow(network.get_submodule(second), inputs=kept))


def write_made_up(network: nn.Module, dense: Any, second: str, moments: Moments, kept: Tensor) -> None:
    """Give the second layer, thin already, the weights of `made_up`."""
    write_weight(network.get_submodule(second), made_up(grouped_weight(dense), moments, kept))


@torch.no_grad()
def can_be_thin(model: nn.Module, x: Inputs, first: str, norm: str | None, second: str) -> bool:
    """Whether channels between two layers can be left out: tried with every second one, on an example x.

    A network without them has to give what it gives where those channels are zero; whatever else reads them, or mixes
    them with others on the way, fails at that, or has other numbers.
    """
    channels: Any = model.get_submodule(first)
    kept = torch.arange(0, channels.out_channels, 2)
    gone = torch.ones(channels.out_channels, dtype=torch.bool).index_fill(0, kept, False)

    def silence(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (output.dim() - 2)
        return output.masked_fill(gone.to(output.device).view(shape), 0.0)

    with watch.hooks([model.get_submodule(norm or first).register_forward_hook(silence)]):
        expected = list(tensors(x.call(model)))
    kept = kept.to(channels.weight.device)
    given = tried(model, x, lambda structure: thin(structure, first, norm, second, kept))
    if given is None:
        return False
    return [t.shape for t in given] == [t.shape for t in expected] and all(map(_alike, given, expected))


def _alike(given: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(given, expected)
    return bool((given - expected).abs().max() <= _SAME * expected.abs().max().clamp_min(1e-30))
