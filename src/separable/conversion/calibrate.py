"""Fit the separable layers to what the dense ones did, on real activations, layer after layer; no gradient step.

A separable layer reads what the separable network before it really gives, and is fitted to what the dense layer gave
on the dense network's own input, so that it also repairs what earlier layers lost. Where its output is added to a
shortcut, the target is the dense network's sum: the last convolution of a residual block absorbs the shortcut's error.
Ridge least squares in float64 (least_squares.py), then the statistics of the batch norm that reads the layer.
Source: He, Zhang and Sun 2017, arXiv:1707.06168, section 3.2 (reconstruction of the whole residual branch).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion import watch
from separable.conversion.batches import Data
from separable.conversion.factorize import SEPARABLE, bias_of, read_halves, write_halves
from separable.conversion.least_squares import RIDGE, compose, fit
from separable.conversion.moments import (
    PATCHES,
    PATCHES_PER_UNKNOWN,
    Accumulator,
    Index,
    Moments,
    Positions,
    patch_rows,
    rows,
)
from separable.conversion.survey import SAMPLES, Site, Survey, has_intercept, in_groups, survey
from separable.errors import InputError
from separable.progress import track

SWEEPS = 4
_TARGET_BYTES = 1 << 30  # of the dense network's outputs kept at once; more layers take another pass


def calibrate(
    separable: nn.Module,
    dense: nn.Module | Survey,
    data: Data | None = None,
    *,
    sweeps: int = SWEEPS,
    ridge: float = RIDGE,
    samples: int = SAMPLES,
) -> dict[str, float]:
    """Fit each separable layer of `separable`, in place, to the layer of the same name in `dense`.

    Args:
        separable: a copy of the dense network with some convolutions replaced, as by `factorize`.
        dense: the dense network, or the survey of it, whose data then serves.
        data: a tensor [N, ...], or an iterable of batches, each a tensor or (inputs, labels).
        sweeps: pointwise fits of each layer, with a depthwise fit between two.
        ridge: strength of the pull towards the weights found so far, as a share of each unknown's energy.
        samples: how many examples are used at most.

    Returns:
        For each layer fitted the relative error of its output: mean squared error over the target's variance.

    Raises:
        InputError: data that is missing or that the networks cannot read, NaN inside (names the layer), or two
            networks that do not correspond.
    """
    if not isinstance(dense, Survey):
        if data is None:
            raise InputError("data", None, "is needed where `dense` is a network and not a survey of one")
        dense = survey(dense, data, samples=samples)
    fitted = [site for site in dense.sites if is_separable(separable, site.name)]
    if not fitted:
        raise InputError(
            "separable", type(separable).__name__, "has no separable layer where the dense network has one"
        )
    flags = {module: module.training for module in separable.modules()}
    separable.eval()
    try:
        errors = {}
        examples = sum(len(batch) for batch in dense.inputs)
        for group in in_groups(fitted, lambda site: _target_bytes(site, examples), _TARGET_BYTES):
            targets = _targets(dense, group)
            for site in track(group, "calibrating"):
                errors[site.name] = _calibrate_layer(separable, dense, site, targets.pop(site.name), sweeps, ridge)
        return errors
    finally:
        for module, training in flags.items():
            module.training = training


def is_separable(model: nn.Module, name: str) -> bool:
    try:
        return isinstance(model.get_submodule(name), tuple(SEPARABLE.values()))
    except AttributeError:
        raise InputError(
            "separable", type(model).__name__, f"has no module {name}, which the dense network runs"
        ) from None


@dataclass
class _Target:
    """What a layer should give at the positions looked at in one call [P, C_out], and the shortcut it is added to."""

    index: Index
    outputs: Tensor
    shortcut: Tensor | None


def _target_bytes(site: Site, examples: int) -> int:
    unknowns = site.known.gram.shape[0]
    return 8 * site.output_shape[1] * min(max(PATCHES, PATCHES_PER_UNKNOWN * unknowns), examples * site.places)


@torch.no_grad()
def _targets(dense: Survey, sites: list[Site]) -> dict[str, list[_Target]]:
    """From one pass of the dense network over the data, for each layer the targets of each call."""
    examples = sum(len(batch) for batch in dense.inputs)
    positions = {site.name: Positions(dense.model.get_submodule(site.name), examples * site.calls) for site in sites}
    wanted = {site.name: (site.calls, site.added) for site in sites}
    found: dict[str, list[_Target]] = {site.name: [] for site in sites}
    for batch in dense.inputs:
        for name, seen in watch.observe(dense.model, batch, wanted).items():
            for output in seen.outputs:
                index = positions[name].choose(output)
                shortcut = None if seen.other is None else rows(seen.other, index)
                found[name].append(_Target(index, rows(output, index), shortcut))
    return found


@torch.no_grad()
def _calibrate_layer(
    separable: nn.Module, dense: Survey, site: Site, targets: list[_Target], sweeps: int, ridge: float
) -> float:
    layer: Any = separable.get_submodule(site.name)
    moments = _moments(separable, dense, site, targets)
    if not torch.isfinite(moments.gram).all() or not torch.isfinite(moments.cross).all():
        raise InputError("data", "activations", f"{site.name} reads or gives NaN or infinite values")
    importance = output_importance(dense.model, site)
    dw, pw = fit(layer.order, moments, *read_halves(layer), importance, sweeps=sweeps, ridge=ridge)
    write_halves(layer, dw, pw)
    install_constant(separable, dense.model, site, moments, compose(layer.order, dw, pw))
    return relative_error(moments, compose(layer.order, dw, pw), importance)


def _moments(separable: nn.Module, dense: Survey, site: Site, targets: list[_Target]) -> Moments:
    """Of what the separable network's layer reads, with what it should give."""
    conv: Any = dense.model.get_submodule(site.name)
    sums, waiting = Accumulator(conv.in_channels), iter(targets)
    for batch in dense.inputs:
        seen = watch.observe(separable, batch, {site.name: (site.calls, site.added)})[site.name]
        for x in seen.inputs:
            target = next(waiting)
            outputs = target.outputs
            if target.shortcut is not None and seen.other is not None:
                outputs = outputs + _before_norm(dense.model, site, target.shortcut - rows(seen.other, target.index))
            sums.add(patch_rows(conv, x, target.index), outputs)
    return sums.moments(has_intercept(site, conv))


