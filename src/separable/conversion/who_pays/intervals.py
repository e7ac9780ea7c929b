"""How certain a loss is: 95 % intervals and a test for two networks that answer the same examples.

Two networks on the same examples are paired: what both get right or wrong says nothing about their difference, so
intervals of two separate accuracies would be too wide. Only the examples that one alone gets right count.

- Paired shares: Tango 1998, Statistics in Medicine 17:891, inverts the score test. Fagerland, Lydersen and Laake 2014,
  Statistics in Medicine 33:2850, recommend it also for small counts. With no change at all it still has a width.
- One share: Wilson 1927, JASA 22:209.
- Strata: Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37:479, in each stratum.
- Means of errors: Student 1908.
- McNemar's test in its exact form, the probabilities corrected for many groups as in Holm 1979.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Interval = tuple[float, float]
_Z = 1.959963984540054  # the normal distribution's 97.5 % point


def paired_interval(lost: int, won: int, examples: int) -> Interval:
    """Of (lost - won) / examples, where `lost` are right in the first network alone and `won` in the second alone.

    >>> [round(end, 3) for end in paired_interval(7, 1, 21)]
    [0.026, 0.517]
    """
    estimate = (lost - won) / examples
    low = _crossing(lambda d: _score(lost, won, examples, d) > _Z, -1.0, estimate)
    high = _crossing(lambda d: _score(lost, won, examples, d) > -_Z, estimate, 1.0)
    return low, high


def _score(lost: int, won: int, n: int, difference: float) -> float:
    """How far what was seen is from `difference`, in standard errors under it; falls as `difference` grows."""
    # the share won that is most likely if the shares differ by `difference` solves a quadratic equation
    b = (2 * n - lost + won) * difference - lost - won
    c = -won * difference * (1 - difference)
    share_won = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * share_won + difference * (1 - difference))
    return (lost - won - n * difference) / math.sqrt(max(variance, 1e-300))


def _crossing(above: Callable[[float], bool], low: float, high: float) -> float:
    """Where `above`, true at small values, becomes false."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return (low + high) / 2


def share_interval(count: int, examples: int) -> Interval:
    """Of count / examples.

    >>> [round(end, 3) for end in share_interval(0, 10)]
    [0.0, 0.278]
    """
    share, weight = count / examples, _Z * _Z / examples
    centre = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / examples + weight / (4 * examples))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Tensor) -> Interval | None:
    """Of the mean of what `values` [n] were drawn from; None for one value, which says nothing of its spread."""
    n = len(values)
    if n < 2:
        return None
    mean, half = float(values.mean()), _student(n - 1) * float(values.std()) / math.sqrt(n)
    return mean - half, mean + half


def stratified_interval(strata: Sequence[tuple[float, int, int, int]]) -> Interval:
    """Of the sum of weight * (more - less) / examples over strata of (weight, more, less, examples)."""
    centre, variance = 0.0, 0.0
    for weight, more, less, examples in strata:
        # one pair is added to each side, so that a stratum without a change is not taken to be certain
        up, down = (more + 1) / (examples + 2), (less + 1) / (examples + 2)
        centre += weight * (up - down)
        variance += weight**2 * (up + down - (up - down) ** 2) / (examples + 2)
    half = _Z * math.sqrt(variance)
    return centre - half, centre + half


def mcnemar(lost: int, won: int) -> float:
    """How probable so uneven a split of the changed examples is if losing and winning are equally likely.

    >>> mcnemar(5, 0)
    0.0625
    """
    changed = lost + won
    k = torch.arange(min(lost, won) + 1, dtype=torch.float64)
    whole = torch.tensor(float(changed), dtype=torch.float64)
    logs = torch.lgamma(whole + 1) - torch.lgamma(k + 1) - torch.lgamma(whole - k + 1) - changed * math.log(2)
    return min(1.0, 2 * float(logs.logsumexp(0).exp()))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Each probability corrected for the number of groups looked at: the worst of many looks bad by chance.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(probabilities), 0.0
    order = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[i]))
        corrected[i] = largest
    return corrected


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t: exact for 1 and 2 degrees of freedom, then to 0.2 % (A&S 1964, 26.7.5)."""
    if freedom <= 2:
        return (12.706204736432095, 4.302652729911275)[freedom - 1]
    z, v = _Z, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
