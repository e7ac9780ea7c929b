"""Make long steps of short ones: a step's result that one other step reads need not reach memory.

Batch norms and activations go into the convolution before them; layer norms, gates and batch norms that stand after an
activation into the one after; sums into the convolution that makes one of their operands. Then pointwise and depthwise
steps that follow each other become chains, whose wide tensors stay in the processor's cache.
"""

from collections.abc import Callable

from torch import Tensor

from separable.acceleration.operations.dense_conv import DenseConv
from separable.acceleration.operations.depthwise_conv import DepthwiseConv
from separable.acceleration.operations.elementwise import Add, Affine, Scale
from separable.acceleration.operations.layer_norm import LayerNorm
from separable.acceleration.operations.pointwise_conv import PointwiseConv
from separable.acceleration.operations.pool import Pool
from separable.acceleration.operations.separable_conv import SeparableConv
from separable.acceleration.places import Memory
from separable.acceleration.steps import Step


class Fusion:
    """The steps of one program; `kept` is memory that is read outside of it."""

    def __init__(self, steps: list[Step], kept: set[Memory]):
        self.steps, self.kept = list(steps), kept

    def run(self) -> list[Step]:
        for rule in _RULES:
            self._everywhere(rule)
        return self.steps

    def _everywhere(self, rule: Callable[["Fusion", Step], bool]) -> None:
        for step in list(self.steps):
            if step in self.steps:
                rule(self, step)

    def readers(self, memory: Memory) -> list[Step]:
        return [step for step in self.steps if memory in step.reads]

    def maker(self, memory: Memory) -> Step | None:
        """The step that makes this memory, where it alone does, from its start."""
        makers = [step for step in self.steps if step.y is memory]
        return makers[0] if len(makers) == 1 and makers[0].y_offset == 0 else None

    def only_reader(self, memory: Memory) -> bool:
        """Whether one step reads it, once, and nothing outside does."""
        readers = self.readers(memory)
        return memory not in self.kept and len(readers) == 1 and readers[0].reads.count(memory) == 1

    def made_for(self, step: Step, memory: Memory | None) -> Step | None:
        """The maker of what `step` alone reads, all of it and in rows as long: else their sizes are not the same."""
        if memory is None or step.x_offset or step.floats_read != memory.floats or not self.only_reader(memory):
            return None
        maker = self.maker(memory)
        return maker if maker is not None and maker.c_out == step.c_in else None

    def remove(self, step: Step) -> None:
        self.steps.remove(step)


def _affine_into_maker(fusion: Fusion, step: Step) -> bool:
    maker = fusion.made_for(step, step.x) if isinstance(step, Affine) else None
    if maker is None or maker.activation is not None or maker.c_out != step.c_out:
        return False
    if maker.takes_factors and maker.other is None:
        maker.weight, maker.bias = _mapped(maker.weight, maker.bias, step)
        step.weight = step.bias = None
    if step.weight is not None or step.bias is not None or not (maker.takes_activation or step.activation is None):
        return False
    maker.activation, maker.activation_last, maker.y = step.activation, True, step.y
    maker.covers += step.covers
    fusion.remove(step)
    return True


def _mapped(weight: Tensor | None, bias: Tensor | None, step: Step) -> tuple[Tensor | None, Tensor | None]:
    """Weight [O, ...] and bias [O] of a map followed by `step`'s."""
    if step.weight is not None:
        scale = step.weight.double()
        shape = (-1, *[1] * (weight.dim() - 1)) if weight is not None else (-1,)
        weight = (scale if weight is None else weight.double() * scale.view(shape)).float()
        bias = None if bias is None else (bias.double() * scale).float()
    if step.bias is not None:
        bias = step.bias if bias is None else bias + step.bias
    return weight, bias


def _read_through(step: Step, before: Step) -> None:
    """Give a convolution the scale and the offset [I] of what it reads."""
    assert step.weight is not None
    weight = step.weight.double().reshape(step.c_out, step.c_in, -1)
    if before.bias is not None:
        shift = weight.sum(2) @ before.bias.double()
        step.bias = (shift if step.bias is None else step.bias.double() + shift).float()
    if before.weight is not None:
        step.weight = (weight * before.weight.double()[:, None]).float().view_as(step.weight)


