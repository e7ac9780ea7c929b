"""Look at a trained network at work: which convolutions it runs, in which order, on what, and what reads their outputs.

Every later step works from this. The network is copied and runs in eval mode; the one that was given is not touched.
"""

import copy
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from separable import cost
from separable.conversion import batches, stays, thin, watch
from separable.conversion.batches import Data, run
from separable.conversion.folded import scale_of
from separable.conversion.moments import Accumulator, Moments
from separable.conversion.patches import TRANSPOSED, grouped_weight
from separable.conversion.removal import Block, find_blocks
from separable.conversion.stays import CONVOLUTIONS
from separable.cost.count import uncompiled
from separable.errors import InputError
from separable.inputs import Example, Inputs, tensors
from separable.progress import track

SAMPLES = 1024
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class Site:
    """One convolution of the network.

    sizes: spatial size of the input and of the output in each call. shares: of each call, how many maps it reads for
    one example: several where frames or tiles stand in the batch, a part where examples are read one by one.
    """

    name: str
    macs: int  # one example, all calls
    params: int
    sizes: list[tuple[tuple[int, ...], tuple[int, ...]]]
    kept: str | None  # why it stays as it is; None if it can be made separable
    norm: str | None = None  # the batch norm that alone reads its output
    added: str | None = None  # the module, this or its norm, whose output is only ever added to a shortcut
    rectified: bool = False  # whether a ReLU alone reads what becomes of it
    shares: list[float] = field(default_factory=lambda: [1.0])
    pad: tuple[int, ...] | None = None  # zeros that the network puts around its input, which it alone reads
    moments: Moments | None = field(default=None, repr=False)

    def takes_bias(self, conv: Any) -> bool:
        """Whether a new layer in its place has a bias: a norm after it takes constants, else one costs nothing."""
        return self.norm is None and (len(self.sizes) == 1 or conv.bias is not None)

    @property
    def known(self) -> Moments:
        assert self.moments is not None, "a survey measures every site that can be made separable"
        return self.moments


