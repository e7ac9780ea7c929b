"""The fit: which separable halves give, on the patches that data showed, the outputs nearest to the dense layer's.

The error sum_o h_o E|y_o - W_o x|² is quadratic in either half while the other stands still. Each step below solves its
normal equations exactly, so that no step increases the (ridge-regularised) error; there is no learning rate.
Halves are kept as dw [C, r, K], pw [C_out, C, r] (depthwise first: W[o,c] = sum_j pw[o,c,j] dw[c,j]) and
dw [C_out, r, K], pw [C_out, r, C] (pointwise first: W[o,c] = sum_j pw[o,j,c] dw[o,j]); float64.
"""

import torch
from torch import Tensor

from separable.conversion.moments import Moments

RIDGE = 1e-4  # of each unknown's own energy: pulls towards where the fit started
BLOCK_UNKNOWNS = 1200  # of the depthwise step solved at once; more channels are taken block after block
POINTWISE_FIRST_UNKNOWNS = 1024  # of one output's pointwise step; wider layers keep their start


def compose(order: str, dw: Tensor, pw: Tensor) -> Tensor:
    """The dense weight [C_out, C, K] that two halves amount to."""
    return torch.einsum("ocj,cjk->ock" if order == "depthwise_first" else "ojc,ojk->ock", pw, dw)


def fit(
    order: str, moments: Moments, dw: Tensor, pw: Tensor, importance: Tensor, *, sweeps: int, ridge: float = RIDGE
) -> tuple[Tensor, Tensor]:
    """Both halves by alternating least squares from those given: `sweeps` pointwise steps, a depthwise one between two.

    importance [C_out]: h, how much each output's error matters.
    """
    pointwise, depthwise = _STEPS[order]
    for sweep in range(sweeps):
        if sweep:
            dw = depthwise(moments, dw, pw, importance, ridge)
        pw = pointwise(moments, dw, pw, ridge)
    return dw, pw


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


def _depthwise_first_pointwise(m: Moments, dw: Tensor, pw: Tensor, ridge: float) -> Tensor:
    """All outputs read the same C*r filtered maps z, so one factorisation serves them all."""
    channels, rank, taps = dw.shape
    gram = m.gram.view(channels, taps, channels, taps)
    half = torch.einsum("cjk,ckdl->cjdl", dw, gram)
    normal = torch.einsum("cjdl,dil->cjdi", half, dw).reshape(channels * rank, -1)  # E[z z']
    right = torch.einsum("cjk,ock->cjo", dw, m.cross.view(-1, channels, taps)).flatten(0, 1)
    return solve_ridge(normal, right, pw.flatten(1).T, ridge).T.reshape(pw.shape)


def _depthwise_first_depthwise(m: Moments, dw: Tensor, pw: Tensor, importance: Tensor, ridge: float) -> Tensor:
    """Normal matrix A[cjk, dil] = (P'HP)[cj, di] G[ck, dl]; the other blocks' share stands on the right-hand side."""
    channels, rank, taps = dw.shape
    gram = m.gram.view(channels, taps, channels, taps)
    weighted = pw * importance.view(-1, 1, 1)
    dw = dw.clone()
    missing = m.cross - compose("depthwise_first", dw, pw).flatten(1) @ m.gram  # [C_out, C*K], kept up to date
    width = max(1, BLOCK_UNKNOWNS // (rank * taps))
    for begin in range(0, channels, width):
        block = slice(begin, min(begin + width, channels))
        right = torch.einsum("ocj,ock->cjk", weighted[:, block], missing.view(-1, channels, taps)[:, block])
        mixing = torch.einsum("ocj,odi->cjdi", weighted[:, block], pw[:, block])
        unknowns = right.numel()
        normal = torch.einsum("cjdi,ckdl->cjkdil", mixing, gram[block, :, block]).reshape(unknowns, unknowns)
        right = right.reshape(unknowns, 1)
        change = solve_ridge(normal, right, torch.zeros_like(right), ridge).view(-1, rank, taps)
        dw[block] += change
        moved = compose("depthwise_first", change, pw[:, block]).flatten(1)  # [C_out, block*K]
        missing -= moved @ m.gram[begin * taps : block.stop * taps]
    return dw


def _pointwise_first_pointwise(m: Moments, dw: Tensor, pw: Tensor, ridge: float) -> Tensor:
    """Each output owns its maps: normal matrix A_o[jc, id] = sum_kl dw[o,j,k] G[ck, dl] dw[o,i,l]."""
    outputs, rank, channels = pw.shape
    if rank * channels > POINTWISE_FIRST_UNKNOWNS:
        return pw
    gram = m.gram.view(channels, m.taps, channels, m.taps)
    cross = m.cross.view(outputs, channels, m.taps)
    fitted = []
    for o in range(outputs):
        half = torch.einsum("jk,ckdl->jcdl", dw[o], gram)
        normal = torch.einsum("jcdl,il->jcid", half, dw[o]).reshape(rank * channels, -1)
        right = (dw[o] @ cross[o].T).reshape(-1, 1)
        fitted.append(solve_ridge(normal, right, pw[o].reshape(-1, 1), ridge).view(rank, channels))
    return torch.stack(fitted)


def _pointwise_first_depthwise(m: Moments, dw: Tensor, pw: Tensor, importance: Tensor, ridge: float) -> Tensor:
    """Each output owns its filters: normal matrix A_o[jk, il] = sum_cd pw[o,j,c] G[ck, dl] pw[o,i,d]."""
    outputs, rank, channels = pw.shape
    gram = m.gram.view(channels, m.taps, channels, m.taps)
    cross = m.cross.view(outputs, channels, m.taps)
    fitted = []
    for o in range(outputs):
        half = torch.einsum("jc,ckdl->jkdl", pw[o], gram)
        normal = torch.einsum("jkdl,id->jkil", half, pw[o]).reshape(rank * m.taps, -1)
        right = (pw[o] @ cross[o]).reshape(-1, 1)
        fitted.append(solve_ridge(normal, right, dw[o].reshape(-1, 1), ridge).view(rank, m.taps))
    return torch.stack(fitted)


_STEPS = {
    "depthwise_first": (_depthwise_first_pointwise, _depthwise_first_depthwise),
    "pointwise_first": (_pointwise_first_pointwise, _pointwise_first_depthwise),
}
