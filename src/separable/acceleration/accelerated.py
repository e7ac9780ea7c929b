"""The module that `accelerate` makes: it plans once for each shape of inputs, then runs the plan."""

import math
import threading
import warnings
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from separable import _native
from separable.acceleration.choose import Choices
from separable.acceleration.invocation import Invocation
from separable.acceleration.plan import Plan
from separable.acceleration.report import Report, Row, report_of
from separable.acceleration.shared import Shared
from separable.acceleration.state import State, flatten
from separable.acceleration.tape import follow, storage_of
from separable.acceleration.training import swap_layers
from separable.cost.subnormal import subnormal_weights
from separable.errors import InputError
from separable.functional.measure import fastest, seconds_of
from separable.inputs import own_copy

# All plans together, least recently used leaving first, may take this many times what the largest takes alone; those of
# small networks may take some megabytes.
_MOST_SHARE, _LEAST_BYTES = 1.4, 8 << 20
_SHORT_SECONDS = 2e-3  # of a call, above which torch's own operations are not tried
_ROUNDS, _GAIN = 5, 0.9  # of trying them, and the share of the plan's time that they must stay below
_MOST_CHANGES = 3  # of the network's state one after the other, none of its plans used between


def accelerate(
    model: nn.Module,
    example: Any = None,
    *,
    training: bool = False,
    recompute: bool = False,
    dtype: torch.dtype = torch.float32,
    tune: bool = True,
) -> nn.Module:
    """The same network, same outputs, faster on a CPU.

    Args:
        model: in evaluation mode. It is kept, not copied, as `.model` of the result. Each call looks whether its
            weights, attributes and hooks are as they were; only numbers that torch counts no version for are not seen:
            written through `.data` or numpy, or of a network made under torch.inference_mode.
        example: an input, or a tuple of them, to plan for at once; else the first call plans. It stays as it is.
        training: swap its depthwise convolutions and batch norms for layers with native forward and backward, in a
            copy, and nothing else; the copy trains, saves and loads as the model does.
        recompute: with training, set `recompute` in its separable layers: less memory, a little more work.
        dtype: float32; torch.bfloat16 rounds the factors of matrix products to bfloat16 and sums in float32, on
            processors with AVX512-BF16; outputs then differ by about a percent of the largest.
        tune: time the forms that a dense convolution can take on its real shape, about a second in all, and keep the
            fastest; the choice travels with pickles. Calls of under 2 ms are timed beside torch's own operations, and
            the model itself runs where those are faster. False takes a fixed rule, which gives the same bits in every
            run; so does torch.use_deterministic_algorithms.

    Returns:
        A module that is called as the model is; outputs differ by less than 1e-4 of the largest in float32. Its
        `report` says for every operation which kernel runs it, or why it was left alone.

    Raises:
        InputError: the model is none, or in training mode, or accelerated already; the dtype is not supported here;
            recompute without training, or a dtype with it.

    >>> network = accelerate(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval(), torch.zeros(1, 3, 8, 8), tune=False)
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
    network = Accelerated(model, dtype, tune)
    if example is not None:
        network.plan(*(example if isinstance(example, tuple) else (example,)))
    return network


class Accelerated(nn.Module):
    """A network that runs in native programs, made by `accelerate`; a copy or an unpickled one plans anew."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32, tune: bool = True):
        super().__init__()
        self.model, self.dtype, self.choices = model, dtype, Choices(tune)
        self.eval()
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._plans: OrderedDict[Any, Plan | str] = OrderedDict()  # of calls that cannot be planned, the reason
        self._shared = Shared()
        self.choices.seconds = 0.0
        self._latest: Report | str | None = None  # of what was planned last, or why it was not
        self._changes = 0  # of what plans rest on, since one was used
        self._forget()

    def _forget(self) -> None:
        """Drop all plans: what they rest on is no more."""
        self._plans.clear()
        self._budget = 0
        self._state: State | None = None
        self._own_memory: frozenset[int] = frozenset()

    @property
    def report(self) -> Report:
        """Of the inputs planned last.

        Raises:
            InputError: nothing was planned yet.
        """
        if self._latest is None:
            raise InputError("report", "None", "needs a plan; call the network once, or give accelerate an example")
        weights = subnormal_weights(self.model)
        if isinstance(self._latest, Report):
            return replace(
                self._latest,
                subnormal=weights + self._latest.subnormal,
                plans=len(self._plans),
                bytes=self._bytes(),
                budget_bytes=self._budget,
                tuning_ms=self.choices.seconds * 1e3,
            )
        row = Row("", type(self.model).__name__, "torch", self._latest)
        return Report([row], _native.isa(), _native.missing, subnormal=weights)

    def plan(self, *args: Any, **kwargs: Any) -> None:
        """Plan for inputs of these shapes, as a call would; inputs, network and random numbers stay as they are."""
        args, kwargs = own_copy((args, kwargs))
        call = Invocation(args, kwargs)
        if call.obstacle:
            self._latest = call.obstacle
            return
        with self._lock, torch.random.fork_rng(devices=[]):
            before = State(self.model, keeps_values=True)
            try:
                self._first_run(call)
            finally:
                if call.key not in self._plans:
                    before.restore()
                    self._forget()
        self._changes = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, without gradients.

        Where something follows the computation (torch.export, a trace, forward-mode derivatives, torch.func, a mode of
        torch), under torch.autocast, and where a call depends on more than a plan can know, the model itself runs.

        Raises:
            InputError: an input requires a gradient.
        """
        if _native.followed():
            return self.model(*args, **kwargs)
        call = Invocation(args, kwargs)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
            rule = "must not; an accelerated network gives no gradients"
            raise InputError("input", "a tensor that requires grad", rule)
        if reason := call.obstacle or self._obstacle(call):
            self._latest = reason
            return self._as_it_is(call)
        plan = self._plans.get(call.key)
        if plan is None or self._state is None or not self._state.is_current():
            with self._lock:
                plan = self._current(call.key)
                if plan is None:
                    return self._first_run(call)
        if self._changes:  # to set an attribute of a module takes microseconds
            self._changes = 0
        if len(self._plans) > 1:
            with suppress(KeyError):  # another thread may just have let it go
                self._plans.move_to_end(call.key)
        return self._as_it_is(call) if isinstance(plan, str) else _played(plan, call)

    def _obstacle(self, call: Invocation) -> str:
        """What of the network stands against a plan of this very call."""
        if self._changes > _MOST_CHANGES:
            return self._latest if isinstance(self._latest, str) else "what it reads changes from call to call"
        if not self._own_memory.isdisjoint(call.memory):
            return "an input lies in the memory of the network's own tensors"
        return ""

    def _current(self, key: Any) -> Plan | str | None:
        """What was planned, if it still holds: asked again once no other thread is planning."""
        if self._state is not None and not self._state.is_current():
            self._forget()
            self._changes += 1
        return self._plans.get(key)

    def _as_it_is(self, call: Invocation) -> Any:
        output = self.model(*call.args, **call.kwargs)
        if type(output) is Tensor:
            return output.detach() if output.requires_grad else output
        leaves, structure = flatten(output)
        if not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
            return output
        return pytree.tree_unflatten(
            [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
        )

    def _first_run(self, call: Invocation) -> Any:
        """Run the model and watch it; plan, if its call can be repeated without it."""
        state = self._state or self._take_state()
        if reason := self._obstacle(call):  # asked again: now it is known which memory is the network's
            self._latest = reason
            return self._as_it_is(call)
        if reason := self._reason_against(call, state):
            self._latest = self._plans[call.key] = reason
            return self._as_it_is(call)
        followed = follow(self.model, call.args, call.kwargs, state)
        changed = not state.is_current()
        if changed:
            self._forget()
            self._take_state()
        if followed.tape is None:
            self._latest = followed.reason
            if changed:  # perhaps for the last time
                self._changes += 1
            else:
                self._plans[call.key] = followed.reason
            return followed.output
        try:
            plan = Plan(followed.tape, self.dtype, self._shared, self._choices())
        except Exception as error:  # ours to mend, and no reason for the user's call to fail
            self._latest = self._plans[call.key] = f"it could not be planned: {error!r}"
            warnings.warn(f"accelerate runs the model as it is: {self._latest}", stacklevel=5)
            return followed.output
        self._latest = report_of(plan)
        if _native.path and not any(part.steps for part in plan.parts):
            self._plans[call.key] = "nothing of it has a native kernel"
            return followed.output
        pure = not followed.has_effects and not any(made.kept_whole for made in followed.tape.calls)
        if self._choices().tune and pure and _native.path and (reason := _reason_for_torch(plan, call)):
            self._latest = self._plans[call.key] = reason
            return followed.output
        self._plans[call.key] = plan
        plan.drop_what_made_it()
        self._make_room(plan)
        return followed.output if followed.has_effects else _played(plan, call)

    def _choices(self) -> Choices:
        return Choices(tune=False) if torch.are_deterministic_algorithms_enabled() else self.choices

    def _make_room(self, plan: Plan) -> None:
        """Let plans go, least recently used first, until what is kept fits the budget."""
        self._shared.trim()
        self._budget = max(self._budget, _LEAST_BYTES, int(_MOST_SHARE * plan.bytes_alone))
        while len(self._plans) > 1 and self._bytes() > self._budget:
            self._plans.popitem(last=False)

    def _bytes(self) -> int:
        return self._shared.bytes + sum(plan.own_bytes for plan in self._plans.values() if isinstance(plan, Plan))

    def _take_state(self) -> State:
        self._state = state = State(self.model)
        self._own_memory = frozenset(map(storage_of, state.tensors))
        return state

    def _reason_against(self, call: Invocation, state: State) -> str:
        """Why this call is not planned, as far as can be told before it runs."""
        elsewhere = {t.device.type for t in (*call.tensors, *state.tensors)} - {"cpu"}
        if elsewhere:
            return f"it is on {elsewhere.pop()}, and the kernels are for the CPU"
        if self.dtype == torch.bfloat16:
            _check_dtype(self.dtype)  # it may have been unpickled on another processor
        if any(tensor.numel() == 0 for tensor in call.tensors):
            return "its input is empty"
        if _native.missing:
            warnings.warn(f"accelerate has no native kernels: {_native.missing}", stacklevel=5)
        return state.doubt

    def train(self, mode: bool = True) -> "Accelerated":
        """Stays in evaluation mode.

        Raises:
            InputError: training is asked for.
        """
        if mode:
            raise InputError("mode", "train", "an accelerated network cannot be trained; see accelerate(training=True)")
        return super().train(False)

    def _apply(self, fn, recurse=True):
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._forget()
        return super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_plans", "_latest", "_lock", "_state", "_own_memory", "_changes", "_shared", "_budget")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()


def _reason_for_torch(plan: Plan, call: Invocation) -> str:
    """Where torch's own operations take less time than the plan: a few small ones, or a layout that costs to change."""
    with torch.random.fork_rng(devices=[]):
        if seconds_of(lambda: _played(plan, call)) > _SHORT_SECONDS:
            return ""
        by_torch = Plan(plan.tape, native=False)
        least = fastest({way: partial(_played, way, call) for way in (plan, by_torch)}, _ROUNDS)
    if least.get(by_torch, math.inf) > _GAIN * least[plan]:
        return ""
    return f"torch's own operations are faster here: {least[by_torch] * 1e6:.0f} us and {least[plan] * 1e6:.0f}"


def _played(plan: Plan, call: Invocation) -> Any:
    if torch.is_grad_enabled():
        with torch.no_grad():
            made = plan.run(call.tensors)
    else:
        made = plan.run(call.tensors)
    return pytree.tree_unflatten(made, plan.structure)


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
