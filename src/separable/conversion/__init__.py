"""From a trained dense network to a separable one: survey -> table of forms -> plan -> calibrate, then distill.

`convert` walks the steps; `Study` keeps what does not depend on the budget. docs/conversion.md derives them.

The functions stand before the modules of their names: `separable.conversion.survey` is the function, and the module
`survey` is reached by `from separable.conversion.survey import ...`.
"""

from pathlib import Path

from torch import nn

from separable.conversion.batches import Data
from separable.conversion.calibrate import calibrate
from separable.conversion.distill import Epoch, distill
from separable.conversion.factorize import factorize
from separable.conversion.plan import DEFAULT, read_budget
from separable.conversion.result import Choice, Conversion
from separable.conversion.study import Study
from separable.conversion.survey import SAMPLES, Site, Survey, survey
from separable.conversion.who_pays import WhoPays, read_slices, who_pays
from separable.errors import InputError
from separable.inputs import Example

__all__ = [
    "Choice",
    "Conversion",
    "Epoch",
    "Site",
    "Study",
    "Survey",
    "WhoPays",
    "calibrate",
    "convert",
    "distill",
    "factorize",
    "read_slices",
    "survey",
    "who_pays",
]


def convert(
    model: nn.Module,
    data: Data,
    budget: dict[str, float] | None = None,
    *,
    example: Example | None = None,
    samples: int = SAMPLES,
    target: str | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> Conversion:
    """Make a trained dense network separable under a budget, its weights carried over, without a gradient step.

    Args:
        model: any network; it is not modified. Of one that torch.compile made, the network inside is
            converted.
        data: what it was trained on, prepared as for it, some hundreds of examples: a tensor [N, ...], or an iterable
            of batches, each (inputs, labels) or the inputs alone. Inputs are a tensor, a tuple of what the network
            takes by position, or a dict of what it takes by name; several without labels are written ((a, b),). In a
            dict that is a whole batch, "labels" are the labels. The data is read as far as `samples` go, or to its end
            where accuracy is a budget.
        budget: one or several of {"macs": b, "params": b, "latency": b}. Up to 1, b is a share of what the whole dense
            network has (1: nothing needs to change); above 1 a count of multiply-adds for one example, or of
            parameters. Latency is always a share: of the time of the dense network in the fastest runtime at hand.
            {"accuracy": -0.5} asks for the fastest network that loses at most half a point on labelled examples: those
            beyond `samples`, or the last quarter. {"latency": 0.6} where not given.
        example: the inputs, in the same form, that MACs are counted and latency is measured on, of the batch that will
            be run; the first of the data where not given.
        samples: how many examples of the data are used at most.
        target: where the network will run, and forms are timed: "accelerate" (where not given, if the native library
            stands here), "onnxruntime", "openvino" or "torch", on as many threads as torch has.
        checkpoint: a folder in which what takes long is kept as soon as it is known: losses, times, fitted layers.
        resume: continue the conversion in `checkpoint`, to the network that it would have made; begin it if there is
            none. Only after a budget of latency was refused, times are measured anew.

    Returns:
        A `Conversion`: the network, in the mode (train or eval) of the one given, what became of each layer, and its
        time beside the dense network's in every runtime. A form that is slower than the dense layer is not taken. Where
        a whole block went, nn.Identity or nn.ReLU stands in its place, and dense layers behind it are fitted anew.

    Raises:
        InputError: bad data, NaN in activations (names the layer), nothing that can be made separable, a budget that
            is more than the dense network has or cannot be met (says the best that can), a target that cannot be used
            here, or a checkpoint of another network, other data or another machine.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 10))
    >>> done = convert(net.eval(), torch.randn(64, 3, 8, 8), {"macs": 0.5}, target="torch")
    >>> done.macs_after <= 0.5 * done.macs_before
    True
    """
    budget = dict(DEFAULT) if budget is None else budget
    read_budget(budget)
    judged = "accuracy" in budget
    study = Study(
        model, data, example=example, samples=samples, target=target, judged=judged,
        checkpoint=checkpoint, resume=resume,
    )  # fmt: skip
    try:
        return study.convert(budget)
    except InputError as error:
        if error.argument == "budget" and "latency" in budget:  # on kept times it would be refused for ever
            study.forget_times()
        raise
