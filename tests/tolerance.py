"""How far two ways of computing one convolution may lie apart: from the dtype and the number of taps, never by hand.

A sum of n products errs by at most n * eps * sum|a*b| in floating point (Higham 2002, "Accuracy and Stability of
Numerical Algorithms", section 3.1); for draws of unit scale the errors add up like a random walk, as sqrt(n).
"""

import torch


def tolerance(dtype: torch.dtype, taps: int) -> dict[str, float]:
    """rtol and atol for `torch.testing.assert_close`, for a result that sums `taps` products of unit scale."""
    eps = torch.finfo(dtype).eps
    return {"rtol": 8 * eps, "atol": 8 * eps * taps**0.5}
