"""What an accelerated network runs: for every operation the kernel, or why it was left alone."""

from collections import Counter
from dataclasses import dataclass, field

from separable import _native
from separable.acceleration.plan import Part, Plan
from separable.acceleration.steps import Step
from separable.cost.subnormal import Subnormal, in_words


@dataclass(frozen=True)
class Row:
    """One operation of the network: where it stands, what it is, which kernel runs it, or why none of ours does."""

    layer: str
    operation: str
    kernel: str  # "separable_conv", ...; "torch" where it was left alone
    reason: str  # empty where a native kernel runs it

    @property
    def is_native(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Report:
    """All operations in the order in which they run, those that a kernel does together one after the other.

    isa: the instruction set of the kernels, or None where the library is missing, for `missing`.
    """

    rows: list[Row]
    isa: str | None
    missing: str = ""
    programs: int = 0  # native ones that one forward runs; one stops for each convolution by oneDNN
    plans: int = 0  # of this network, for other inputs too
    bytes: int = 0  # that they take together: packed weights, which they share, code and workspaces
    budget_bytes: int = 0  # above which the plans that were used longest ago leave
    tuning_ms: float = 0.0  # spent on timing the forms of kernels, for all plans
    # Layers whose weights, now, or whose activations, in the first run, processors are slow with (separable.cost)
    subnormal: list[Subnormal] = field(default_factory=list)

    @property
    def left_alone(self) -> list[Row]:
        return [row for row in self.rows if not row.is_native]

    def __str__(self) -> str:
        kernels = f"native kernels for {self.isa}" if self.isa else f"no native kernels: {self.missing}"
        done = len(self.rows) - len(self.left_alone)
        lines = [f"{done} of {len(self.rows)} operations in {self.programs} programs; {kernels}"]
        if self.plans:
            lines.append(
                f"{self.plans} plans take {self.bytes / 1e6:.1f} MB of at most {self.budget_bytes / 1e6:.1f} MB"
            )
        if self.tuning_ms:
            lines.append(f"kernels were chosen by {self.tuning_ms:.0f} ms of timing")
        if self.subnormal:
            lines.append(f"subnormal numbers, zeros in programs but not in torch: {in_words(self.subnormal)}")
        counted = Counter(row.kernel for row in self.rows)
        lines += [f"{count:5}  {kernel}" for kernel, count in counted.most_common()]
        reasons = Counter((row.operation, row.reason) for row in self.left_alone)
        lines += [f"left alone {count}x {operation}: {reason}" for (operation, reason), count in reasons.most_common()]
        return "\n".join(lines)


def report_of(plan: Plan) -> Report:
    """The report of a plan: its programs' steps, and torch's calls with their reasons; views are no operations."""
    programs = sum(bool(part.steps) for part in plan.parts) if _native.path else 0
    rows = [row for part in plan.parts for row in _rows(part)]
    return Report(rows, _native.isa(), _native.missing, programs, subnormal=plan.tape.subnormal)


def _rows(part: Part) -> list[Row]:
    if not part.native:
        return [Row(n.call.layer, n.call.name, "torch", n.reason) for n in part.nodes if not n.is_native]
    return [
        Row(call.layer, call.name, _kernel(step), "" if _native.path else _native.missing)
        for step in part.steps
        for call in step.covers
    ]


def _kernel(step: Step) -> str:
    return "torch" if _native.path is None else step.name
