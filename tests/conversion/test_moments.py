"""Two small matrices say what a weight's error does to outputs: summed as loops would, and exact where they can be."""

import convolutions
import pytest
import torch
from torch import nn

from separable.conversion import factorize
from separable.conversion.fitting import approximate, from_moments
from separable.conversion.forms import FORMS, Shape
from separable.conversion.moments import Accumulator, Moments, Whitening, root
from separable.conversion.patches import grouped_weight, patch_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def measured(conv, x, parts=3):
    sums = Accumulator(conv, len(x))
    made = tuple(conv(x).shape[2:])
    for part in x.tensor_split(parts):
        sums.add(part, made)
    return sums.moments()


def kronecker(moments):
    """E of what a weight makes of patches, squared, were the moments the product: a function of W [G, O, C, K]."""

    def energy(weight):
        return torch.einsum("gock,gcd,kl,godl->", weight, moments.channels, moments.taps, weight)

    return energy


def random_moments(shape):
    c = torch.randn(shape.groups, shape.inputs, 2 * shape.inputs, dtype=torch.float64)
    k = torch.randn(shape.taps, 2 * shape.taps, dtype=torch.float64)
    taps = k @ k.mT
    return Moments(c @ c.mT, taps / taps.diagonal().mean())


@pytest.mark.parametrize("case", ["plain", "groups", "1-D", "3-D", "transposed", "reflect"])
def test_sums_over_batches_are_those_of_explicit_loops(case):
    conv, x = convolutions.build(case)
    x = torch.cat([x, 2 * x, x + 1])
    moments, shape = measured(conv, x), Shape.of(conv)
    mean = x.movedim(1, 0).flatten(1).mean(1)
    first = x[:2].movedim(1, 0).flatten(1).mean(1)  # what taps are centred by: the first batch's mean
    channels = torch.zeros(shape.groups, shape.inputs, shape.inputs, dtype=torch.float64)
    pixels = x.movedim(1, -1).flatten(0, -2)
    for pixel in pixels:
        for group, values in enumerate((pixel - mean).view(shape.groups, shape.inputs)):
            channels[group] += torch.outer(values, values) / len(pixels)
    torch.testing.assert_close(moments.channels, channels)
    taps = torch.zeros(shape.taps, shape.taps, dtype=torch.float64)
    centred = x - first.view(-1, *[1] * (x.dim() - 2))
    for patch in patch_rows(conv, centred, None).flatten(0, 2):
        taps += torch.outer(patch, patch)
    torch.testing.assert_close(moments.taps, taps / taps.diagonal().mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["plain", "groups", "1-D"])
def test_the_norm_of_a_whitened_weight_is_the_energy_of_its_outputs(case):
    conv = convolutions.build(case)[0]
    weight, shape = grouped_weight(conv), Shape.of(conv)
    moments = random_moments(shape)
    whitening = Whitening(moments, torch.ones(weight.shape[:2], dtype=torch.float64))
    whitened = whitening.target(FORMS["pointwise, dense"], weight, shape)  # a form that mixes every index
    torch.testing.assert_close(whitened.square().sum(), kronecker(moments)(weight), rtol=1e-4, atol=0)


def test_inputs_that_have_kronecker_moments_give_outputs_of_that_energy():
    """Patches x = C^(1/2) n T^(1/2) of white noise n, as positions of a kernel as large as its input."""
    conv = nn.Conv2d(5, 6, 3, bias=False, dtype=torch.float64)
    shape = Shape.of(conv)
    true = random_moments(shape)
    c, t = root(true.channels[0])[0], root(true.taps)[0]
    noise = torch.randn(40_000, 5, 9, dtype=torch.float64)
    x = (c @ noise @ t).view(-1, 5, 3, 3)
    moments = measured(conv, x, parts=2)
    whitening = Whitening(moments, torch.ones(1, 6, dtype=torch.float64))
    found = float(whitening.target(FORMS["pointwise, dense"], grouped_weight(conv), shape).square().sum())
    assert found == pytest.approx(float(conv(x).square().mean(0).sum()), rel=0.05)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("case", ["plain", "groups"])
def test_factors_go_into_the_norm_and_back_unchanged(name, case):
    conv, form = convolutions.build(case)[0], FORMS[name]
    weight, shape = grouped_weight(conv), Shape.of(conv)
    whitening = Whitening(random_moments(shape), torch.rand(weight.shape[:2], dtype=torch.float64) + 0.1)
    factors = form.start(weight, shape, 2)
    back = whitening.back(form, whitening.into(form, factors, shape), shape)
    for before, after in zip(factors, back, strict=True):
        torch.testing.assert_close(after, before)
    moved = form.compose(whitening.into(form, factors, shape))
    torch.testing.assert_close(moved, whitening.target(form, form.compose(factors), shape))


