"""The last fit of a chain finds what brute force finds, and stays put where the data says nothing."""

import itertools

import pytest
import torch

from separable.conversion import least_squares
from separable.conversion.least_squares import Ridge, fit_rows, rectified_targets

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = torch.float64


def problem(groups=1, rows=300, inputs=6, outputs=4, noise=0.2):
    x = torch.randn(groups, rows, inputs, dtype=ONE) + 1
    weight = torch.randn(groups, outputs, inputs, dtype=ONE)
    t = x @ weight.mT + torch.randn(groups, 1, outputs, dtype=ONE)
    return x, t + noise * torch.randn_like(t), weight


def shown(x, weight, constant, added=None):
    return x @ weight.mT + constant.unsqueeze(1) + (0 if added is None else added)


def test_without_a_rectifier_it_is_ordinary_least_squares():
    x, t, _ = problem(groups=2)
    prior = torch.zeros(2, 4, 6, dtype=ONE)
    weight, constant, error = fit_rows(x, t, prior, rectified=False, ridges=(1e-12,))
    ones = torch.cat([x, torch.ones(2, 300, 1, dtype=ONE)], 2)
    wanted = torch.linalg.lstsq(ones, t).solution
    torch.testing.assert_close(weight, wanted[:, :-1].mT)
    torch.testing.assert_close(constant, wanted[:, -1])
    off = (shown(x, weight, constant) - t).square().mean() / t.var(1, correction=0).mean()
    assert error == pytest.approx(float(off))


def test_what_is_added_later_is_taken_off_the_targets():
    x, t, weight = problem(noise=0)
    added = torch.randn_like(t)
    found, constant, error = fit_rows(x, t + added, torch.zeros_like(weight), False, added, ridges=(1e-12,))
    torch.testing.assert_close(found, weight)
    torch.testing.assert_close(shown(x, found, constant, added), t + added)
    assert error < 1e-12


def surrogate(given, t):
    """What the alternation lessens: the square missed above zero, and what sticks out of zero below."""
    return torch.where(t > 0, given - t, given.relu()).square().mean(-2)


@pytest.mark.parametrize("with_shortcut", [False, True])
def test_with_a_rectifier_it_finds_what_brute_force_finds(with_shortcut, monkeypatch):
    """Two unknowns and a constant on a grid; a target that no linear map reaches."""
    x = torch.randn(1, 400, 2, dtype=ONE)
    added = torch.randn(1, 400, 1, dtype=ONE) if with_shortcut else None
    t = 1.5 * x[..., :1] - x[..., 1:] ** 2 + (0 if added is None else added)
    monkeypatch.setattr(least_squares, "RECTIFIED_ROUNDS", 100)
    weight, constant, error = fit_rows(x, t, torch.zeros(1, 1, 2, dtype=ONE), True, added, ridges=(1e-12,))
    steps = [i / 10 for i in range(-30, 31)]
    least = float("inf")
    for a, b in itertools.product(steps, steps):
        linear = (a * x[0, :, 0] + b * x[0, :, 1])[:, None] + torch.tensor(steps, dtype=ONE)
        least = min(least, float(surrogate(linear if added is None else linear + added[0], t[0]).min()))
    given = shown(x, weight, constant, added)
    assert float(surrogate(given, t)) <= 1.001 * least
    assert error == pytest.approx(float((given.relu() - t.relu()).square().mean() / t.relu().var(correction=0)))


def test_each_round_with_a_rectifier_lessens_the_error(monkeypatch):
    x, t, weight = problem(inputs=5, noise=1.0)
    x, errors = x[..., :3], []
    for rounds in (1, 2, 4, 8, 16):
        monkeypatch.setattr(least_squares, "RECTIFIED_ROUNDS", rounds)
        found, constant, _ = fit_rows(x, t, torch.zeros_like(weight[..., :3]), True, ridges=(1e-12,))
        errors.append(float(surrogate(shown(x, found, constant), t).mean()))
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.95 * errors[0]


def test_targets_below_zero_are_met_by_any_value_below_zero():
    targets, given = torch.tensor([2.0, -1.0, -1.0]), torch.tensor([-3.0, -5.0, 4.0])
    assert rectified_targets(targets, given).tolist() == [2.0, -5.0, 0.0]


def test_what_the_data_does_not_determine_keeps_its_value():
    x = torch.diag(torch.tensor([2.0, 0.0, 1.0], dtype=ONE))[None]
    t, prior = torch.tensor([[[4.0], [0.0], [3.0]]]).double(), torch.tensor([[[0.0, 7.0, 0.0]]]).double()
    regression = Ridge(x, prior)
    solved = regression.weight(regression.due(t), 1e-6)
    torch.testing.assert_close(solved, torch.tensor([[[2.0, 7.0, 3.0]]]).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [20, 5, 4, 1])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_the_ridge_is_the_least_of_its_own_objective(rows, ridge):
    """Also with fewer rows than unknowns, where it is solved by the products of the rows."""
    x, t, prior = (torch.randn(2, *size, dtype=ONE) for size in ((rows, 5), (rows, 3), (3, 5)))
    regression = Ridge(x, prior)
    found = regression.weight(regression.due(t), ridge)
    for a, target, near, solved in zip(x, t, prior, found, strict=True):
        normal, energy = a.T @ a / rows, a.square().mean(0)
        pull = ridge * (energy + 1e-3 * energy.mean())
        wanted = torch.linalg.solve(normal + torch.diag(pull), a.T @ target / rows + pull.unsqueeze(1) * near.T)
        torch.testing.assert_close(solved, wanted.T)


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("rows", ["none vary", "one", "fewer than unknowns", "zero", "two alike"])
def test_singular_systems_stay_near_the_prior_and_finite(rows, rectified):
    x, t, prior = problem()
    if rows == "none vary":
        x = torch.ones_like(x)
    elif rows == "one":
        x, t = x[:, :1], t[:, :1]
    elif rows == "fewer than unknowns":
        x, t = x[:, :3], t[:, :3]
    elif rows == "zero":
        x, t = torch.zeros_like(x), torch.zeros_like(t)
    else:
        x[..., 1] = x[..., 0]
    weight, constant, error = fit_rows(x, t, prior, rectified)
    assert weight.isfinite().all()
    assert constant.isfinite().all()
    assert (weight - prior).norm() < prior.norm()
    if rows in ("none vary", "one"):
        torch.testing.assert_close(weight, prior)
    if rows in ("none vary", "one") and not rectified:
        torch.testing.assert_close(shown(x, weight, constant).mean(1), t.mean(1))
    assert error == error


def test_float32_rows_are_solved_in_float64():
    x, t, prior = problem(noise=0)
    weight, constant, error = fit_rows(x.float(), t.float(), torch.zeros_like(prior), False, ridges=(1e-12,))
    assert weight.dtype == constant.dtype == torch.float64
    torch.testing.assert_close(weight, prior, rtol=1e-4, atol=1e-4)
    assert error < 1e-9


def test_few_noisy_rows_leave_a_good_prior_and_many_leave_a_bad_one():
    """What decides is how well the first rows tell the last: neither is asked for."""
    x, t, weight = problem(rows=40, inputs=24, noise=3.0)
    found, _, _ = fit_rows(x, t, weight, False)
    alone, _, _ = fit_rows(x, t, weight, False, ridges=(1e-6,))
    assert (found - weight).norm() < 0.25 * (alone - weight).norm()
    x, t, weight = problem(rows=4000, noise=0.1)
    found, _, _ = fit_rows(x, t, torch.zeros_like(weight), False)
    assert (found - weight).norm() < 0.01 * weight.norm()
