"""The chain is judged by enumerating every sequence of a small one."""

import itertools

import pytest
import torch

from separable.data import entities
from separable.errors import InputError
from separable.layers.crf import LinearChainCRF

STARTS, ENDS = torch.tensor([True, True, False]), torch.tensor([True, False, True])
STEPS = torch.tensor([[True, True, False], [False, True, True], [True, False, True]])
LENGTHS = torch.tensor([5, 2, 1, 3])


@pytest.fixture
def crf():
    torch.manual_seed(0)
    made = LinearChainCRF(STARTS, ENDS, STEPS).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.fixture
def emissions():
    torch.manual_seed(1)
    return torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)


def every_sequence(crf, emissions, length):
    """(score, tags) of each sequence the rules allow, by the definition."""
    for tags in itertools.product(range(3), repeat=length):
        if STARTS[tags[0]] and ENDS[tags[-1]] and all(STEPS[a, b] for a, b in itertools.pairwise(tags)):
            moved = sum(crf.transition[a, b] for a, b in itertools.pairwise(tags))
            emitted = sum(emissions[t, tag] for t, tag in enumerate(tags))
            yield crf.start[tags[0]] + moved + emitted + crf.end[tags[-1]], tags


def enumerated(crf, emissions):
    return torch.stack(
        [
            torch.logsumexp(torch.stack([score for score, _ in every_sequence(crf, row, n)]), 0)
            for row, n in zip(emissions, LENGTHS.tolist(), strict=True)
        ]
    )


def test_partition_is_the_sum_over_every_sequence(crf, emissions):
    torch.testing.assert_close(crf.log_partition(emissions, LENGTHS), enumerated(crf, emissions))


def test_gradients_are_those_of_the_enumeration(crf, emissions):
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])  # sequences must not be confused with one another
    wanted = torch.autograd.grad((enumerated(crf, emissions) * weight).sum(), [emissions, *crf.parameters()])
    got = torch.autograd.grad((crf.log_partition(emissions, LENGTHS) * weight).sum(), [emissions, *crf.parameters()])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_pass_finite_differences(crf, emissions):
    tags = torch.tensor([[0, 1, 1, 2, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 2, 0, 0]])
    assert torch.autograd.gradcheck(lambda e: crf(e, tags, LENGTHS), (emissions,))


def test_best_sequence_is_the_best_of_all(crf, emissions):
    got = crf.decode(emissions, LENGTHS).tolist()
    for row, emitted, n in zip(got, emissions, LENGTHS.tolist(), strict=True):
        assert tuple(row[:n]) == max(every_sequence(crf, emitted, n))[1]
        assert row[n:] == [0] * (5 - n)


def test_probabilities_of_all_sequences_sum_to_one(crf, emissions):
    for row, n in zip(emissions, LENGTHS.tolist(), strict=True):
        losses = [
            crf(row[None, :n], torch.tensor([tags]), torch.tensor([n])) for _, tags in every_sequence(crf, row, n)
        ]
        torch.testing.assert_close(torch.exp(-torch.cat(losses)).sum().item(), 1.0)


def test_what_stands_beyond_a_length_is_never_read(crf, emissions):
    changed = emissions.detach().clone()
    changed[1, 2:], changed[2, 1:] = float("nan"), 1e9
    tags = torch.zeros(4, 5, dtype=torch.long)
    torch.testing.assert_close(crf(changed, tags, LENGTHS), crf(emissions, tags, LENGTHS))
    assert torch.equal(crf.decode(changed, LENGTHS), crf.decode(emissions, LENGTHS))


@pytest.fixture
def bioes():
    return entities.bioes_rules(entities.bioes_tags(["LOC", "PER"]))


