"""A linear-chain conditional random field: whole tag sequences are scored, summed over and searched exactly.

Rules of the tag scheme are hard: a forbidden step scores minus infinity in training and in decoding, so that no
impossible sequence is ever returned. Judged by enumeration of every sequence in tests/layers/test_crf.py.
Source: Lafferty, McCallum and Pereira 2001, "Conditional Random Fields"; Lample et al. 2016, arXiv:1603.01360.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from separable.errors import InputError

_FAR = 600.0  # nats between two tags: exp() of it, and of a step more, is neither 0 nor infinite in float64


@dataclass
class Expected:
    """What a chain expects of N sequences, as probabilities: each tag at each place, and how often all in all.

    `tags` is [N, T, K]; `starts` [K], `ends` [K] and `steps` [K, K] are sums over the sequences.
    """

    tags: Tensor
    starts: Tensor
    ends: Tensor
    steps: Tensor


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
            self.register_buffer(name, torch.where(rule, 0.0, float("-inf")), persistent=False)

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

    @torch.enable_grad()
    def expected(self, emissions: Tensor, lengths: Tensor) -> Expected:
        """What this chain expects of sequences with these emissions [N, T, K]: the gradient of the log partition."""
        parts = [_full(emissions), self.start + self.starts, self.end + self.ends, self.transition + self.steps]
        given = [part.detach().requires_grad_() for part in parts]
        return Expected(*torch.autograd.grad(_LogPartition.apply(*given, lengths).sum(), given))

    def cross_entropy(self, emissions: Tensor, lengths: Tensor, expected: Expected) -> Tensor:
        """Between whole sequences as another chain of the same rules expects them, and as this one does, in nats: [].

        The sum over the N sequences; least where both chains are the same.
        Source: Wang et al. 2021, "Structural Knowledge Distillation", arXiv:2010.05010, section 3.1.
        """
        emissions = _full(emissions)
        pairs = (
            (expected.starts, self.start),
            (expected.ends, self.end),
            (expected.steps, self.transition),
            (expected.tags, emissions),
        )
        scored = [(share * score).where(share > 0, 0.0).sum() for share, score in pairs]
        return self.log_partition(emissions, lengths).sum() - torch.stack(scored).sum()

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

    Computed in float64, where sums as a matrix product serve while the tags of a place lie less than 600 nats apart;
    beyond, in a network that diverges, each sum is taken of logarithms.
    """

    @staticmethod
    def forward(ctx, emissions, start, end, step, lengths):
        given = emissions.double()
        places = torch.arange(given.shape[1], device=given.device)
        inside = places < lengths[:, None]  # [N, T]
        mirror = torch.where(inside, lengths[:, None] - 1 - places, places)  # [N, T], the same sentence from its end
        both = torch.stack([given, given.gather(1, mirror[:, :, None].expand_as(given))])  # [2, N, T, K]
        ends, onward = torch.stack([start, end]).double(), torch.stack([step, step.t()]).double()
        history = _reached(_product, ends, both, onward.exp(), inside)
        near = _are_near(history, onward)
        if not near:
            history = _reached(_sum_of_logs, ends, both, onward, inside)
        total = torch.logsumexp(history[0, :, -1] + ends[1], 1)  # [N]
        ctx.save_for_backward(history, given, step, total, inside, mirror)
        ctx.near = near
        return total.to(emissions.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        history, given, step, total, inside, mirror = ctx.saved_tensors  # history [2, N, T, K]
        before = history[0]  # all that leads to tag k at t, its emission included
        after = history[1].gather(1, mirror[:, :, None].expand_as(given))  # all that follows, its emission included
        total, weight = total[:, None, None], gradient.double()[:, None, None]  # [N, 1, 1]
        # beyond a length anything may stand, so it is never multiplied
        unary = (before + after - given - total).exp().where(inside[:, :, None], 0.0) * weight  # [N, T, K]
        start, end = unary[:, 0].sum(0), unary.gather(1, _last(inside, unary)).sum((0, 1))
        if ctx.near:
            largest = before[:, :-1].amax(2, keepdim=True)
            left = (before[:, :-1] - largest).exp().flatten(0, 1)  # [N*(T-1), K]
            there = inside[:, 1:, None] & (before[:, 1:] > float("-inf"))
            right = (after[:, 1:] + largest - total).exp().where(there, 0.0) * weight
            moves = left.t() @ right.flatten(0, 1) * step.double().exp()  # [K, K]
        else:
            moves = torch.zeros_like(step, dtype=torch.double)
            for t in range(1, given.shape[1]):
                pairs = (before[:, t - 1, :, None] + step.double() + after[:, t, None] - total).exp()  # [N, K, K]
                moves += (pairs.where(inside[:, t, None, None], 0.0) * weight).sum(0)
        kind = step.dtype
        return unary.to(kind), start.to(kind), end.to(kind), moves.to(kind), None


def _reached(
    move: Callable[[Tensor, Tensor], Tensor], ends: Tensor, both: Tensor, onward: Tensor, inside: Tensor
) -> Tensor:
    """Log of the sum over all that leads to each tag of each place, from both ends: [2, N, T, K].

    ends: [2, K]; both: emissions [2, N, T, K]; onward: what `move` needs of steps [2, K, K]; inside: [N, T].
    """
    reached = ends[:, None] + both[:, :, 0]  # [2, N, K]
    history = [reached]
    for t in range(1, both.shape[2]):
        reached = torch.where(inside[:, t, None], move(reached, onward) + both[:, :, t], reached)
        history.append(reached)
    return torch.stack(history, 2)


def _product(reached: Tensor, onward: Tensor) -> Tensor:
    """Over one step, as a product with the exponentials of its scores: [2, N, K], exact while none underflows."""
    largest = reached.amax(2, keepdim=True)
    return torch.bmm((reached - largest).exp(), onward).log() + largest


def _sum_of_logs(reached: Tensor, onward: Tensor) -> Tensor:
    """Over one step, as logarithms of any size: [2, N, K]."""
    return torch.logsumexp(reached[:, :, :, None] + onward[:, None], 2)


def _are_near(history: Tensor, onward: Tensor) -> bool:
    """Whether no number of the product underflowed: finite scores of a place, and those of steps, lie close enough."""
    possible = history > float("-inf")
    largest = history.amax(3, keepdim=True)
    steps = onward.where(onward > float("-inf"), 0.0).abs().amax()
    return bool((~possible | (history > largest - _FAR)).all() & (steps < 100.0))


def _full(emissions: Tensor) -> Tensor:
    """Sums over sequences need at least float32, whatever autocast gives."""
    return emissions.float() if emissions.dtype in (torch.bfloat16, torch.float16) else emissions


def _last(inside: Tensor, values: Tensor) -> Tensor:
    """Index of each sequence's last place for `gather` along T: [N, 1, K]."""
    return (inside.sum(1) - 1)[:, None, None].expand(-1, 1, values.shape[2])
