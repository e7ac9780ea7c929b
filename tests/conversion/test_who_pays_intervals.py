"""Intervals and tests of paired answers, against independent calculations and by how often they hold the truth."""

import math

import pytest
import torch

from separable.conversion.who_pays import intervals

stats = pytest.importorskip("scipy.stats")
optimize = pytest.importorskip("scipy.optimize")
COUNTS = [(7, 1, 21), (0, 0, 5), (1, 0, 8), (5, 5, 40), (3, 0, 3), (0, 4, 4), (40, 20, 160), (14, 2, 9000)]


def score(lost, won, n, difference):
    """The score statistic with the likelihood under the difference maximised numerically, not in closed form."""

    def minus_log_likelihood(share_won):
        parts = ((lost, share_won + difference), (won, share_won), (n - lost - won, 1 - 2 * share_won - difference))
        return -sum(count * math.log(max(share, 1e-300)) for count, share in parts if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    best = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    return (lost - won - n * difference) / math.sqrt(n * (2 * best.x + difference - difference**2))


@pytest.mark.parametrize(("lost", "won", "n"), COUNTS)
def test_paired_interval_ends_where_the_score_is_two_standard_errors_away(lost, won, n):
    low, high = intervals.paired_interval(lost, won, n)
    assert low <= (lost - won) / n <= high
    for end, sign in ((low, 1), (high, -1)):
        if abs(end) < 1 - 1e-9:  # a difference of one is as far as it goes
            assert score(lost, won, n, end) == pytest.approx(sign * 1.959964, abs=2e-3)


def test_paired_interval_is_the_published_one():
    """Airway hyper-responsiveness before and after transplantation, in Fagerland, Lydersen and Laake 2014."""
    assert intervals.paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_paired_interval_holds_the_truth_nineteen_times_in_twenty():
    """The exact probability, summed over everything that 40 examples can show."""
    n, p_lost, p_won = 40, 0.12, 0.03
    covered = 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            probability = stats.multinomial.pmf([lost, won, n - lost - won], n, [p_lost, p_won, 1 - p_lost - p_won])
            if probability > 1e-9:
                low, high = intervals.paired_interval(lost, won, n)
                covered += probability * (low <= p_lost - p_won <= high)
    assert 0.94 < covered < 0.97


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 10), (3, 10), (10, 10), (17, 4000)])
def test_share_interval_is_wilsons(count, n):
    expected = stats.binomtest(count, n).proportion_ci(method="wilson")
    assert intervals.share_interval(count, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 30, 1000])
def test_mean_interval_is_students(n):
    values = torch.rand(n, dtype=torch.float64)
    expected = stats.t.interval(0.95, n - 1, float(values.mean()), stats.sem(values.numpy()))
    assert intervals.mean_interval(values) == pytest.approx(expected, rel=5e-3)
    assert intervals.mean_interval(values[:1]) is None


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (5, 0), (3, 17), (8, 8), (130, 90), (1000, 1100)])
def test_mcnemar_is_the_exact_binomial_test(lost, won):
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert intervals.mcnemar(lost, won) == pytest.approx(expected, rel=1e-8)


def test_holm_steps_down():
    given = [0.2, 0.001, 0.03, 0.02, 0.9]
    expected = []
    for p in given:  # the largest of what the smaller ones are corrected to
        smaller = sorted(q for q in given if q <= p)
        expected.append(min(1.0, max((len(given) - i) * q for i, q in enumerate(smaller))))
    assert intervals.holm(given) == pytest.approx(expected)
    assert intervals.holm([]) == []


def test_stratified_interval_holds_the_truth():
    """Two strata as a swap meets them: few changed examples, of which many turn right, and many others."""
    shares, chances, sizes = (0.1, 0.9), ((0.5, 0.0), (0.01, 0.02)), (50, 200)
    truth = sum(w * (up - down) for w, (up, down) in zip(shares, chances, strict=True))
    generator = torch.Generator().manual_seed(0)
    covered, runs = 0, 1000
    for _ in range(runs):
        strata = []
        for share, (up, down), size in zip(shares, chances, sizes, strict=True):
            draw = torch.rand(size, generator=generator)
            strata.append((share, int((draw < up).sum()), int((draw > 1 - down).sum()), size))
        low, high = intervals.stratified_interval(strata)
        covered += low <= truth <= high
    assert 0.93 < covered / runs < 0.99
