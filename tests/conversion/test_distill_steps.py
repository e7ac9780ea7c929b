"""Steps follow the scale of what they change: rescaled factors train alike; a schedule rises once and falls once."""

import copy

import pytest
import torch
from torch import nn

from separable.conversion import distill
from separable.conversion.distillation.steps import Clock, Spread, factor, optimizer, scales


def chain(scale=1.0):
    """Two factors without anything between; `scale` moves from one to the other and changes no output."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    with torch.no_grad():
        net[0].weight *= scale
        net[1].weight /= scale
    return net


def test_the_scales_of_factors_do_not_matter():
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    x, losses = torch.randn(128, 3, 8, 8), []
    for scale in (1.0, 1000.0, 0.001):
        torch.manual_seed(2)
        _, history = distill(chain(scale), teacher, x.split(8), x, epochs=4, learning_rate=3e-3)
        losses.append([epoch.validation_loss for epoch in history])
    assert losses[0][-1] < 0.5 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[2] == pytest.approx(losses[0], rel=0.02)


def test_scales_are_of_weights_and_for_biases_of_what_they_are_added_to():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2).requires_grad_(False))
    nn.init.zeros_(net[1].weight)
    x, spread = 10 * torch.randn(512, 4), Spread(net)
    with spread.open(), torch.no_grad():
        net(x[:256])
        net(x[256:])
    found = scales(net, spread)
    assert list(found) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert found["0.weight"] == pytest.approx(float(net[0].weight.detach().square().mean().sqrt()))
    assert found["0.bias"] == pytest.approx(float(net[0](x).detach().std()), rel=1e-3)
    assert found["1.weight"] == pytest.approx(6**-0.5)  # zeros


def test_a_step_moves_each_tensor_by_its_share():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight *= 50
    spread, x = Spread(net), torch.randn(64, 4)
    with spread.open(), torch.no_grad():
        net(x)
    made, before = optimizer(net, scales(net, spread), 1e-3), copy.deepcopy(net.state_dict())
    net(x).square().mean().backward()
    made.step()
    for name in ("0.weight", "1.weight"):
        moved = (net.state_dict()[name] - before[name]).square().mean().sqrt() / before[name].square().mean().sqrt()
        assert float(moved) == pytest.approx(0.01, rel=0.05), name


def test_the_schedule_rises_once_and_falls_once():
    rates = [factor(step, 200) for step in range(200)]
    assert rates[0] == 0.1
    assert rates[9] == 1.0
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3
    assert factor(300, 200) == 0.0


def test_a_clock_without_a_limit_never_runs_out():
    assert Clock(None).share() == 0.0
    limited = Clock(1.0)
    limited.resume(45.0, 15.0)
    assert limited.share() == pytest.approx(1.0, abs=0.01)