@pytest.mark.parametrize("size", [1.0, 100.0, 1e3, 1e5])
def test_gradients_are_those_of_recorded_logarithms_whatever_the_emissions(bioes, size):
    """The reference records sums of logarithms alone, in float64, sentence by sentence."""
    torch.manual_seed(4)
    crf = LinearChainCRF(*bioes).double()
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    lengths = torch.tensor([7, 3, 1, 2])
    emissions = (torch.randn(4, 7, 9, dtype=torch.float64) * size).requires_grad_()
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    totals = []
    for row, n in zip(emissions, lengths.tolist(), strict=True):
        reached = crf.start + crf.starts + row[0]
        for t in range(1, n):
            reached = torch.logsumexp(reached[:, None] + crf.transition + crf.steps, 0) + row[t]
        totals.append(torch.logsumexp(reached + crf.end + crf.ends, 0))
    got = crf.log_partition(emissions, lengths)
    torch.testing.assert_close(got, torch.stack(totals))
    asked = [emissions, *crf.parameters()]
    wanted = torch.autograd.grad((torch.stack(totals) * weight).sum(), asked)
    for a, b in zip(torch.autograd.grad((got * weight).sum(), asked), wanted, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b.nan_to_num())  # logsumexp of what cannot be reached records NaN


@pytest.mark.parametrize("size", [1.0, 1e3, 1e5])
def test_loss_and_gradient_are_finite_in_single_precision(bioes, size):
    torch.manual_seed(5)
    crf = LinearChainCRF(*bioes)
    emissions = (torch.randn(20, 40, 9) * size).requires_grad_()
    lengths = torch.arange(2, 42, 2)
    loss = crf(emissions, torch.zeros(20, 40, dtype=torch.long), lengths).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(part.grad.isfinite().all() for part in (emissions, *crf.parameters()))


@pytest.mark.parametrize("size", [20.0, 1e4, 1e6])
def test_no_forbidden_sequence_is_returned_whatever_the_emissions(bioes, size):
    starts, ends, steps = bioes
    torch.manual_seed(2)
    found = LinearChainCRF(starts, ends, steps).decode(torch.randn(200, 7, 9) * size, torch.full((200,), 7))
    assert starts[found[:, 0]].all()
    assert ends[found[:, -1]].all()
    assert steps[found[:, :-1], found[:, 1:]].all()


def test_what_is_expected_is_the_share_of_every_sequence(crf, emissions):
    got = crf.expected(emissions, LENGTHS)
    tags, starts, ends, steps = torch.zeros(4, 5, 3), torch.zeros(3), torch.zeros(3), torch.zeros(3, 3)
    for row, n in enumerate(LENGTHS.tolist()):
        scored = [*every_sequence(crf, emissions[row].detach(), n)]
        shares = torch.stack([score for score, _ in scored]).softmax(0).tolist()
        for share, (_, found) in zip(shares, scored, strict=True):
            starts[found[0]] += share
            ends[found[-1]] += share
            for place, tag in enumerate(found):
                tags[row, place, tag] += share
            for a, b in itertools.pairwise(found):
                steps[a, b] += share
    for a, b in zip((got.tags, got.starts, got.ends, got.steps), (tags, starts, ends, steps), strict=True):
        torch.testing.assert_close(a.float(), b)


def test_cross_entropy_is_that_of_whole_sequences_and_least_for_the_same_chain(crf, emissions):
    torch.manual_seed(6)
    teacher, heard = LinearChainCRF(STARTS, ENDS, STEPS).double(), torch.randn(4, 5, 3, dtype=torch.float64)
    wanted = 0.0
    for row, n in enumerate(LENGTHS.tolist()):
        given = torch.stack([score for score, _ in every_sequence(teacher, heard[row], n)]).softmax(0)
        said = torch.stack([score for score, _ in every_sequence(crf, emissions[row], n)]).log_softmax(0)
        wanted = wanted - (given * said).sum()
    torch.testing.assert_close(crf.cross_entropy(emissions, LENGTHS, teacher.expected(heard, LENGTHS)), wanted)
    own = crf.cross_entropy(emissions, LENGTHS, crf.expected(emissions, LENGTHS))
    for gradient in torch.autograd.grad(own, [emissions, *crf.parameters()]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_refuses_rules_of_another_size():
    with pytest.raises(InputError, match=r"must be \[3, 3\]"):
        LinearChainCRF(STARTS, ENDS, torch.ones(2, 2, dtype=torch.bool))
