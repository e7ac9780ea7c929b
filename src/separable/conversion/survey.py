"""Look at a trained network at work: which convolutions it runs, in which order, on what, and what reads their outputs.

Every later step works from this. The network is copied and runs in eval mode; the one that was given is not touched.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from separable import cost
from separable.conversion import batches, watch
from separable.conversion.batches import Data
from separable.conversion.factorize import why_not
from separable.conversion.moments import Accumulator, Moments, Positions, patch_rows, rows
from separable.cost.count import uncompiled
from separable.errors import InputError
from separable.inputs import own_copy
from separable.progress import track

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SAMPLES = 1024
_GRAM_BYTES = 1 << 30  # of moments summed in one pass; a larger network takes several
_GRAM_SIDE = 9216  # C*K beyond which a layer is left dense: its moments alone would pass 1 GB


@dataclass
class Site:
    """One convolution of the network. macs and places (output positions, input positions): one example, all calls."""

    name: str
    macs: int
    params: int
    calls: int
    places: int
    input_places: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kept: str | None  # why it stays as it is; None if it can be made separable
    norm: str | None = None  # the batch norm that alone reads its output
    added: str | None = None  # the module, this or its norm, whose output is only ever added to a shortcut
    moments: Moments | None = field(default=None, repr=False)

    @property
    def known(self) -> Moments:
        assert self.moments is not None, "a survey measures every site that can be made separable"
        return self.moments


@dataclass
class Survey:
    """What `survey` saw. `sites` stand in the order in which the network runs them."""

    model: nn.Module = field(repr=False)  # an eval copy of the dense network
    inputs: list[Tensor] = field(repr=False)
    example: Tensor = field(repr=False)
    sites: list[Site]
    macs: int
    params: int

    @property
    def convertible(self) -> list[Site]:
        return [site for site in self.sites if site.kept is None]


def survey(model: nn.Module, data: Data, *, example: Tensor | None = None, samples: int = SAMPLES) -> Survey:
    """Run `model` on data and note for each convolution its place, its work and the moments of what it reads.

    Args:
        model: any module of one tensor; not modified. Of one that torch.compile made, the network inside is looked at.
        data: a tensor [N, ...], or an iterable of batches, each a tensor or (inputs, labels).
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
    dense = copy.deepcopy(model).eval().requires_grad_(False)
    inputs = batches.collect(data, dense, samples)
    example = inputs[0][:1] if example is None else batches.collect(example, dense)[0]
    sites = _trace(dense, inputs[0][:2])
    if all(site.kept for site in sites):
        reasons = "; ".join(f"{site.name or 'the model'}: {site.kept}" for site in sites) or "it runs no convolution"
        raise InputError("model", type(model).__name__, f"has no convolution that can be made separable ({reasons})")
    counted = cost.count(dense, example)
    found = Survey(dense, inputs, example, sites, counted.macs // len(example), counted.params)
    for group in in_groups(found.convertible, _gram_bytes, _GRAM_BYTES):
        _measure(found, group)
    return found


@torch.no_grad()
def _trace(model: nn.Module, batch: Tensor) -> list[Site]:
    """The convolutions in the order of their first call, from one pass over `batch`."""
    names = {module: name for name, module in model.named_modules()}
    calls: dict[nn.Module, list[tuple[torch.Size, torch.Size]]] = defaultdict(list)
    norms: dict[str, list[str]] = defaultdict(list)
    produced: dict[int, str] = {}
    readers = watch.Readers()

    def ran_convolution(module, args, output):
        calls[module].append((args[0].shape, output.shape))
        readers.follow(names[module], output)
        produced[id(output)] = names[module]

    def ran_norm(module, args, output):
        if id(args[0]) in produced:
            norms[produced[id(args[0])]].append(names[module])
        readers.follow(names[module], output)

    def check_channels(module, args):
        given = args[0].shape[1] if args[0].dim() == len(module.kernel_size) + 2 else None
        if given not in (None, module.in_channels):
            shape = f"tensor of shape {list(batch.shape)}"
            raise InputError("data", shape, f"{names[module]} reads {module.in_channels} channels and is given {given}")

    handles = []
    for module in names:
        if isinstance(module, CONVOLUTIONS):
            handles += [module.register_forward_pre_hook(check_channels), module.register_forward_hook(ran_convolution)]
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_hook(ran_norm))
    with watch.hooks(handles), readers:
        run(model, batch)
    shared = _shared_weights(model)
    norm_calls = [norm for read in norms.values() for norm in read]
    sites = []
    for module, seen in calls.items():
        site = _site(names[module], module, seen, len(batch), shared)
        if len(seen) == 1 and site.kept is None:
            _note_readers(site, model, norms[site.name], norm_calls, readers)
        sites.append(site)
    return sites


