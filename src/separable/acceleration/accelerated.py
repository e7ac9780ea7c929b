"""The module that `accelerate` makes: it plans once for each shape of inputs, then runs the plan."""

import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from separable import _native
from separable.acceleration.plan import Plan
from separable.acceleration.report import Report, Row, report_of
from separable.acceleration.tape import CannotRecordError, record
from separable.acceleration.training import swap_layers
from separable.errors import InputError

_MOST_PLANS = 16  # shapes whose plans are kept, with their packed weights


def accelerate(
    model: nn.Module,
    example: Any = None,
    *,
    training: bool = False,
    recompute: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The same network, same outputs, faster on a CPU.

    Args:
        model: in evaluation mode. It is kept, not copied, as `.model` of the result, and must not change afterwards but
            by `load_state_dict` or `to` of the result.
        example: an input, or a tuple of them, to plan for at once; else the first call plans. The network runs once for
            each new shape of inputs, with its hooks.
        training: swap its depthwise convolutions and batch norms for layers with native forward and backward, in a
            copy, and nothing else; the copy trains, saves and loads as the model does.
        recompute: with training, set `recompute` in its separable layers: less memory, a little more work.
        dtype: float32; torch.bfloat16 rounds the factors of matrix products to bfloat16 and sums in float32, on
            processors with AVX512-BF16; outputs then differ by about a percent of the largest.

    Returns:
        A module that is called as the model is; outputs differ by less than 1e-4 of the largest in float32. Its
        `report` says for every operation which kernel runs it, or why it was left alone.

    Raises:
        InputError: the model is none, or in training mode, or accelerated already; the dtype is not supported here;
            recompute without training, or a dtype with it.

    >>> network = accelerate(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval(), torch.zeros(1, 3, 8, 8))
    >>> network(torch.ones(1, 3, 8, 8)).shape
    torch.Size([1, 8, 8, 8])
    >>> [row.operation for row in network.report.rows]
    ['aten::conv2d', 'aten::relu']
    """
    if not isinstance(model, nn.Module):
        raise InputError("model", type(model).__name__, "must be a torch.nn.Module")
    if any(isinstance(module, Accelerated) for module in model.modules()):
        raise InputError("model", type(model).__name__, "is accelerated already; give its `.model`")
    if recompute and not training:
        raise InputError("recompute", recompute, "saves memory in training only; ask for training=True")
    if training and dtype != torch.float32:
        raise InputError("dtype", str(dtype), "is of inference; train under torch.autocast for another")
    if training:
        return swap_layers(model, recompute)
    _check_dtype(dtype)
    _check_evaluation(model)
    network = Accelerated(model, dtype)
    if example is not None:
        network.plan(*(example if isinstance(example, tuple) else (example,)))
    return network


class Accelerated(nn.Module):
    """A network that runs in native programs, made by `accelerate`; a copy or an unpickled one plans anew."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.model, self.dtype = model, dtype
        self.eval()
        self._start()

    def _start(self) -> None:
        self._plans: dict[Any, Plan | str] = {}  # of shapes that could not be planned, the reason
        self._latest: Plan | str | None = None
        self._lock = threading.Lock()

    @property
    def report(self) -> Report:
        """Of the inputs planned last.

        Raises:
            InputError: nothing was planned yet.
        """
        if self._latest is None:
            raise InputError("report", "None", "needs a plan; call the network once, or give accelerate an example")
        if isinstance(self._latest, Plan):
            return report_of(self._latest)
        return Report([Row("", type(self.model).__name__, "torch", self._latest)], _native.isa(), _native.missing)

    def plan(self, *args: Any, **kwargs: Any) -> None:
        """Plan for inputs of these shapes, as a call would."""
        leaves, key = _leaves_and_key(args, kwargs)
        self._latest = self._plan_of(key, leaves, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, without gradients.

        Where something follows the computation (torch.export, a trace, forward-mode derivatives, torch.func), the model
        itself runs.

        Raises:
            InputError: an input requires a gradient.
        """
        if _native.followed():
            return self.model(*args, **kwargs)
        leaves, key = _leaves_and_key(args, kwargs)
        if torch.is_grad_enabled():
            if any(leaf.requires_grad for leaf in leaves if isinstance(leaf, Tensor)):
                rule = "must not; an accelerated network gives no gradients"
                raise InputError("input", "a tensor that requires grad", rule)
            with torch.no_grad():
                return self._run(key, leaves, args, kwargs)
        return self._run(key, leaves, args, kwargs)

    def _run(self, key: Any, leaves: list[Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        plan = self._plans.get(key) or self._plan_of(key, leaves, args, kwargs)
        if isinstance(plan, str):
            return self.model(*args, **kwargs)
        made = plan.run([leaf for leaf in leaves if isinstance(leaf, Tensor)])
        return pytree.tree_unflatten(made, plan.tape.structure)

    def _plan_of(self, key: Any, leaves: list[Any], args: tuple, kwargs: dict[str, Any]) -> Plan | str:
        with self._lock:
            if key is None:
                self._latest = "an argument cannot be hashed: no plan could be found again by it"
                return self._latest
            if key not in self._plans:
                if len(self._plans) >= _MOST_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[key] = self._make(leaves, args, kwargs)
            self._latest = self._plans[key]
            return self._latest

    def _make(self, leaves: list[Any], args: tuple, kwargs: dict[str, Any]) -> Plan | str:
        """The plan, or why there is none."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        elsewhere = {t.device.type for t in (*tensors, *self.model.parameters(), *self.model.buffers())} - {"cpu"}
        if elsewhere:
            return f"it is on {elsewhere.pop()}, and the kernels are for the CPU"
        if self.dtype == torch.bfloat16:
            _check_dtype(self.dtype)  # it may have been unpickled on another processor
        if any(leaf.numel() == 0 for leaf in leaves if isinstance(leaf, Tensor)):
            return "its input is empty"
        if _native.missing:
            warnings.warn(f"accelerate has no native kernels: {_native.missing}", stacklevel=4)
        try:
            return Plan(record(self.model, args, kwargs), self.dtype)
        except CannotRecordError as error:
            return str(error)

    def train(self, mode: bool = True) -> "Accelerated":
        """Stays in evaluation mode.

        Raises:
            InputError: training is asked for.
        """
        if mode:
            raise InputError("mode", "train", "an accelerated network cannot be trained; see accelerate(training=True)")
        return super().train(False)

    def _apply(self, fn, recurse=True):
        self._plans.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._plans.clear()
        return super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_plans", "_latest", "_lock")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()


def _leaves_and_key(args: tuple, kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """The arguments flat, and what a plan depends on: shapes and strides, instruction set and number of threads.

    None in place of the latter where an argument cannot be hashed.
    """
    if not kwargs and all(type(arg) is Tensor for arg in args):  # as good as always, and much faster
        leaves, structure = list(args), None
    else:
        leaves, structure = pytree.tree_flatten((args, kwargs))
    found: list[Any] = [_native.isa(), torch.get_num_threads(), structure]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found += [leaf.shape, leaf.stride(), leaf.dtype, leaf.device]
        else:
            found += [type(leaf), leaf]  # 1, 1.0 and True are equal and may mean different things
    key = tuple(found)
    try:
        hash(key)
    except TypeError:
        return leaves, None
    return leaves, key


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.bfloat16):
        raise InputError("dtype", str(dtype), "must be torch.float32 or torch.bfloat16")
    if dtype == torch.bfloat16 and not _native.has_bfloat16():
        reason = _native.missing or f"{_native.isa()} kernels on this processor have none"
        raise InputError("dtype", str(dtype), f"needs products of bfloat16 (AVX512-BF16): {reason}")


def _check_evaluation(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training:
            where = f"its module {name!r} is" if name else "it is"
            rule = f"{where} in training mode; call eval() first, or ask for training=True"
            raise InputError("model", type(model).__name__, rule)