def _before_norm(model: nn.Module, site: Site, difference: Tensor) -> Tensor:
    """A difference [P, C_out] after the batch norm as one before it; none for outputs that the norm all but removes."""
    if site.norm is None:
        return difference
    scale = norm_scale(model.get_submodule(site.norm))
    heard = scale.abs() > 1e-2 * scale.abs().max()
    return difference * torch.where(heard, 1 / torch.where(heard, scale, 1.0), 0.0).to(difference.dtype)


def norm_scale(norm) -> Tensor:
    """What a batch norm multiplies each channel by in eval mode: [C], float64."""
    if norm.running_var is None:
        return torch.ones(norm.num_features, dtype=torch.float64)
    gain = 1.0 if norm.weight is None else norm.weight.detach().double()
    return gain / (norm.running_var.double() + norm.eps).sqrt()


def output_importance(model: nn.Module, site: Site) -> Tensor:
    """h [C_out]: the square of what the following batch norm multiplies each output by, ones without one."""
    if site.norm is None:
        conv: Any = model.get_submodule(site.name)
        return torch.ones(conv.out_channels, dtype=torch.float64, device=conv.weight.device)
    return norm_scale(model.get_submodule(site.norm)).square()


def relative_error(moments: Moments, weight: Tensor, importance: Tensor) -> float:
    energy = float((importance * moments.energy).sum())
    return float((importance * moments.errors(weight)).sum()) / energy if energy > 0 else 0.0


def install_constant(separable: nn.Module, dense: nn.Module, site: Site, moments: Moments, weight: Tensor) -> None:
    """Put the fitted constant into the layer's bias; move the next batch norm's statistics by what the fit changed."""
    bias = bias_of(separable.get_submodule(site.name))
    if bias is not None:
        bias.data.copy_(moments.intercept(weight))
    if site.norm is None:
        return
    norm: Any = separable.get_submodule(site.norm)
    before: Any = dense.get_submodule(site.norm)
    if norm.running_mean is None:
        return
    # the dense network's statistics come from all of its training: they are moved by what the fit changed, not replaced
    mean, variance = moments.outputs(weight)
    if bias is None:
        norm.running_mean.copy_(before.running_mean.double() + mean - moments.target_mean)
    ratio = torch.where(moments.energy > 0, variance / moments.energy, 1.0)
    norm.running_var.copy_(before.running_var.double() * ratio)
