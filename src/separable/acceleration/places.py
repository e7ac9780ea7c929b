"""Where values lie: runs of memory, offsets and strides, in floats."""

from dataclasses import dataclass

Strides = tuple[int, ...]


@dataclass(eq=False)
class Memory:
    """A run of floats that a step makes, or, where `value` is not None, a tensor that torch made."""

    floats: int
    value: int | None = None


@dataclass(frozen=True, eq=False)
class Place:
    """Where a value lies."""

    memory: Memory
    offset: int  # floats
    strides: Strides


def contiguous(shape: tuple[int, ...]) -> Strides:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def channels_last(shape: tuple[int, ...]) -> Strides:
    """Of [N, C, H, W] or [N, C, L], channels innermost."""
    return innermost(shape, 1)


def as_image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[N, C, L] as [N, C, 1, L]; images as they are."""
    return shape if len(shape) == 4 else (*shape[:2], 1, *shape[2:])


def strides_as_image(shape: tuple[int, ...], strides: Strides) -> Strides:
    """Of the same."""
    return strides if len(shape) == 4 else (*strides[:2], strides[2] * shape[2], strides[2])


def innermost(shape: tuple[int, ...], dim: int) -> Strides:
    """Dense strides with `dim` innermost and the others in their order."""
    order = [i for i in range(len(shape)) if i != dim] + [dim]
    dense = contiguous(tuple(shape[i] for i in order))
    return tuple(dense[order.index(i)] for i in range(len(shape)))


def innermost_of(shape: tuple[int, ...], strides: Strides) -> int:
    """The dimension whose elements lie side by side; the last where none does."""
    return next((i for i, (s, n) in enumerate(zip(strides, shape, strict=True)) if s == 1 and n > 1), len(shape) - 1)


def same_order(shape: tuple[int, ...], a: Strides, b: Strides) -> bool:
    """Whether both strides name the same element at every index."""
    return all(x == y for n, x, y in zip(shape, a, b, strict=True) if n > 1)


def row_stride(shape: tuple[int, ...], strides: Strides, dim: int) -> int | None:
    """Distance of the rows along `dim` (stride 1), in the order of the other dimensions' strides; None if uneven.

    Rows then follow each other in memory, as those of a channels-last image do, perhaps with gaps between them.
    """
    if strides[dim] != 1 and shape[dim] > 1:
        return None
    others = sorted(((s, n) for i, (s, n) in enumerate(zip(strides, shape, strict=True)) if i != dim and n > 1))
    if not others:
        return shape[dim]
    distance = others[0][0]
    expected = distance
    for stride, n in others:
        if stride != expected:
            return None
        expected *= n
    return distance if distance >= shape[dim] else None


def rows_follow(shape: tuple[int, ...], strides: Strides, wanted: Strides, dim: int) -> bool:
    """Whether the dimensions other than `dim` come in the same order in both."""
    others = [i for i in range(len(shape)) if i != dim and shape[i] > 1]
    return sorted(others, key=lambda i: -strides[i]) == sorted(others, key=lambda i: -wanted[i])
