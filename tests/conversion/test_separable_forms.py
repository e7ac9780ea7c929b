"""Each form is exact at full rank, loses what it says below, and costs what is counted of its chain."""

import itertools

import convolutions
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from separable import cost
from separable.conversion import chain, factorize
from separable.conversion.forms import FORMS, Shape
from separable.conversion.forms.polyadic import Polyadic, alternate
from separable.conversion.patches import grouped_weight
from separable.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = [
    (name, case)
    for name, case in itertools.product(FORMS, convolutions.CASES)
    if FORMS[name].possible(Shape.of(convolutions.build(case)[0]))
]
NESTED = [name for name in FORMS if name not in ("polyadic", "pointwise, dense, pointwise")]


def ranks(form, shape):
    """The least, one in the middle, the full one."""
    full = form.full_rank(shape)
    return sorted({1, (full + 1) // 2, full})


@pytest.mark.parametrize(("name", "case"), BOTH)
def test_is_exact_at_full_rank(name, case):
    conv, x = convolutions.build(case)
    made = factorize(conv, name)
    close = {"rtol": 1e-6, "atol": 1e-6} if name == "polyadic" else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(made(x), conv(x), **close)


@pytest.mark.parametrize(("name", "case"), BOTH)
def test_factors_compose_to_what_their_chain_computes(name, case):
    conv, x = convolutions.build(case)
    form, shape = FORMS[name], Shape.of(conv)
    factors = form.start(grouped_weight(conv), shape, 2 if form.full_rank(shape) > 1 else 1)
    made = chain.assemble(conv, form, 2 if form.full_rank(shape) > 1 else 1, factors, conv.bias)
    composed = convolutions.build(case)[0]
    chain.write_weight(composed, form.compose(factors))
    if conv.bias is not None:
        composed.bias.data.copy_(conv.bias)
    torch.testing.assert_close(made(x), composed(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "case"), BOTH)
def test_costs_are_those_counted_of_the_chain(name, case):
    conv, x = convolutions.build(case, torch.float32)
    form, shape = FORMS[name], Shape.of(conv)
    for rank in ranks(form, shape)[:2]:
        made = chain.assemble(conv, form, rank, None, conv.bias)
        counted = cost.count(made, x[:1])
        output = made(x[:1])
        assert chain.macs(conv, form, rank, tuple(x.shape[2:]), tuple(output.shape[2:])) == counted.macs
        assert chain.params(conv, form, rank, conv.bias is not None) == counted.params
        assert output.shape == conv(x[:1]).shape


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("case", ["plain", "groups", "3-D", "transposed"])
def test_losses_are_what_the_start_leaves(name, case):
    conv, form = convolutions.build(case)[0], FORMS[name]
    weight, shape = grouped_weight(conv), Shape.of(conv)
    tried = ranks(form, shape)
    losses = form.losses(weight, shape, tried)
    for rank, loss in zip(tried, losses, strict=True):
        left = (form.compose(form.start(weight, shape, rank)) - weight).square().sum() / weight.square().sum()
        if name == "polyadic":  # of fewer rounds
            assert 0.9 * float(left) - 1e-9 <= loss <= 5 * float(left) + 1e-6, rank
        elif name == "pointwise, dense, pointwise":  # before its rounds
            assert float(left) - 1e-9 <= loss <= 2 * float(left) + 1e-6, rank
        else:
            assert loss == pytest.approx(float(left), rel=1e-6, abs=1e-9), rank


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 2), outputs=st.integers(2, 6), inputs=st.integers(2, 6),
    kernel=st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda k: torch.Size(k).numel() > 1),
    name=st.sampled_from(NESTED), seed=st.integers(0, 99),
)  # fmt: skip
def test_one_rank_more_never_loses_more(groups, outputs, inputs, kernel, name, seed):
    shape, form = Shape(groups, outputs, inputs, tuple(kernel)), FORMS[name]
    if not form.possible(shape):
        return
    weight = torch.randn(
        groups, outputs, inputs, shape.taps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    losses = form.losses(weight, shape, list(range(1, form.full_rank(shape) + 1)))
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses)), losses
    assert losses[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_a_weight_of_nothing_has_factors_of_nothing(name):
    shape, form = Shape(1, 6, 5, (3, 3)), FORMS[name]
    weight = torch.zeros(1, 6, 5, 9, dtype=torch.float64)
    factors = form.start(weight, shape, 2)
    assert all(factor.isfinite().all() for factor in factors)
    assert form.compose(factors).abs().max() < 1e-12
    assert form.losses(weight, shape, [1, 2]) == pytest.approx([0, 0], abs=1e-6), "there is nothing to lose"


def degenerate():
    """[1, O, C, K] of rank 3 that matrices of rank 2 come as near to as one likes, with components that diverge.

    a⊗a⊗b + a⊗b⊗a + b⊗a⊗a: de Silva and Lim 2008, arXiv:math/0607647, proposition 4.6.
    """
    a, b = torch.linalg.qr(torch.randn(9, 2, dtype=torch.float64))[0].T
    terms = ((a, a, b), (a, b, a), (b, a, a))
    return sum(torch.einsum("o,c,k->ock", *term) for term in terms).unsqueeze(0)


def test_components_do_not_diverge_where_no_best_approximation_exists():
    weight, shape, form = degenerate(), Shape(1, 9, 9, (3, 3)), Polyadic()
    factors = form.start(weight, shape, 2)
    a, d, b = factors
    sizes = a.norm(dim=2) * d.norm(dim=2) * b.norm(dim=1)  # of each component
    assert float(sizes.max()) < 5 * float(weight.norm())
    assert float((form.compose(factors) - weight).square().sum() / weight.square().sum()) < 0.01


def test_polyadic_components_have_factors_of_equal_norm():
    weight, shape = torch.randn(2, 6, 5, 9, dtype=torch.float64), Shape(2, 6, 5, (3, 3))
    a, d, b = Polyadic().start(weight, shape, 4)
    torch.testing.assert_close(a.norm(dim=2), d.norm(dim=2))
    torch.testing.assert_close(a.norm(dim=2), b.norm(dim=1))


def test_each_round_of_alternating_least_squares_lessens_the_error():
    weight, shape, form = torch.randn(1, 8, 7, 9, dtype=torch.float64), Shape(1, 8, 7, (3, 3)), Polyadic()
    start = form._random(weight, shape, 5)
    errors = [float((form.compose(alternate(weight, start, n)) - weight).square().sum()) for n in (1, 2, 4, 8, 16, 32)]
    assert all(after < before for before, after in itertools.pairwise(errors)), errors


def test_a_tensor_of_low_rank_is_found():
    factors = [torch.randn(1, 3, n, dtype=torch.float64) for n in (12, 9, 10)]
    weight = torch.einsum("grc,grk,gro->gock", *factors)
    loss = Polyadic().losses(weight, Shape(1, 10, 12, (3, 3)), [3])
    assert loss[0] < 1e-3


@pytest.mark.parametrize("name", FORMS)
def test_keeps_dtype_mode_and_requires_grad(name):
    conv = nn.Conv2d(4, 6, 3, dtype=torch.bfloat16).eval().requires_grad_(False)
    made = factorize(conv, name, rank=2)
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in made.modules())
    assert not any(p.requires_grad for p in made.parameters())
    assert made(torch.randn(1, 4, 5, 5, dtype=torch.bfloat16)).isfinite().all()


