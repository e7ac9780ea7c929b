"""All factors on the moments of whole patches: each sweep lessens the error, down to what a direct solution has."""

import itertools

import pytest
import torch

from separable.conversion import refine as module
from separable.conversion.forms import FORMS, Shape
from separable.conversion.refine import refine

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"plain": Shape(1, 6, 5, (3, 3)), "groups": Shape(2, 4, 3, (2, 3)), "1-D": Shape(1, 5, 4, (7,))}


def problem(shape, rows=400, noise=0.3):
    """Correlated patches [G, P, C*K], targets [G, P, O] of a weight and noise, and their moments."""
    n = shape.inputs * shape.taps
    x = torch.randn(shape.groups, rows, n, dtype=torch.float64)
    x = x @ (torch.eye(n, dtype=torch.float64) + 0.3 * torch.randn(shape.groups, n, n, dtype=torch.float64))
    t = x @ torch.randn(shape.groups, n, shape.outputs, dtype=torch.float64)
    t = t + noise * t.std() * torch.randn_like(t)
    return x, t, x.mT @ x / rows, t.mT @ x / rows


def error(form, factors, x, t):
    return float((x @ form.compose(factors).flatten(2).mT - t).square().mean())


def starts(name, shape, rank=2):
    weight = torch.randn(shape.groups, shape.outputs, shape.inputs, shape.taps, dtype=torch.float64)
    return FORMS[name].start(weight, shape, rank)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("case", SHAPES)
def test_every_sweep_lessens_the_error(name, case, monkeypatch):
    shape, form = SHAPES[case], FORMS[name]
    if not form.possible(shape):
        pytest.skip(f"{name} has no meaning for {shape.kernel}")
    x, t, gram, cross = problem(shape)
    factors, errors = starts(name, shape), []
    monkeypatch.setattr(module, "SWEEPS", 1)
    for _ in range(6):
        errors.append(error(form, factors, x, t))
        factors = refine(form, factors, gram, cross, shape)
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors)), errors
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("name", ["pointwise, dense", "dense, pointwise"])
def test_two_factors_reach_the_best_of_their_rank_on_white_inputs(name, monkeypatch):
    """Where the moments are the identity the best is the truncated decomposition of the least squares solution."""
    shape, form = SHAPES["plain"], FORMS[name]
    cross = torch.randn(1, 6, 45, dtype=torch.float64)
    best = form.losses(cross.unflatten(2, (5, 9)), shape, [2])[0]
    monkeypatch.setattr(module, "SWEEPS", 60)
    found = form.compose(refine(form, starts(name, shape), torch.eye(45).double().unsqueeze(0), cross, shape))
    left = float((found.flatten(2) - cross).square().sum() / cross.square().sum())
    assert left == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("name", FORMS)
def test_each_step_of_a_factor_is_the_best_there_is_while_the_others_stand_still(name, monkeypatch):
    """Against a direct solution of the last factor's entries by torch.linalg.lstsq."""
    shape, form = SHAPES["plain"], FORMS[name]
    x, t, gram, cross = problem(shape, rows=200)
    factors = starts(name, shape)
    monkeypatch.setattr(module, "_STEPS", 400)
    last = len(factors) - 1
    missing = cross - form.compose(factors).flatten(2) @ gram
    stepped = [*factors[:-1], factors[-1] + module._step(form, factors, last, gram, missing, shape)]
    columns = []
    for i in range(factors[-1].numel()):
        unit = torch.zeros_like(factors[-1]).flatten()
        unit[i] = 1
        columns.append((x @ form.compose([*factors[:-1], unit.view_as(factors[-1])]).flatten(2).mT).flatten())
    solved = torch.linalg.lstsq(torch.stack(columns, 1), t.flatten().unsqueeze(1), driver="gelsd").solution
    best = [*factors[:-1], solved.view_as(factors[-1])]
    assert error(form, stepped, x, t) == pytest.approx(error(form, best, x, t), rel=1e-6)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("singular", ["zero", "one row", "dead channel"])
def test_singular_moments_leave_finite_factors(name, singular):
    shape, form = SHAPES["plain"], FORMS[name]
    x, t, _, _ = problem(shape)
    if singular == "zero":
        x, t = torch.zeros_like(x), torch.zeros_like(t)
    elif singular == "one row":
        x, t = x[:, :1], t[:, :1]
    else:
        x = x.unflatten(2, (5, 9)).index_fill(2, torch.tensor([0, 3]), 0).flatten(2)
    before = starts(name, shape)
    pull = 1e-3 * torch.eye(x.shape[2], dtype=torch.float64)  # towards zero: moments come with a prior
    found = refine(form, before, x.mT @ x / x.shape[1] + pull, t.mT @ x / x.shape[1], shape)
    assert all(factor.isfinite().all() for factor in found)
    assert error(form, found, x, t) <= error(form, before, x, t) + 1e-12


@pytest.mark.parametrize("name", FORMS)
def test_factors_of_nothing_are_survived(name):
    shape, form = SHAPES["plain"], FORMS[name]
    _, _, gram, cross = problem(shape)
    found = refine(form, [torch.zeros_like(f) for f in starts(name, shape)], gram, cross, shape)
    assert all(factor.isfinite().all() for factor in found)


def test_the_factors_that_were_given_are_left_alone():
    shape, form = SHAPES["plain"], FORMS["polyadic"]
    factors = starts("polyadic", shape)
    copies = [factor.clone() for factor in factors]
    refine(form, factors, *problem(shape)[2:], shape)
    assert all(torch.equal(a, b) for a, b in zip(factors, copies, strict=True))