def _norm_into_pointwise(fusion: Fusion, step: Step) -> bool:
    if not isinstance(step, PointwiseConv) or not step.reads_dense_rows:
        return False
    norm = fusion.made_for(step, step.x)
    if not isinstance(norm, LayerNorm) or step.weight is None:
        return False
    _read_through(step, norm)
    step.normalize, step.eps, step.x, step.x_offset = True, norm.eps, norm.x, norm.x_offset
    step.covers = norm.covers + step.covers
    fusion.remove(norm)
    return True


_MOST_SHIFT = 32.0  # of a norm's result


def _affine_into_reader(fusion: Fusion, step: Step) -> bool:
    """A map that stands after an activation goes into the convolution after it, where no border is padded by zeros."""
    if not isinstance(step, (PointwiseConv, DenseConv)) or step.weight is None or not _reads_rows_alone(step):
        return False
    affine = fusion.made_for(step, step.x)
    if not isinstance(affine, Affine) or affine.activation is not None:
        return False
    if affine.bias is not None and (affine.bias.abs() > _MOST_SHIFT).any():  # the sums would lose what it cancels
        return False
    _read_through(step, affine)
    step.x, step.x_offset = affine.x, affine.x_offset
    step.covers = affine.covers + step.covers
    fusion.remove(affine)
    return True


def _reads_rows_alone(step: PointwiseConv | DenseConv) -> bool:
    """Dense rows of all channels, and nothing between or around them."""
    if isinstance(step, PointwiseConv):
        return step.reads_dense_rows and not step.normalize and step.gate is None
    return step.groups == 1 and step.x_strides[1] == 1 and not step.pads


def _scale_into_pointwise(fusion: Fusion, step: Step) -> bool:
    if not isinstance(step, PointwiseConv) or not step.reads_dense_rows or step.normalize:
        return False
    scale = fusion.made_for(step, step.x)
    if not isinstance(scale, Scale) or scale.activation:
        return False
    step.x, step.x_offset, step.gate = scale.x, scale.x_offset, scale.gate
    step.image_rows = scale.image_rows  # rows that share a gate
    step.covers = scale.covers + step.covers
    fusion.remove(scale)
    return True


def _add_into_maker(fusion: Fusion, step: Step) -> bool:
    """The later of the two operands' makers takes the other operand in, and runs where the sum stood."""
    if not isinstance(step, Add) or step.x_offset or step.x is step.other:
        return False
    makers = [(fusion.made_for(step, memory), memory) for memory in (step.x, step.other)]
    fit = [
        (maker, step.other if memory is step.x else step.x)
        for maker, memory in makers
        if maker is not None and maker.takes_residual and maker.other is None
    ]
    if not fit:
        return False
    maker, other = max(fit, key=lambda found: fusion.steps.index(found[0]))
    if maker.activation is not None and step.activation is not None:
        return False
    maker.activation_last = maker.activation is None
    maker.activation = maker.activation or step.activation
    maker.other, maker.y = other, step.y
    maker.covers += step.covers
    fusion.remove(maker)
    fusion.steps[fusion.steps.index(step)] = maker
    return True


def _chain(fusion: Fusion, step: Step) -> bool:
    """Pointwise and depthwise steps, each reading the one before: at most one of them depthwise, none gated.

    Within a chain the maps of a channel lie apart (csrc/separable_conv.h), so it neither begins with a depthwise step
    that adds maps nor ends with one that makes them.
    """
    if not isinstance(step, (PointwiseConv, DepthwiseConv)) or step.gate is not None:
        return False
    parts = _longest(fusion, step)
    if _adds(parts[0]) or _makes(parts[-1]):
        return False
    narrow = isinstance(step, DepthwiseConv) and not _makes(step)
    if len(parts) == 2 and narrow and len(_longest(fusion, parts[1])) == 3:
        return False  # the longer chain, from the pointwise step on, keeps more out of memory
    if len(parts) == 1 and isinstance(step, PointwiseConv):
        return False
    if not _worthwhile(fusion, parts):
        return False
    fusion.steps[fusion.steps.index(parts[-1])] = SeparableConv.of(parts)
    for part in parts[:-1]:
        fusion.remove(part)
    return True


