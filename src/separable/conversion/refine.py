"""All factors of a form fitted to what data says, alternately: the second moments of whole patches, not their product.

The error E|t - F x|² is quadratic in each factor while the others stand still. Each step is taken by conjugate
gradients in coordinates in which the Kronecker product of the moments is the identity, preconditioned as if it were
exact, so that a few products with the moments suffice; no matrix in the number of a factor's entries is formed.
"""

import math

import torch
from torch import Tensor

from separable.conversion.forms import Form, Shape

SWEEPS = 6
_STEPS = 3  # of conjugate gradients for each factor and sweep
_LARGEST_INNER = 768  # beyond which a factor's own normal matrix is not worth its inverse


def refine(form: Form, factors: list[Tensor], gram: Tensor, cross: Tensor, shape: Shape) -> list[Tensor]:
    """Factors that lessen tr(F gram F') - 2 tr(F cross'), from those given.

    gram [G, C*K, C*K], cross [G, O, C*K], factors in the same coordinates; float64.
    """
    factors = [factor.clone() for factor in factors]
    for _ in range(SWEEPS):
        for i in range(len(factors)):
            missing = cross - form.compose(factors).flatten(2) @ gram
            factors[i] = factors[i] + _step(form, factors, i, gram, missing, shape)
    return factors


def _step(form: Form, factors: list[Tensor], i: int, gram: Tensor, missing: Tensor, shape: Shape) -> Tensor:
    letters, dense = form.factors[i], form.dense_letters
    others = [(form.factors[j], factors[j]) for j in range(len(factors)) if j != i]

    def project(matrix: Tensor) -> Tensor:
        folded = form.fold(matrix.unflatten(2, (shape.inputs, -1)), shape)
        sizes = dict(zip(dense, folded.shape, strict=True))
        # einsum goes from left to right, and what it makes on its way should be small: long axes are summed first
        first = sorted(others, key=lambda other: -math.prod(sizes.get(letter, 1) for letter in other[0]))
        names = ",".join([dense, *(name for name, _ in first)])
        return torch.einsum(f"{names}->{letters}", folded, *(tensor for _, tensor in first))

    def spread(direction: Tensor) -> Tensor:
        return form.compose([*factors[:i], direction, *factors[i + 1 :]]).flatten(2)

    condition = _preconditioner(letters, dense, others)
    residual = project(missing)
    change = torch.zeros_like(residual)
    direction = conditioned = condition(residual)
    before = (residual * conditioned).sum()
    first = before
    for _ in range(_STEPS):
        if not before > 1e-14 * first:
            break
        moved = project(spread(direction) @ gram)
        curvature = (direction * moved).sum()
        if not curvature > 0:  # moments that are singular but for rounding: no step along what they do not know
            break
        length = before / curvature
        change = change + length * direction
        residual = residual - length * moved
        conditioned = condition(residual)
        now = (residual * conditioned).sum()
        direction = conditioned + (now / before) * direction
        before = now
    return change


def _preconditioner(letters: str, dense: str, others: list[tuple[str, Tensor]]):
    """The inverse of the normal matrix over the factor's inner letters, were the moments the identity."""
    elsewhere = set("".join(name for name, _ in others))
    batch = [letter for letter in letters if letter in dense and letter in elsewhere]
    inner = [letter for letter in letters if letter not in dense]
    sizes = dict(pair for name, tensor in others for pair in zip(name, tensor.shape, strict=True))
    count = 1
    for letter in inner:
        count *= sizes[letter]
    if count > _LARGEST_INNER:
        return lambda residual: residual
    rest = [letter for letter in dense if letter in elsewhere and letter not in batch]
    target = "".join(batch + inner + rest)
    spread = torch.einsum(",".join(n for n, _ in others) + "->" + target, *[t for _, t in others])
    lead = [sizes[letter] for letter in batch]
    matrix = spread.reshape(*lead, count, -1)
    normal = matrix @ matrix.mT
    normal = normal + 1e-6 * normal.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-30) * torch.eye(
        count, dtype=normal.dtype
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(normal))
    mine = [letter for letter in letters if letter in dense and letter not in batch]
    order = batch + inner + mine

    def apply(residual: Tensor) -> Tensor:
        moved = residual.permute([letters.index(letter) for letter in order])
        flat = moved.reshape(*lead, count, -1)
        return (inverse @ flat).view(moved.shape).permute([order.index(letter) for letter in letters])

    return apply