def run(model: nn.Module, batch: Tensor, argument: str = "data", who: str = "the model"):
    """model(batch), which stays as it is, with what the model cannot read told as the caller's mistake."""
    try:
        return model(own_copy(batch))
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(argument, batches.describe(batch), f"{who} cannot read it: {first}") from error


def _site(name: str, conv: Any, seen, examples: int, shared: set[str]) -> Site:
    taps = math.prod(conv.kernel_size) * conv.in_channels // conv.groups
    places = sum(math.prod(made[2:]) for _, made in seen)
    input_places = sum(math.prod(given[2:]) for given, _ in seen)
    transposed = isinstance(conv, CONVOLUTIONS[3:])
    macs = (input_places if transposed else places) * taps * conv.out_channels
    kept = why_not(conv)
    if kept is None and name in shared:
        kept = "it shares its weights with another layer"
    if kept is None and len(seen[0][0]) != len(conv.kernel_size) + 2:
        kept = "it reads a single example without a batch"
    if kept is None and taps > _GRAM_SIDE:
        kept = f"its patches of {taps} values are too large to keep moments of"
    params = sum(p.numel() for p in conv.parameters())
    shapes = (1, *seen[0][0][1:]), (1, *seen[0][1][1:])
    return Site(name, macs, params, len(seen), places, input_places, *shapes, kept)


def _note_readers(
    site: Site, model: nn.Module, norms: list[str], norm_calls: list[str], readers: watch.Readers
) -> None:
    """Fill in `norm` and `added` where a single reader makes them certain."""
    if len(norms) == 1 and readers.reads[site.name] == 1 and norm_calls.count(norms[0]) == 1:
        site.norm = norms[0]
    end = site.norm or site.name
    plain = site.norm is None or type(model.get_submodule(site.norm)) in (
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
    )
    if plain and readers.reads[end] == 1 and readers.added[end] == 1:
        site.added = end


def _shared_weights(model: nn.Module) -> set[str]:
    """Names of modules whose weight is also another module's."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            owners[id(weight)].append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def in_groups(sites: list[Site], bytes_of: Callable[[Site], int], most_bytes: int) -> list[list[Site]]:
    """Neighbouring sites whose needs fit into memory together; one that needs more stands alone."""
    groups: list[list[Site]] = [[]]
    used = 0
    for site in sites:
        size = bytes_of(site)
        if groups[-1] and used + size > most_bytes:
            groups.append([])
            used = 0
        groups[-1].append(site)
        used += size
    return groups


def _gram_bytes(site: Site) -> int:
    side = site.params // site.output_shape[1]
    return 8 * side * side


@torch.no_grad()
def _measure(found: Survey, group: list[Site]) -> None:
    """One pass over the data that sums the moments of each site of the group and checks that all is finite."""
    examples = sum(len(batch) for batch in found.inputs)
    convs: dict[str, Any] = {site.name: found.model.get_submodule(site.name) for site in group}
    sums = {name: Accumulator(conv.in_channels) for name, conv in convs.items()}
    positions = {site.name: Positions(convs[site.name], examples * site.calls) for site in group}

    def check(name):
        def finite(module, args, output):
            if isinstance(output, Tensor) and output.is_floating_point() and not torch.isfinite(output).all():
                raise InputError("data", "activations", f"{name or 'the model'} gives NaN or infinite values")

        return finite

    def add(name):
        def ran(module, args, output):
            index = positions[name].choose(output)
            sums[name].add(patch_rows(module, args[0], index), rows(output, index))

        return ran

    handles = [m.register_forward_hook(check(n)) for n, m in found.model.named_modules() if not list(m.children())]
    handles += [conv.register_forward_hook(add(name)) for name, conv in convs.items()]
    with watch.hooks(handles):
        for batch in track(found.inputs, "surveying the dense network"):
            if batch.is_floating_point() and not torch.isfinite(batch).all():
                raise InputError("data", batches.describe(batch), "holds NaN or infinite values")
            run(found.model, batch)
    for site in group:
        site.moments = sums[site.name].moments(has_intercept(site, convs[site.name]))


def has_intercept(site: Site, conv: Any) -> bool:
    """Whether a constant can be added to the layer's output: its bias, or the mean of the batch norm that reads it."""
    return conv.bias is not None or site.norm is not None
