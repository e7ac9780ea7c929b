"""The peers of `convert` that peers.py measures: a trained network in tensorly's forms, decoupled, or pruned.

The peers get what is simple to give. Of the forms the first layer, of one or three channels, stays dense; each other
layer keeps the same share of its multiply-adds, and what that leaves of the budget goes to the first layers.
Torch-Pruning prunes by several of its measures of importance, over the whole network and layer by layer; the one that
is nearest to the dense network on the calibration examples counts. At last batch norms take their statistics of these
examples anew.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import tensorly
import torch
import torch.nn.functional as F
import torch_pruning
from dense_networks import BATCH, batched
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn

from separable import cost

tensorly.set_backend("pytorch")


@dataclass(frozen=True)
class Form:
    """stages: (inputs, outputs, with the kernel, groups) of each convolution of a chain; weights: theirs, in order."""

    ranks: Callable[[nn.Module], Sequence]
    stages: Callable[[nn.Module, object], list[tuple[int, int, bool, int]]]
    weights: Callable[[Tensor, object], list[Tensor]]  # of the dense weight [O, C, K]


def cp_weights(weight: Tensor, rank: int) -> list[Tensor]:
    """Lebedev et al. 2015, with the taps as one dimension: a richer form than one of each axis alone."""
    unit = weight.double() / weight.norm()
    # without the penalty components grow and cancel, to 1,000 times the weight, and do not survive training
    options = {"n_iter_max": 300, "tol": 1e-9, "l2_reg": 1e-4}
    scale, (b, a, d) = parafac(unit, rank, init="svd", random_state=0, **options)
    scale = scale * weight.norm()
    sizes = [factor.norm(dim=0).clamp_min(1e-12) for factor in (a, d, b)]
    whole = (scale.abs() * sizes[0] * sizes[1] * sizes[2]) ** (1 / 3)  # factors of a component of equal size
    a, d, b = (factor / size * whole for factor, size in zip((a, d, b * scale.sign()), sizes, strict=True))
    return [a.T, d.T, b]  # [R, C], [R, K], [O, R]


def tucker_weights(weight: Tensor, rank: tuple[int, int]) -> list[Tensor]:
    """Kim et al. 2016: Tucker's form of both dimensions of channels."""
    (core, (b, a)), _ = partial_tucker(weight, rank=list(rank), modes=[0, 1], n_iter_max=100, tol=1e-7)
    return [a.T, core, b]


def decoupled_weights(weight: Tensor, rank: int) -> list[Tensor]:
    """Guo et al. 2018, section 3.2: of each input channel the singular vectors of its [O, K]; depthwise, pointwise."""
    u, s, v = torch.linalg.svd(weight.permute(1, 0, 2), full_matrices=False)  # [C, O, K']
    root = s[:, :rank].sqrt()
    return [(root[:, :, None] * v[:, :rank]).flatten(0, 1), (u[:, :, :rank] * root[:, None]).transpose(0, 1).flatten(1)]


def taps(conv: nn.Module) -> int:
    return conv.weight[0, 0].numel()


