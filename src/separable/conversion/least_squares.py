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
    parts = [centred[:, :first], centred[:, first:]]
    normals = [(part.mT @ part).double() for part in parts]
    normal = torch.stack(normals).sum(0) / rows.shape[1]
    wanted, given, ridge = targets - offset, targets, ridges[0]
    for i in range(RECTIFIED_ROUNDS if rectified else 1):
        if i:
            wanted = rectified_targets(targets, given) - offset
        constant = wanted.mean(1, keepdim=True)
        due = (wanted - constant).split([first, rows.shape[1] - first], 1)
        rights = [(part.mT @ some).double() for part, some in zip(parts, due, strict=True)]
        if i == 0 and first < rows.shape[1]:
            ridge = _ridge(ridges, normals, rights, prior.mT, first, rows.shape[1] - first)
        weight = solve_ridge(normal, torch.stack(rights).sum(0) / rows.shape[1], prior.mT, ridge).mT
        given = centred @ weight.mT.to(rows) + constant + offset
    shown, sought = (given.relu(), targets.relu()) if rectified else (given, targets)
    error = float((shown - sought).square().mean() / sought.var(1, correction=0).mean().clamp_min(1e-30))
    return weight, constant.squeeze(1).double() - (weight @ mean.mT.double()).squeeze(2), error


def _ridge(
    ridges: Sequence[float], normals: list[Tensor], rights: list[Tensor], prior: Tensor, fitted: int, held_out: int
) -> float:
    """The ridge of which the first part's solution has the least error on the second; of so many rows each."""

    def missed(ridge: float) -> float:
        weight = solve_ridge(normals[0] / fitted, rights[0] / fitted, prior, ridge)
        return float((weight * (normals[1] @ weight - 2 * rights[1])).sum()) / held_out

    return min(ridges, key=missed)


def rectified_targets(targets: Tensor, given: Tensor) -> Tensor:
    """What is to be met where a ReLU reads the result: the target above zero; below it, any value that is too."""
    return torch.where(targets > 0, targets, given.clamp_max(0))


def solve_ridge(normal: Tensor, right: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """argmin over X of tr(X'AX) - 2 tr(X'B) + sum_i ridge*(A_ii + mean(A_ii)/1000) |X_i - prior_i|².

    normal A [..., n, n], right B and prior [..., n, m]. What the data does not determine (dead or constant channels,
    fewer samples than unknowns) keeps the prior's value.
    """
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    damping = ridge * (diagonal + 1e-3 * diagonal.mean(-1, keepdim=True)).clamp_min(torch.finfo(normal.dtype).tiny)
    scale = (diagonal + damping).rsqrt()
    system = normal * scale.unsqueeze(-1) * scale.unsqueeze(-2) + torch.diag_embed(damping * scale.square())
    residual = right - normal @ prior  # solved for the change, so that what is not determined stays exactly
    factor, failed = torch.linalg.cholesky_ex(system)
    change = torch.cholesky_solve(residual * scale.unsqueeze(-1), factor) * scale.unsqueeze(-1)
    return prior + torch.where((failed != 0)[..., None, None], 0.0, change)
