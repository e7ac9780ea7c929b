"""One layer's new form fitted: first to the dense weight, then to what really comes and what it should give.

In three steps, each from where the last one ended: the nearest factors in the norm of the outputs (moments.py), all
factors on the moments of whole patches where those are small enough to be formed (refine.py), and the last convolution
on the rows that really reach it (least_squares.py).
"""

from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion import chain
from separable.conversion.folded import folded_weight, set_norm
from separable.conversion.forms import Form, Shape
from separable.conversion.least_squares import fit_rows, rectified_targets
from separable.conversion.moments import Accumulator, Moments, Whitening
from separable.conversion.patches import Index, choose, output_rows, patch_rows
from separable.conversion.refine import refine
from separable.conversion.survey import Site, Survey
from separable.errors import InputError

_ROW_NUMBERS = 1 << 24  # of the matrix that a last convolution is fitted on
_LEAST_ROWS, _MOST_ROWS = 4096, 65_536
_LARGEST_PATCH = 1200  # values of a patch whose second moments are formed
_PRIOR = 1e-1  # weight of the dense layer's own answer beside the data's
_ROUNDING = 1e-6  # of second moments that are summed in float32
_RECTIFIED_ROUNDS = 2


class Fitting:
    """The fit of one layer: targets come in batch by batch, then the inputs."""

    def __init__(
        self, survey: Survey, site: Site, form: Form, rank: int, network: nn.Module, kept: Tensor | None = None
    ):
        """network: what it is fitted for, the layer there dense; kept: those of its outputs that it keeps, if few."""
        self.survey, self.site, self.form, self.rank, self.kept = survey, site, form, rank, kept
        self.conv: Any = network.get_submodule(site.name)
        self.shape = Shape.of(self.conv)
        self.maps = survey.examples * site.shares[0]
        self.norm = network.get_submodule(site.norm) if site.norm else None
        last = form.stages(self.shape, rank)[-1]
        self.groups = last.groups
        unknowns = last.weights(self.shape) // last.outputs * last.groups
        if self._small:
            unknowns = max(unknowns, self.shape.groups * self.shape.inputs * self.shape.taps)
        self.rows = max(_LEAST_ROWS, min(_MOST_ROWS, _ROW_NUMBERS // unknowns))
        self.generator = torch.Generator().manual_seed(0)
        self.indices: list[Index] = []
        self.targets: list[Tensor] = []
        self.made: list[tuple[int, ...]] = []

    @property
    def _small(self) -> bool:
        return self.shape.inputs * self.shape.taps <= _LARGEST_PATCH

    def add_target(self, output: Tensor) -> None:
        """What the dense network gives here for the next batch: a sample of its positions is kept."""
        share = len(output) / self.maps
        index = choose(tuple(output.shape), max(1, round(self.rows * share)), self.generator)
        self.indices.append(index)
        rows = output_rows(output, index)
        self.targets.append(rows if self.kept is None else rows[:, self.kept])
        self.made.append(tuple(output.shape[2:]))

    def fit(self, inputs: list[Tensor], shortcuts: list[Tensor | None]) -> tuple[nn.Module, float]:
        """The layer, and its error: squared, as a share of the variance of what it should give, after a ReLU if any.

        inputs: what reaches the layer, batch by batch. shortcuts: what its output is added to there.
        """
        self.weight, _ = folded_weight(self.conv, self.norm)
        sums = Accumulator(self.conv, round(self.maps))
        for x, made in zip(inputs, self.made, strict=True):
            sums.add(x, made)
        if not torch.isfinite(sums.square).all() or not all(torch.isfinite(t).all() for t in self.targets):
            raise InputError("data", "activations", f"{self.site.name} reads or gives NaN or infinite values")
        whitening = Whitening(sums.moments(), torch.ones(self.weight.shape[:2], dtype=torch.float64))
        targets = torch.cat(self.targets)  # [P, G*O]
        added = self._rows(shortcuts)
        factors = approximate(self.form, self.weight, self.shape, self.rank, whitening)
        if self._small and len(factors) > 1:  # of a single factor the last fit is the whole fit
            patches = [
                patch_rows(self.conv, x, index).flatten(2) for x, index in zip(inputs, self.indices, strict=True)
            ]
            factors = self._refined(factors, whitening, patches, targets, added)
        return self._install(factors, inputs, targets, added)

    def _rows(self, shortcuts: list[Tensor | None]) -> Tensor | None:
        if shortcuts[0] is None:
            return None
        pairs = zip(shortcuts, self.indices, strict=True)
        return torch.cat([output_rows(shortcut, index) for shortcut, index in pairs if shortcut is not None])

    def _refined(
        self, factors: list[Tensor], whitening: Whitening, patches: list[Tensor], targets: Tensor, added: Tensor | None
    ) -> list[Tensor]:
        """All factors on the moments of whole patches [P, G, C*K] of each batch, which are used up.

        In coordinates in which these moments are nearly the identity.
        """
        form, shape = self.form, self.shape
        mean = sum(rows.sum(0) for rows in patches) / len(targets)
        # The rows are whitened, not their moments: rounding, multiplied on both sides, would leave these indefinite
        # where channels tell each other, and the fit would run away along what no data holds.
        x = targets.new_empty(shape.groups, len(targets), shape.inputs * shape.taps)
        at = 0
        while patches:  # each goes when it has been read: all of them twice is much memory
            rows = patches.pop(0)
            whitened = whitening.inputs(form, (rows - mean).transpose(0, 1), shape, inverse=True)
            x[:, at : at + len(rows)] = whitened
            at += len(rows)
        gram = (x.mT @ x).double() / x.shape[1]
        ridge = _PRIOR + _ROUNDING * torch.linalg.matrix_norm(gram).view(-1, 1, 1)
        gram = gram + ridge * torch.eye(gram.shape[1], dtype=gram.dtype)
        prior = whitening.inputs(form, self.weight.flatten(2), shape)
        factors = whitening.into(form, factors, shape)
        t = _grouped(targets, shape.groups)  # [G, P, O]
        offset = 0.0 if added is None else _grouped(added, shape.groups)
        wanted = t - offset
        for i in range(_RECTIFIED_ROUNDS if self.site.rectified else 1):
            constant = wanted.mean(1, keepdim=True)
            if i:
                weight = form.compose(factors).flatten(2)
                wanted = rectified_targets(t, x @ weight.mT.to(x) + constant + offset) - offset
                constant = wanted.mean(1, keepdim=True)
            cross = ((wanted - constant).mT @ x).double() / x.shape[1]
            factors = refine(form, factors, gram, cross + ridge * prior, shape)
        return whitening.back(form, factors, shape)

    def _install(
        self, factors: list[Tensor], inputs: list[Tensor], targets: Tensor, added: Tensor | None
    ) -> tuple[nn.Module, float]:
        """The chain, its last convolution fitted to the rows that reach it; a norm after it takes the statistics."""
        stages = self.form.stage_weights(factors)
        layer = _empty_chain(self.conv, self.site, self.form, self.rank)
        chain.write(layer, stages)
        last: Any = layer[-1]
        pairs = zip(inputs, self.indices, strict=True)
        rows = torch.cat([patch_rows(last, layer[:-1](x), index).flatten(2) for x, index in pairs])
        z, t = rows.transpose(0, 1), _grouped(targets, self.groups)
        offset = None if added is None else _grouped(added, self.groups)
        weight, constant, error = fit_rows(z, t, stages[-1].flatten(2).double(), self.site.rectified, offset)
        stages[-1] = weight.view(stages[-1].shape)
        chain.write(layer, stages)
        if self.norm is not None:
            mean, variance = _statistics(z, weight)
            set_norm(self.norm, mean, variance, constant.flatten())
        else:
            last.bias.copy_(constant.flatten())
        return _layer(layer), error


def behind(survey: Survey, name: str) -> list[str]:
    """The layers that run after one and can be fitted anew though they stay dense.

    Few enough values in a patch, and a place for the constant that a fit finds: a norm, or a bias that is there.
    """
    names = [site.name for site in survey.convertible]
    return [later for later in names[names.index(name) + 1 :] if _can_be_fitted_anew(survey, later)]


def _can_be_fitted_anew(survey: Survey, name: str) -> bool:
    site, conv = survey.site(name), survey.conv_of(name)
    shape = Shape.of(conv)
    small = shape.inputs * shape.taps <= _LARGEST_PATCH
    return small and len(site.sizes) == 1 and (site.norm is not None or conv.bias is not None)


def empty_layer(conv: Any, site: Site, form: Form, rank: int) -> nn.Module:
    """What stands in the place of a layer, its weights still to be written; its bias, where no norm follows, zero."""
    return _layer(_empty_chain(conv, site, form, rank))


def _empty_chain(conv: Any, site: Site, form: Form, rank: int) -> nn.Sequential:
    bias = None if site.norm else torch.zeros(conv.out_channels)
    return chain.assemble(conv, form, rank, None, bias, site.pad)


def _layer(chained: nn.Sequential) -> nn.Module:
    """A dense layer is a layer, not a chain of one."""
    return chained[0] if len(chained) == 1 else chained


def approximate(form: Form, weight: Tensor, shape: Shape, rank: int, whitening: Whitening) -> list[Tensor]:
    """Factors of `weight` [G, O, C, K], nearest in the norm of the outputs, float64."""
    target = whitening.target(form, weight, shape)
    return [f.double() for f in whitening.back(form, form.start(target, shape, rank), shape)]


def from_moments(
    conv: Any,
    form: Form,
    rank: int,
    moments: Moments,
    importance: Tensor | None = None,
    pad: tuple[int, ...] | None = None,
) -> nn.Sequential:
    """The chain that is nearest to a convolution on inputs of these moments; importance [G, O] of its outputs."""
    weight, shape = folded_weight(conv, None)[0], Shape.of(conv)
    whitening = Whitening(
        moments, torch.ones(weight.shape[:2], dtype=torch.float64) if importance is None else importance
    )
    return chain.assemble(conv, form, rank, approximate(form, weight, shape, rank, whitening), conv.bias, pad)


def _grouped(rows: Tensor, groups: int) -> Tensor:
    """[P, G*O] as [G, P, O]."""
    return rows.unflatten(1, (groups, -1)).transpose(0, 1)


def _statistics(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [G*O] of what a weight [G, O, n] makes of rows [G, P, n]."""
    mean = rows.mean(1, keepdim=True)
    centred = (rows - mean) @ weight.mT.to(rows)
    return (mean.double() @ weight.mT).flatten(), centred.square().mean(1).flatten().double()
