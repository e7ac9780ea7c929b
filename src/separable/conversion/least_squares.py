"""The last fit of a chain: its final convolution on what really reaches it, for what the dense layer really gave.

Where a ReLU reads the result, what it cuts off need not be met: a target below zero is met by any value below zero. The
targets there are set to what the fit gives, or to zero where it gives more, and the fit is made again.
Source: Zhang, Zou, He and Sun 2015, arXiv:1411.4229, section 2.2 (the same alternation, with a penalty).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RIDGES = (1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0, 10.0)  # of each unknown's own energy
RECTIFIED_ROUNDS = 6
_HELD_OUT = 4  # the last one of so many parts of the rows: rows are in the order of the examples, so it has others


def fit_rows(
    rows: Tensor,
    targets: Tensor,
    prior: Tensor,
    rectified: bool,
    added: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
) -> tuple[Tensor, Tensor, float]:
    """The weight [G, O, n] and constant [G, O] that give the targets of the rows best, near a prior weight.

    rows [G, P, n], targets [G, P, O], added [G, P, O]: what the result is added to before it should be the target.
    Rows of the same example are alike, and many weights fit few examples better than any others: so how near to the
    prior is decided by how well the first rows tell the targets of the last.
    Also the error: mean squared, as a share of the targets' variance, after the ReLU where there is one.
    """
    mean = rows.mean(1, keepdim=True)
    centred, offset = rows - mean, 0.0 if added is None else added
    first = rows.shape[1] - rows.shape[1] // _HELD_OUT
    wanted, given, ridge = targets - offset, targets, ridges[0]
    if len(ridges) > 1 and first < rows.shape[1]:
        ridge = _ridge(ridges, centred, wanted - wanted.mean(1, keepdim=True), prior, first)
    regression = Ridge(centred, prior)
    for i in range(RECTIFIED_ROUNDS if rectified else 1):
        if i:
            wanted = rectified_targets(targets, given) - offset
        constant = wanted.mean(1, keepdim=True)
        weight = regression.weight(regression.due(wanted - constant), ridge)
        given = centred @ weight.mT.to(rows) + constant + offset
    shown, sought = (given.relu(), targets.relu()) if rectified else (given, targets)
    error = float((shown - sought).square().mean() / sought.var(1, correction=0).mean().clamp_min(1e-30))
    return weight, constant.squeeze(1).double() - (weight @ mean.mT.double()).squeeze(2), error


def _ridge(ridges: Sequence[float], rows: Tensor, targets: Tensor, prior: Tensor, first: int) -> float:
    """The ridge of which the solution of the first rows has the least error on the others."""
    regression = Ridge(rows[:, :first], prior)
    due = regression.due(targets[:, :first])

    def missed(ridge: float) -> float:
        weight = regression.weight(due, ridge)
        return float((targets[:, first:] - rows[:, first:] @ weight.mT.to(rows)).square().mean())

    return min(ridges, key=missed)


def rectified_targets(targets: Tensor, given: Tensor) -> Tensor:
    """What is to be met where a ReLU reads the result: the target above zero; below it, any value that is too."""
    return torch.where(targets > 0, targets, given.clamp_max(0))


class Ridge:
    """Least squares near a prior: the W of least |t - W x|² / P + ridge * sum_i d_i |w_i - prior_i|², d_i = |x_i|² / P.

    What the data does not determine (dead or constant unknowns, fewer rows than unknowns) keeps the prior's value.
    Solved by the second moments of the unknowns or, where there are fewer rows than unknowns, by those of the rows: the
    same answer from the smaller matrix.
    Source: Hoerl and Kennard 1970, Technometrics 12(1); its dual: Saunders, Gammerman and Vovk 1998, ICML, section 2.
    """

    def __init__(self, rows: Tensor, prior: Tensor):
        """rows [G, P, n], of mean zero; prior [G, O, n]."""
        self.prior = prior
        energy = rows.square().mean(1).double()
        energy = energy + 1e-3 * energy.mean(-1, keepdim=True)  # else an unknown that is nearly dead would be free
        scale = torch.where(energy > 0, energy.rsqrt(), 0.0)  # [G, n]
        self.scale = scale.unsqueeze(2)
        self.rows = rows * scale.to(rows).unsqueeze(1)
        self.given = rows @ prior.mT.to(rows)
        self.by_rows = rows.shape[1] < rows.shape[2]
        matrix = self.rows @ self.rows.mT if self.by_rows else self.rows.mT @ self.rows
        self.matrix = matrix.double() / rows.shape[1]
        self._solved: tuple[float, Tensor, Tensor] | None = None  # the last ridge, its factor, whether there is none

    def due(self, targets: Tensor) -> Tensor:
        """What `weight` is found from; targets [G, P, O], of mean zero."""
        missing = targets - self.given  # the change is solved for: what is not determined stays exactly as it is
        return (missing if self.by_rows else self.rows.mT @ missing).double() / targets.shape[1]

    def weight(self, due: Tensor, ridge: float) -> Tensor:
        """[G, O, n], float64; the prior where the system cannot be solved."""
        if self._solved is None or self._solved[0] != ridge:
            eye = torch.eye(self.matrix.shape[-1], dtype=self.matrix.dtype)
            self._solved = (ridge, *torch.linalg.cholesky_ex(self.matrix + ridge * eye))
        _, factor, failed = self._solved
        change = torch.cholesky_solve(due, factor)
        if self.by_rows:
            change = (self.rows.mT @ change.to(self.rows)).double()
        return self.prior + torch.where((failed != 0)[..., None, None], 0.0, change * self.scale).mT