@dataclass
class Survey:
    """What `survey` saw. `sites` stand in the order in which the network runs them."""

    model: nn.Module = field(repr=False)  # an eval copy of the dense network
    inputs: list[Inputs] = field(repr=False)
    example: Inputs = field(repr=False)
    sites: list[Site]
    macs: int
    params: int
    pairs: dict[str, str] = field(default_factory=dict)  # the layer between which and this one channels can go
    blocks: dict[str, Block] = field(default_factory=dict)  # that can go, by their names

    @property
    def convertible(self) -> list[Site]:
        return [site for site in self.sites if site.kept is None]

    @property
    def examples(self) -> int:
        return sum(len(batch) for batch in self.inputs)

    def conv(self, site: Site) -> Any:
        return self.conv_of(site.name)

    def conv_of(self, name: str) -> Any:
        return self.model.get_submodule(name)

    def importance(self, site: Site) -> Tensor:
        """[G, O]: the square of what the norm multiplies each output by."""
        conv = self.conv(site)
        if not site.norm:
            return torch.ones(conv.groups, conv.out_channels // conv.groups, dtype=torch.float64)
        return scale_of(self.model.get_submodule(site.norm)).square().view(conv.groups, -1)

    def elimination(self, second: str) -> tuple[list[int], list[float]]:
        """The channels that the second layer of a pair reads, in the order in which they go; see `thin`."""
        site = self.site(second)
        return thin.elimination(grouped_weight(self.conv(site)), site.known, self.importance(site))

    def site(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)


@torch.inference_mode(False)  # what is copied and made here can be trained later
def survey(model: nn.Module, data: Data, *, example: Example | None = None, samples: int = SAMPLES) -> Survey:
    """Run `model` on data and note for each convolution its place, its work and the moments of what it reads.

    Args:
        model: any module; not modified. Of one that torch.compile made, the network inside is looked at.
        data: a tensor [N, ...], or an iterable of batches, each (inputs, labels) or the inputs alone: a tensor, a tuple
            of what the model takes by position or a dict of what it takes by name. Several inputs without labels are
            written ((a, b),). In a dict that is a whole batch, "labels" are the labels.
        example: the input that MACs are counted and latency is measured on; the first of the data where not given.
        samples: how many examples of the data are used at most; they are kept in memory.

    Raises:
        InputError: no data, data that the model cannot read, NaN or infinity inside (names the layer), or no
            convolution that can be made separable (gives the reasons).

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
    >>> [(site.name, site.kept) for site in survey(net, torch.randn(4, 3, 8, 8)).sites]
    [('0', None), ('2', 'it is pointwise (one tap)')]
    """
    batches.check_values("model", model)
    model = uncompiled(model)
    dense = _copied(model).eval().requires_grad_(False)
    inputs = batches.collect(data, dense, samples)
    sites = _trace(dense, inputs[0][:2])
    if example is None:
        example = inputs[0][:1]
    else:
        example = batches.example_of(example, dense)
        sites = _trace(dense, example[:2], "example")  # the sizes that are counted and timed
    if all(site.kept for site in sites):
        reasons = "; ".join(f"{site.name or 'the model'}: {site.kept}" for site in sites) or "it runs no convolution"
        raise InputError("model", type(model).__name__, f"has no convolution that can be made separable ({reasons})")
    counted = cost.count(dense, example)
    found = Survey(dense, inputs, example, sites, counted.macs // len(example), counted.params)
    _measure(found)
    found.pairs = _pairs(found)
    found.blocks = find_blocks(dense, example, [site.name for site in found.convertible])
    return found


@torch.no_grad()
def _trace(model: nn.Module, batch: Inputs, argument: str = "data") -> list[Site]:
    """The convolutions in the order of their first call, from one pass over `batch`."""
    names = {module: name for name, module in model.named_modules()}
    calls: dict[nn.Module, list[tuple[torch.Size, torch.Size]]] = defaultdict(list)
    with_more: set[nn.Module] = set()  # than their input, as transposed ones with an output size
    pads: dict[nn.Module, list[tuple[Tensor, tuple[int, ...]]]] = defaultdict(list)
    norms: dict[str, list[str]] = defaultdict(list)
    readers = watch.Readers()

    def begins(module, args, named):
        readers.inside += 1
        x = _input(args, named)
        if len(args) + len(named) > 1:
            with_more.add(module)
        given = x.shape[1] if x.dim() == len(module.kernel_size) + 2 else None
        if given not in (None, module.in_channels):
            rule = f"{names[module]} reads {module.in_channels} channels and is given {given}"
            raise InputError(argument, str(batch), rule)

    def ran_convolution(module, args, named, output):
        readers.inside -= 1
        x = _input(args, named)
        calls[module].append((x.shape, output.shape))
        pad = readers.padding_of(x)
        if pad is not None:
            pads[module].append((x, pad))
        readers.follow(names[module], output)

    def ran_norm(module, args, named, output):
        name = readers.name_of(_input(args, named))
        if name is not None:
            norms[name].append(names[module])
        readers.follow(names[module], output)

    handles = []
    for module in names:
        if isinstance(module, CONVOLUTIONS):
            handles.append(module.register_forward_pre_hook(begins, with_kwargs=True))
            handles.append(module.register_forward_hook(ran_convolution, with_kwargs=True))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_hook(ran_norm, with_kwargs=True))
    with watch.hooks(handles), readers:
        outputs = run(model, batch, argument)
    for tensor in tensors(outputs):
        name = readers.name_of(tensor)
        if name is not None:
            readers.reads[name].append(run)  # by the caller
    kept = stays.reasons(model, batch, [names[module] for module in calls])
    kept |= {names[module]: "it is called with more than its input" for module in with_more}
    norm_calls = [norm for read in norms.values() for norm in read]
    sites = []
    for module, seen in calls.items():
        conv: Any = module
        site = _site(names[module], conv, seen, kept, len(batch))
        if len(seen) == 1 and site.kept is None:
            _note_readers(site, model, norms[site.name], norm_calls, readers)
            for padded, pad in pads[module]:
                if readers.padded_reads(padded) == 1 and len(pad) <= 2 * len(conv.kernel_size):
                    site.pad = pad
        sites.append(site)
    _keep_the_later_of_a_sum(sites, readers)
    sites += [
        Site(f"function {i}", 0, 0, [], "it is called as a function, not as a module") for i in range(readers.bare)
    ]
    return sites


def _copied(model: nn.Module) -> nn.Module:
    """A copy, also of a network that holds what a training step left or a hook computes: no graph goes with it."""
    values = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in values if not value.is_leaf})


def _input(args: tuple, named: dict[str, Any]) -> Tensor:
    return args[0] if args else named["input"]