def test_factorizing_leaves_the_layer_and_the_random_numbers_alone():
    conv = nn.Conv2d(4, 6, 3)
    weight, state = conv.weight.detach().clone(), torch.get_rng_state()
    made = factorize(conv)
    assert torch.equal(conv.weight, weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert not {p.data_ptr() for p in made.parameters()} & {p.data_ptr() for p in conv.parameters()}


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "depthwise already"),
        (nn.Conv2d(8, 16, 3, groups=8), "depthwise already"),
        (nn.Conv2d(8, 8, 1), "pointwise"),
        (nn.LazyConv2d(8, 3), "LazyConv2d"),
        (nn.Linear(8, 8), "Linear"),
    ],
)
def test_refuses_what_cannot_be_separated_with_the_reason(layer, reason):
    with pytest.raises(InputError, match=reason) as caught:
        factorize(layer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rank", [0, 10, 2.0, True])
def test_refuses_a_rank_outside_its_range(rank):
    with pytest.raises(InputError, match="from 1 to 9"):
        factorize(nn.Conv2d(16, 16, 3), "depthwise first", rank=rank)


def test_refuses_a_form_that_is_unknown_or_says_nothing_new_here():
    with pytest.raises(InputError, match="must be one of polyadic"):
        factorize(nn.Conv2d(4, 4, 3), "separable")
    with pytest.raises(InputError, match="does not differ"):
        factorize(nn.Conv1d(4, 4, 3), "axis by axis")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("channels", [(2, 40), (40, 2)])
def test_any_rank_can_be_written_where_one_side_has_few_channels(name, channels):
    conv = torch.nn.Conv2d(*channels, 3)
    for rank in range(1, FORMS[name].full_rank(Shape.of(conv)) + 1, 5):
        assert factorize(conv, name, rank)(torch.randn(1, channels[0], 5, 5)).shape == (1, channels[1], 3, 3)