@pytest.mark.parametrize("name", FORMS)
def test_the_form_that_knows_the_moments_is_nearer_in_outputs(name):
    conv, form = nn.Conv2d(6, 8, 3, bias=False, dtype=torch.float64), FORMS[name]
    weight, shape = grouped_weight(conv), Shape.of(conv)
    moments = random_moments(shape)
    energy = kronecker(moments)
    whitening = Whitening(moments, torch.ones(1, 8, dtype=torch.float64))
    blind = energy(form.compose(form.start(weight, shape, 2)) - weight)
    aware = energy(form.compose(approximate(form, weight, shape, 2, whitening)) - weight)
    assert aware < blind


@pytest.mark.parametrize("name", ["pointwise, dense", "dense, pointwise"])
def test_no_other_weight_of_the_form_is_nearer_in_outputs(name):
    """Of one matrix decomposition in whitened coordinates the nearest is known: Eckart and Young."""
    conv, form = nn.Conv2d(6, 8, 3, bias=False, dtype=torch.float64), FORMS[name]
    weight, shape = grouped_weight(conv), Shape.of(conv)
    moments = random_moments(shape)
    energy = kronecker(moments)
    factors = approximate(form, weight, shape, 3, Whitening(moments, torch.ones(1, 8, dtype=torch.float64)))
    best = energy(form.compose(factors) - weight)
    for _ in range(50):
        other = [f + 0.01 * f.std() * torch.randn_like(f) for f in factors]
        assert energy(form.compose(other) - weight) > best * (1 - 1e-6)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("spoilt", ["constant", "dead channels", "zero", "one example", "two channels alike"])
def test_inputs_without_variance_leave_finite_weights_that_are_not_far(name, spoilt):
    conv, x = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64), torch.randn(6, 6, 9, 9, dtype=torch.float64)
    if spoilt in ("constant", "zero"):
        x = torch.full_like(x, 0.0 if spoilt == "zero" else 3.0)
    elif spoilt == "dead channels":
        x[:, :4] = 0
    elif spoilt == "one example":
        x = x[:1, :, :3, :3]
    else:
        x[:, 1] = x[:, 0]
    made = from_moments(conv, FORMS[name], 3, measured(conv, x, parts=1))
    assert all(p.isfinite().all() for p in made.parameters())
    dense = nn.Conv2d(6, 8, 3, dtype=torch.float64)
    form = FORMS[name]
    composed = form.compose([p.detach() for p in _factors(made, form, Shape.of(conv))])
    assert composed.abs().max() < 20 * dense.weight.abs().max()


def _factors(made, form, shape):
    """The factors in the chain's weights, which its stages hold in order."""
    for conv, letters in zip(made, form.factors, strict=True):
        sizes = {"g": shape.groups, "c": shape.inputs, "k": shape.taps, "o": shape.outputs}
        sizes |= {"i": shape.kernel[0], "j": shape.taps // shape.kernel[0]}
        unknown = [letter for letter in letters if letter not in sizes]
        weight = grouped_weight(conv)
        known = torch.Size(sizes[letter] for letter in letters if letter in sizes).numel()
        if len(unknown) == 2:  # Tucker's core, whose both inner letters are channels
            yield weight
        else:
            yield weight.reshape([sizes.get(letter, weight.numel() // known) for letter in letters])


def test_moments_of_exact_rank_lose_nothing_that_outputs_show():
    """Of 8 channels that are mixed of 2, a form of rank 2 gives what the dense layer gives."""
    conv = nn.Conv2d(8, 8, 3, dtype=torch.float64)
    x = torch.einsum("nchw,dc->ndhw", torch.randn(20, 2, 9, 9, dtype=torch.float64), torch.randn(8, 2).double())
    made = from_moments(conv, FORMS["pointwise, dense"], 2, measured(conv, x))
    blind = factorize(conv, "pointwise, dense", 2)
    off = (made(x) - conv(x)).square().mean() / conv(x).var()
    assert off < 1e-4 < (blind(x) - conv(x)).square().mean() / conv(x).var()


def test_a_root_times_itself_is_the_matrix_and_its_inverse_undoes_it():
    matrix = random_moments(Shape(2, 1, 5, (3,))).channels
    half, inverse = root(matrix)
    torch.testing.assert_close(half @ half, matrix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(half @ inverse, torch.eye(5, dtype=torch.float64).expand(2, 5, 5))
    half, inverse = root(torch.zeros(1, 3, 3, dtype=torch.float64))
    assert half.isfinite().all()
    assert inverse.isfinite().all()
