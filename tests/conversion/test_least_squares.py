"""Each step of the fit lowers the error that the data itself shows, and stays put where the data says nothing."""

import itertools

import pytest
import torch
from torch import nn

from separable.conversion.factorize import halves
from separable.conversion.least_squares import compose, fit, solve_ridge
from separable.conversion.moments import Accumulator, patch_rows, rows

ORDERS = ["depthwise_first", "pointwise_first"]


def correlated(n=32, channels=6, size=9):
    """Smooth maps, mixed channels: what networks see, and where the closed form is poor."""
    torch.manual_seed(0)
    x = nn.functional.avg_pool2d(torch.randn(n, channels, size + 4, size + 4, dtype=torch.float64), 5, 1)
    return torch.einsum("nchw,cd->ndhw", x, torch.randn(channels, channels, dtype=torch.float64)).relu() + 0.3


def measured(conv, x):
    sums = Accumulator(conv.in_channels)
    for part in x.split(8):
        sums.add(patch_rows(conv, part, None), rows(conv(part).detach(), None))
    return sums.moments(intercept=True)


@pytest.mark.parametrize("order", ORDERS)
def test_predicted_error_is_the_error_on_the_data(order):
    conv, x = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64), correlated()
    moments = measured(conv, x)
    weight = compose(order, *halves(conv.weight, order, 2, moments))
    bias = moments.intercept(weight)
    given = nn.functional.conv2d(x, weight.view_as(conv.weight), bias, padding=1)
    error = (given - conv(x)).square().mean((0, 2, 3))
    torch.testing.assert_close(moments.errors(weight), error.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_every_sweep_lowers_the_error(order):
    conv = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64)
    moments = measured(conv, correlated())
    start = halves(conv.weight, order, 2)
    ones = torch.ones(8, dtype=torch.float64)
    errors = [float(moments.errors(compose(order, *start)).sum())]
    for sweeps in (1, 2, 3, 4):
        fitted = fit(order, moments, *start, ones, sweeps=sweeps)
        errors.append(float(moments.errors(compose(order, *fitted)).sum()))
    assert all(after < before for before, after in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("order", ORDERS)
def test_the_start_that_knows_the_data_is_nearer_in_outputs(order):
    conv = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64)
    moments = measured(conv, correlated())
    blind, aware = (compose(order, *halves(conv.weight, order, 2, known)) for known in (None, moments))
    assert moments.errors(aware).sum() < moments.errors(blind).sum()


@pytest.mark.parametrize("order", ORDERS)
def test_dead_and_constant_channels_and_one_example_stay_finite(order):
    conv, x = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64), correlated(n=1)
    x[:, 0], x[:, 1] = 0.0, 2.0
    moments = measured(conv, x)
    fitted = fit(order, moments, *halves(conv.weight, order, 3, moments), torch.ones(8, dtype=torch.float64), sweeps=3)
    assert all(half.isfinite().all() for half in fitted)
    assert compose(order, *fitted).abs().max() < 100 * conv.weight.abs().max()


def test_what_the_data_does_not_determine_keeps_its_value():
    normal = torch.diag(torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64))
    right, prior = torch.tensor([[4.0], [0.0], [3.0]]).double(), torch.tensor([[0.0], [7.0], [0.0]]).double()
    solved = solve_ridge(normal, right, prior, 1e-6)
    torch.testing.assert_close(solved, torch.tensor([[2.0], [7.0], [3.0]]).double(), rtol=1e-4, atol=1e-4)


def test_blocks_of_channels_solve_what_one_system_would(monkeypatch):
    conv = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64)
    moments, ones = measured(conv, correlated()), torch.ones(8, dtype=torch.float64)
    start = halves(conv.weight, "depthwise_first", 2, moments)
    whole = fit("depthwise_first", moments, *start, ones, sweeps=6)
    monkeypatch.setattr("separable.conversion.least_squares.BLOCK_UNKNOWNS", 36)
    parts = fit("depthwise_first", moments, *start, ones, sweeps=6)
    errors = [float(moments.errors(compose("depthwise_first", *h)).sum()) for h in (whole, parts)]
    assert errors[1] < 1.5 * errors[0]