def _longest(fusion: Fusion, step: Step) -> list[Step]:
    parts = [step]
    while len(parts) < 3:
        following = [reader for reader in fusion.readers(parts[-1].y) if reader.x is parts[-1].y]
        if len(following) != 1 or not _follows(fusion, parts, following[0]):
            break
        parts.append(following[0])
    return parts


def _follows(fusion: Fusion, parts: list[Step], step: Step) -> bool:
    before = parts[-1]
    if fusion.made_for(step, step.x) is not before or before.other is not None or step.gate:
        return False
    if isinstance(step, PointwiseConv):
        if not step.reads_dense_rows or step.normalize:
            return False
        widens = _widens(fusion, step)
        if isinstance(before, DepthwiseConv):
            return widens is None or not _adds(widens)
        return len(parts) == 1 and widens is None
    # A step that makes maps begins a chain: they are wider than what it reads, and are what to keep out of memory.
    fits = isinstance(step, DepthwiseConv) and not _makes(step)
    return fits and len(parts) == 1 and isinstance(before, PointwiseConv)


def _makes(step: Step) -> bool:
    """Several maps of each channel."""
    return isinstance(step, DepthwiseConv) and step.makes > 1


def _adds(step: Step) -> bool:
    """Filtered channels to one map."""
    return isinstance(step, DepthwiseConv) and step.adds > 1


def _widens(fusion: Fusion, step: Step) -> Step | None:
    """The depthwise step that alone reads it, where it begins a bottleneck of its own."""
    readers = fusion.readers(step.y)
    fits = len(readers) == 1 and isinstance(readers[0], DepthwiseConv) and not _makes(readers[0])
    return readers[0] if fits else None


def _worthwhile(fusion: Fusion, parts: list[Step]) -> bool:
    """A depthwise step alone becomes a chain only where it can leave the sums for a mean."""
    if len(parts) > 1:
        return not isinstance(parts[0], PointwiseConv) or parts[0].x_stride in (0, parts[0].c_in)
    return any(isinstance(reader, Pool) and reader.is_mean for reader in fusion.readers(parts[0].y))


def _mean_of_chain(fusion: Fusion, step: Step) -> bool:
    """The mean over each image reads the sums that the chain which makes the image leaves."""
    if not isinstance(step, Pool) or not step.is_mean or step.x_offset or step.floats_read != step.x.floats:
        return False
    chain = fusion.maker(step.x)
    if (
        not isinstance(chain, SeparableConv)
        or chain.c_out != step.c_in
        or not isinstance(chain.parts[-1], DepthwiseConv)
        or chain.sums is not None
    ):
        return False
    chain.sums = Memory(0)  # its size follows from the number of tiles, which the kernels say
    step.x, step.factor = chain.sums, 1 / (step.size[0] * step.size[1])
    step.size = step.kernel_size = (0, 1)  # tiles of an image: likewise
    return True


_RULES = (
    _affine_into_maker,
    _norm_into_pointwise,
    _affine_into_reader,
    _scale_into_pointwise,
    _add_into_maker,
    _affine_into_maker,
    _chain,
    _mean_of_chain,
)


def settle_sums(steps: list[Step], chain: Step, units: int) -> None:
    """Once the number of tiles is known: the size of their sums, and that the mean reads that many rows an image."""
    assert isinstance(chain, SeparableConv)
    assert chain.sums is not None
    chain.sums.floats = units * chain.c_out
    for step in steps:
        if isinstance(step, Pool) and step.x is chain.sums:
            step.size = step.kernel_size = (units // chain.batch, 1)