FORMS = {
    "tensorly CP": Form(
        lambda conv: range(1, max(conv.in_channels, conv.out_channels) * taps(conv)),
        lambda conv, r: [(conv.in_channels, r, False, 1), (r, r, True, r), (r, conv.out_channels, False, 1)],
        cp_weights,
    ),
    "tensorly Tucker": Form(
        lambda conv: [(-(-conv.out_channels * i // 64), -(-conv.in_channels * i // 64)) for i in range(1, 65)],
        lambda conv, r: [
            (conv.in_channels, r[1], False, 1), (r[1], r[0], True, 1), (r[0], conv.out_channels, False, 1)
        ],
        tucker_weights,
    ),
    "network decoupling": Form(
        lambda conv: range(1, taps(conv) + 1),
        lambda conv, r: [
            (conv.in_channels, conv.in_channels * r, True, conv.in_channels),
            (conv.in_channels * r, conv.out_channels, False, 1),
        ],
        decoupled_weights,
    ),
}  # fmt: skip


def chain(conv: nn.Module, form: Form, rank: object, fitted: bool) -> nn.Sequential:
    """In place of `conv`; with random weights where only its time is asked for."""
    made = []
    for inputs, outputs, kernel, groups in form.stages(conv, rank):
        options = {name: getattr(conv, name) for name in ("stride", "padding", "dilation")} if kernel else {}
        size = conv.kernel_size if kernel else 1
        made.append(type(conv)(inputs, outputs, size, groups=groups, bias=False, **options))
    if fitted:
        for new, weight in zip(made, form.weights(conv.weight.detach().flatten(2), rank), strict=True):
            new.weight.data.copy_(weight.reshape(new.weight.shape))
    made[-1].bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
    return nn.Sequential(*made)


class Decomposed:
    """A dense network of whose layers each gets one form, at ranks that leave the same share of multiply-adds."""

    def __init__(self, dense: nn.Module, x: Tensor, form: Form):
        self.dense, self.x, self.form, self.sites = dense, x, form, {}
        self.whole, hooks = cost.count(dense, x[:1]).macs, []
        for name, conv in dense.named_modules():
            wanted = isinstance(conv, (nn.Conv1d, nn.Conv2d)) and conv.groups == 1 and conv.in_channels > 3
            if wanted and taps(conv) > 1:
                hooks.append(conv.register_forward_hook(partial(self.note, name)))
        batched(dense, x[:1], 1)
        for hook in hooks:
            hook.remove()
        self.rest = self.whole - sum(conv.weight.numel() * after for conv, _, after in self.sites.values())

    def note(self, name: str, conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.sites[name] = (conv, inputs[0][0, 0].numel(), output[0, 0].numel())

    def macs(self, name: str, rank: object) -> int:
        (conv, before, after), total, at = self.sites[name], 0, None
        for inputs, outputs, kernel, groups in self.form.stages(conv, rank):
            at = after if kernel or at == after else before
            total += inputs * outputs // groups * (taps(conv) if kernel else 1) * at
        return total

    def ranks(self, share: float) -> dict[str, object] | None:
        """Of the whole network's multiply-adds at most `share`."""
        limit = share * self.whole - self.rest
        costs = {
            name: [(self.macs(name, rank), rank) for rank in self.form.ranks(conv)]
            for name, (conv, _, _) in self.sites.items()
        }

        def chosen(part: float) -> dict[str, tuple[int, object]]:
            return {
                name: max((one for one in many if one[0] <= part * dense), default=many[0])
                for name, many in costs.items()
                if (dense := self.sites[name][0].weight.numel() * self.sites[name][2])
            }

        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            fits = sum(macs for macs, _ in chosen(middle).values()) <= limit
            low, high = (middle, high) if fits else (low, middle)
        asked = chosen(low)
        if sum(macs for macs, _ in asked.values()) > limit:
            return None
        for name, many in costs.items():  # what is left goes to the first layers
            left = limit - sum(macs for macs, _ in asked.values())
            more = [one for one in many if asked[name][0] < one[0] <= asked[name][0] + left]
            asked[name] = min(more, default=asked[name])
        return {name: rank for name, (_, rank) in asked.items()}

    def network(self, share: float, fitted: bool = True) -> nn.Module | None:
        ranks = self.ranks(share)
        if ranks is None:
            return None
        made = copy.deepcopy(self.dense)
        for name, rank in ranks.items():
            parent, _, last = name.rpartition(".")
            setattr(made.get_submodule(parent), last, chain(self.sites[name][0], self.form, rank, fitted))
        return recalibrated(made, self.x) if fitted else made.eval()


class Pruned:
    """A dense network of fewer channels, by Torch-Pruning."""

    def __init__(self, dense: nn.Module, x: Tensor):
        self.dense, self.x, self.whole = dense, x, cost.count(dense, x[:1]).macs
        self.answers = batched(dense, x, BATCH).clone()  # a copy that autograd may keep
        asked = copy.deepcopy(dense)
        for some, answers in zip(x.split(BATCH), self.answers.split(BATCH), strict=True):
            F.cross_entropy(asked(some), answers.argmax(1)).backward()
        self.gradients = [parameter.grad for parameter in asked.parameters()]  # one of the measures reads them

    def network(self, share: float, fitted: bool = True) -> nn.Module | None:
        importance = torch_pruning.importance
        measures = [importance.GroupMagnitudeImportance, importance.LAMPImportance, importance.GroupTaylorImportance]
        ways = list(itertools.product(measures, [True, False])) if fitted else [(measures[0], True)]
        found = [one for way in ways if (one := self.pruned(*way, share)) is not None]
        if not fitted:
            return next(iter(found), None)
        return min((recalibrated(one, self.x) for one in found), key=self.loss, default=None)

    def loss(self, network: nn.Module) -> float:
        given, wanted = (answers.log_softmax(1) for answers in (batched(network, self.x, BATCH), self.answers))
        return float(F.kl_div(given, wanted, log_target=True, reduction="batchmean"))

    def pruned(self, measure: type, over_all: bool, share: float) -> nn.Module | None:
        low, high, best = 0.0, 1.0, None
        for _ in range(7):
            ratio, network = (low + high) / 2, copy.deepcopy(self.dense)
            for parameter, gradient in zip(network.parameters(), self.gradients, strict=True):
                parameter.grad = gradient.clone()
            kept = [module for name, module in network.named_modules() if is_kept(name, module)]
            options = {"global_pruning": over_all, "max_pruning_ratio": 0.95, "ignored_layers": kept}
            pruner = torch_pruning.pruner.BasePruner(network, self.x[:1], measure(), pruning_ratio=ratio, **options)
            pruner.step()
            network.zero_grad()
            fits = cost.count(network, self.x[:1]).macs <= share * self.whole
            low, high, best = (low, ratio, network) if fits else (ratio, high, best)
        return best


def is_kept(name: str, module: nn.Module) -> bool:
    """What gives the answers, and what a residual network adds to a shortcut that is padded with zeros."""
    return isinstance(module, nn.Linear) or name == "conv1" or name.endswith(".conv2")


def recalibrated(network: nn.Module, x: Tensor) -> nn.Module:
    norms = [module for module in network.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    batched(network, x, BATCH)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
