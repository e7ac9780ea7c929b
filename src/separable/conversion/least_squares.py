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
_NUMBERS_AT_ONCE = 1 << 22  # of normal matrices, in float64


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
    right = dw @ m.cross.view(outputs, channels, m.taps).mT  # [C_out, r, C]
    return _solve_each_output(_by_channels(m), dw, right, pw, ridge)


def _pointwise_first_depthwise(m: Moments, dw: Tensor, pw: Tensor, importance: Tensor, ridge: float) -> Tensor:
    """Each output owns its filters: normal matrix A_o[jk, il] = sum_cd pw[o,j,c] G[ck, dl] pw[o,i,d]."""
    right = pw @ m.cross.view(pw.shape[0], m.channels, m.taps)  # [C_out, r, K]
    return _solve_each_output(_by_channels(m).mT, pw, right, dw, ridge)


def _by_channels(m: Moments) -> Tensor:
    """The gram as [K*K, C*C]: a row for each pair of taps."""
    gram = m.gram.view(m.channels, m.taps, m.channels, m.taps)
    return gram.permute(1, 3, 0, 2).reshape(m.taps**2, m.channels**2)


def _solve_each_output(pairs: Tensor, fixed: Tensor, right: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """One half [C_out, r, n] with the other, fixed [C_out, r, p], given; pairs [p*p, n*n] couples them."""
    rank, n = prior.shape[1:]
    fitted = []
    at_once = max(1, _NUMBERS_AT_ONCE // (rank * n) ** 2)
    for f, b, x in zip(fixed.split(at_once), right.split(at_once), prior.split(at_once), strict=True):
        products = torch.einsum("ojk,oil->ojikl", f, f).reshape(-1, pairs.shape[0])
        normal = (products @ pairs).view(len(f), rank, rank, n, n).transpose(2, 3)  # [o, j, n, i, n]
        normal = normal.reshape(len(f), rank * n, rank * n)
        fitted.append(solve_ridge(normal, b.reshape(len(f), -1, 1), x.reshape(len(f), -1, 1), ridge).view(x.shape))
    return torch.cat(fitted)


_STEPS = {
    "depthwise_first": (_depthwise_first_pointwise, _depthwise_first_depthwise),
    "pointwise_first": (_pointwise_first_pointwise, _pointwise_first_depthwise),
}
