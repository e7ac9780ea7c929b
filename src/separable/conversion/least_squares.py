"""The last fit of a chain: its final convolution on what really reaches it, for what the dense layer really gave.

Where a ReLU reads the result, what it cuts off need not be met: a target below zero is met by any value below zero. The
targets there are set to what the fit gives, or to zero where it gives more, and the fit is made again.
Source: Zhang, Zou, He and Sun 2015, arXiv:1411.4229, section 2.2 (the same alternation, with a penalty).
"""

import torch
from torch import Tensor

RIDGE = 1e-3  # of each unknown's own energy: pulls towards what is known without these examples
RECTIFIED_ROUNDS = 6


def fit_rows(
    rows: Tensor, targets: Tensor, prior: Tensor, rectified: bool, added: Tensor | None = None, ridge: float = RIDGE
) -> tuple[Tensor, Tensor, float]:
    """The weight [G, O, n] and constant [G, O] that give the targets of the rows best, near a prior weight.

    rows [G, P, n], targets [G, P, O], added [G, P, O]: what the result is added to before it should be the target.
    Also the error: mean squared, as a share of the targets' variance, after the ReLU where there is one.
    """
    mean = rows.mean(1, keepdim=True)
    centred, offset = rows - mean, 0.0 if added is None else added
    normal = (centred.mT @ centred).double() / rows.shape[1]
    weight, wanted, given = prior, targets - offset, targets
    for i in range(RECTIFIED_ROUNDS if rectified else 1):
        if i:
            wanted = rectified_targets(targets, given) - offset
        constant = wanted.mean(1, keepdim=True)
        right = (centred.mT @ (wanted - constant)).double() / rows.shape[1]
        weight = solve_ridge(normal, right, prior.mT, ridge).mT
        given = centred @ weight.mT.to(rows) + constant + offset
    shown, sought = (given.relu(), targets.relu()) if rectified else (given, targets)
    error = float((shown - sought).square().mean() / sought.var(1, correction=0).mean().clamp_min(1e-30))
    return weight, constant.squeeze(1).double() - (weight @ mean.mT.double()).squeeze(2), error


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