def _site(
    name: str, conv: Any, seen: list[tuple[torch.Size, torch.Size]], reasons: dict[str, str], examples: int
) -> Site:
    taps = math.prod(conv.kernel_size) * (conv.in_channels // conv.groups) * conv.out_channels
    sizes = [(tuple(given[2:]), tuple(made[2:])) for given, made in seen]
    single = len(seen[0][0]) != len(conv.kernel_size) + 2
    shares = [1.0 if single else given[0] / examples for given, _ in seen]
    positions = [math.prod(given if isinstance(conv, TRANSPOSED) else made) for given, made in sizes]
    macs = round(sum(share * number for share, number in zip(shares, positions, strict=True)) * taps)
    kept = reasons.get(name)
    if kept is None and single:
        kept = "it reads a single example without a batch"
    return Site(name, macs, sum(p.numel() for p in conv.parameters()), sizes, kept, shares=shares)


def _note_readers(
    site: Site, model: nn.Module, norms: list[str], norm_calls: list[str], readers: watch.Readers
) -> None:
    """Fill in `norm`, `added` and `rectified` where a single reader makes them certain."""
    if len(norms) == 1 and len(readers.reads[site.name]) == 1 and norm_calls.count(norms[0]) == 1:
        norm: Any = model.get_submodule(norms[0])
        if type(norm) in _NORMS and norm.running_var is not None and norm.affine:
            site.norm = norms[0]
    end = site.norm or site.name
    if len(readers.reads[end]) == 1 and len(readers.sums[end]) == 1:
        site.added, end = end, readers.sums[end][0]
    site.rectified = len(readers.reads[end]) == 1 and readers.reads[end][0] in watch.RECTIFIERS


def _keep_the_later_of_a_sum(sites: list[Site], readers: watch.Readers) -> None:
    """Of two layers whose outputs are added to each other the first is fitted alone, the other to the sum."""
    later: dict[str, Site] = {}
    for site in reversed(sites):
        if site.added is None:
            continue
        if readers.summed.get(site.added) in later:
            site.added, site.rectified = None, False
        else:
            later[site.added] = site


@torch.no_grad()
def _measure(found: Survey) -> None:
    """One pass over the data that sums the moments of each site and checks that all is finite."""
    convs = {site.name: found.conv(site) for site in found.convertible}
    maps = {site.name: round(found.examples * sum(site.shares)) for site in found.convertible}
    sums = {name: Accumulator(conv, maps[name]) for name, conv in convs.items()}

    def add(name):
        return lambda module, args, named, output: sums[name].add(_input(args, named), tuple(output.shape[2:]))

    handles = [conv.register_forward_hook(add(name), with_kwargs=True) for name, conv in convs.items()]
    with watch.hooks(handles):
        for batch in track(found.inputs, "surveying the dense network"):
            if not batch.are_finite():
                raise InputError("data", str(batch), "holds NaN or infinite values")
            outputs = run(found.model, batch)
            sound = all(torch.isfinite(t).all() for t in tensors(outputs) if t.is_floating_point())
            if not sound or not all(torch.isfinite(s.square).all() for s in sums.values()):
                _name_the_unsound(found.model, batch)
    for site in found.convertible:
        site.moments = sums[site.name].moments()


def _pairs(found: Survey) -> dict[str, str]:
    """By the name of the second layer that of the first, of two that run one after the other."""
    pairs = {}
    x = found.inputs[0][:1]
    for first, second in itertools.pairwise(track(found.convertible, "looking for channels that can go")):
        one, other = found.conv(first), found.conv(second)
        fits = one.groups == other.groups == 1 and one.out_channels == other.in_channels > 1
        once = len(first.sizes) == len(second.sizes) == 1 and first.added is None
        if fits and once and thin.can_be_thin(found.model, x, first.name, first.norm, second.name):
            pairs[second.name] = first.name
    return pairs


def _name_the_unsound(model: nn.Module, batch: Inputs) -> None:
    """Run again, looking at what each layer gives: the first that is not finite is named."""

    def check(name):
        def finite(module, args, output):
            if isinstance(output, Tensor) and output.is_floating_point() and not torch.isfinite(output).all():
                raise InputError("data", "activations", f"{name or 'the model'} gives NaN or infinite values")

        return finite

    with watch.hooks([m.register_forward_hook(check(n)) for n, m in model.named_modules()]):
        run(model, batch)
