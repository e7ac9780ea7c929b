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


def test_emissions_far_apart_give_finite_loss_and_gradient():
    crf = LinearChainCRF(*entities.bioes_rules(entities.bioes_tags(["A", "B"])))
    emissions = (torch.randn(2, 6, 9) * 100).requires_grad_()
    loss = crf(emissions, torch.zeros(2, 6, dtype=torch.long), torch.tensor([6, 3])).sum()
    loss.backward()
    assert loss.isfinite()
    assert emissions.grad.isfinite().all()


def test_no_forbidden_sequence_is_returned_whatever_the_emissions():
    tags = entities.bioes_tags(["LOC", "PER"])
    starts, ends, steps = entities.bioes_rules(tags)
    torch.manual_seed(2)
    found = LinearChainCRF(starts, ends, steps).decode(torch.randn(200, 7, len(tags)) * 20, torch.full((200,), 7))
    assert starts[found[:, 0]].all()
    assert ends[found[:, -1]].all()
    assert steps[found[:, :-1], found[:, 1:]].all()


def test_refuses_rules_of_another_size():
    with pytest.raises(InputError, match=r"must be \[3, 3\]"):
        LinearChainCRF(STARTS, ENDS, torch.ones(2, 2, dtype=torch.bool))
