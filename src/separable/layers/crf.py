"""A linear-chain conditional random field: whole tag sequences are scored, summed over and searched exactly.

Rules of the tag scheme are hard: a forbidden step has probability zero in training and in decoding, so that no
impossible sequence is ever returned. Judged by enumeration of every sequence in tests/layers/test_crf.py.
Source: Lafferty, McCallum and Pereira 2001, "Conditional Random Fields"; Lample et al. 2016, arXiv:1603.01360.
"""

import torch
from torch import Tensor, nn

from separable.errors import InputError

_FORBIDDEN = -1e4  # exp() of it is exactly 0 in float32, and sums of it stay finite


class LinearChainCRF(nn.Module):
    """Scores of tag sequences: emission of each place plus transition between neighbours, start and end.

    Args:
        starts: [K] bool, the tags a sequence may begin with.
        ends: [K] bool, the tags it may end with.
        steps: [K, K] bool, steps[a, b]: tag b may follow tag a.

    Sequences are [N, T] with their own lengths [N] of at least 1; what stands beyond a length is never read.

    >>> either = torch.ones(2, dtype=torch.bool)
    >>> crf = LinearChainCRF(torch.tensor([True, False]), either, torch.ones(2, 2, dtype=torch.bool))
    >>> crf.decode(torch.tensor([[[0.0, 9.0], [0.0, 1.0]]]), torch.tensor([2])).tolist()
    [[0, 1]]
    """

    starts: Tensor
    ends: Tensor
    steps: Tensor

    def __init__(self, starts: Tensor, ends: Tensor, steps: Tensor):
        super().__init__()
        tags = len(starts)
        if steps.shape != (tags, tags) or ends.shape != (tags,):
            raise InputError(
                "steps", f"tensor of shape {list(steps.shape)}", f"must be [{tags}, {tags}], as starts says"
            )
        self.start, self.end = nn.Parameter(torch.zeros(tags)), nn.Parameter(torch.zeros(tags))
        self.transition = nn.Parameter(torch.zeros(tags, tags))
        for name, rule in (("starts", starts), ("ends", ends), ("steps", steps)):
            self.register_buffer(name, torch.where(rule, 0.0, _FORBIDDEN), persistent=False)

    def forward(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Negative log likelihood of each sequence, in nats: emissions [N, T, K], tags [N, T], lengths [N] -> [N]."""
        emissions = _full(emissions)
        return self.log_partition(emissions, lengths) - self.score(emissions, tags, lengths)

    def score(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Unnormalised log score of the given sequences: [N]."""
        inside = torch.arange(tags.shape[1], device=tags.device) < lengths[:, None]  # [N, T]
        emitted = emissions.gather(2, tags[:, :, None])[:, :, 0]  # [N, T]
        moved = (self.transition + self.steps)[tags[:, :-1], tags[:, 1:]]  # [N, T-1]
        last = tags.gather(1, lengths[:, None] - 1)[:, 0]  # [N]
        within = emitted.where(inside, 0.0).sum(1) + moved.where(inside[:, 1:], 0.0).sum(1)
        return within + (self.start + self.starts)[tags[:, 0]] + (self.end + self.ends)[last]

    def log_partition(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Log of the sum over every sequence of exp(score): [N]. Differentiable once."""
        start, end, step = self.start + self.starts, self.end + self.ends, self.transition + self.steps
        return _LogPartition.apply(emissions, start, end, step, lengths)

    @torch.no_grad()
    def decode(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The best allowed sequence of each row, by Viterbi's algorithm: [N, T], zeros beyond the lengths."""
        emissions = _full(emissions)
        step, best = self.transition + self.steps, self.start + self.starts + emissions[:, 0]
        came_from = []
        for t in range(1, emissions.shape[1]):
            score, source = (best[:, :, None] + step).max(1)  # [N, K] each
            inside = (t < lengths)[:, None]
            best = torch.where(inside, score + emissions[:, t], best)
            came_from.append(torch.where(inside, source, torch.arange(len(step), device=source.device)))
        tag = (best + self.end + self.ends).argmax(1, keepdim=True)  # [N, 1]
        path = [tag]
        for source in reversed(came_from):
            tag = source.gather(1, tag)
            path.append(tag)
        inside = torch.arange(emissions.shape[1], device=lengths.device) < lengths[:, None]
        return torch.cat(path[::-1], 1) * inside

    def extra_repr(self) -> str:
        return f"tags={len(self.start)}"


class _LogPartition(torch.autograd.Function):
    """The forward algorithm from both ends at once; its gradient is the marginals, so the loop is not recorded.

    Computed in float64: 700 nats between two states fit, and on tensors this small the type costs no time.
    """

    @staticmethod
    def forward(ctx, emissions, start, end, step, lengths):
        given = emissions.double()
        steps, places = given.shape[1], torch.arange(given.shape[1], device=given.device)
        inside = places < lengths[:, None]  # [N, T]
        mirror = torch.where(inside, lengths[:, None] - 1 - places, places)  # [N, T], the same sentence from its end
        both = torch.stack([given, given.gather(1, mirror[:, :, None].expand_as(given))])  # [2, N, T, K]
        onward = torch.stack([step, step.t()]).double().exp()  # [2, K, K]
        reached = torch.stack([start, end]).double()[:, None] + both[:, :, 0]  # [2, N, K]
        history = [reached]
        for t in range(1, steps):
            largest = reached.amax(2, keepdim=True)
            moved = torch.bmm((reached - largest).exp(), onward).log() + largest + both[:, :, t]
            reached = torch.where(inside[:, t, None], moved, reached)
            history.append(reached)
        total = torch.logsumexp(reached[0] + end.double(), 1)  # [N]
        ctx.save_for_backward(torch.stack(history, 2), given, step, total, inside, mirror)
        return total.to(emissions.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        history, given, step, total, inside, mirror = ctx.saved_tensors  # history [2, N, T, K]
        before = history[0]  # all that leads to tag k at t, its emission included
        after = history[1].gather(1, mirror[:, :, None].expand_as(given))  # all that follows, its emission included
        weight = gradient.double()[:, None, None]  # [N, 1, 1]
        unary = (before + after - given - total[:, None, None]).exp() * inside[:, :, None] * weight  # [N, T, K]
        start, end = unary[:, 0].sum(0), unary.gather(1, _last(inside, unary)).sum((0, 1))
        largest = before[:, :-1].amax(2, keepdim=True)
        left = (before[:, :-1] - largest).exp().flatten(0, 1)  # [N*(T-1), K]
        right = (after[:, 1:] + largest - total[:, None, None]).exp() * inside[:, 1:, None] * weight
        moves = left.t() @ right.flatten(0, 1) * step.double().exp()  # [K, K]
        kind = step.dtype
        return unary.to(kind), start.to(kind), end.to(kind), moves.to(kind), None


def _full(emissions: Tensor) -> Tensor:
    """Sums over sequences need at least float32, whatever autocast gives."""
    return emissions.float() if emissions.dtype in (torch.bfloat16, torch.float16) else emissions


def _last(inside: Tensor, values: Tensor) -> Tensor:
    """Index of each sequence's last place for `gather` along T: [N, 1, K]."""
    return (inside.sum(1) - 1)[:, None, None].expand(-1, 1, values.shape[2])
