"""Compare every timm network that has a depthwise convolution with what `accelerate` makes of it.

    python tests/acceleration/sweep.py [NAME ...]

Small images, random weights, one thread; one row a network in docs/acceleration-sweep.csv. A network done with this
version before is not done again. The last line counts those that differ. A network that cannot be made, or that fails
in torch itself, stands with its error.
"""

import copy
import csv
import gc
import sys
from pathlib import Path

import torch
from torch import nn

import separable
from separable import accelerate, models
from separable.acceleration import Accelerated

TABLE = Path(__file__).parents[2] / "docs" / "acceleration-sweep.csv"
COLUMNS = (
    "network",
    "family",
    "size",
    "operations",
    "native",
    "programs",
    "relative_error",
    "torch_error",
    "left_alone",
    "separable",
)
LARGEST_PARAMS = 100_000_000  # beyond, a network differs from its smaller kin by its widths alone


def drawn(network: nn.Module) -> nn.Module:
    """Norms and layer scales drawn away from one and zero, so that one out of place shows; in evaluation mode."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.8, 1.25)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.8, 1.2)
                nn.init.uniform_(module.bias, -0.2, 0.2)
    for name, parameter in network.named_parameters():
        if name.rpartition(".")[2].startswith(("gamma", "layer_scale", "scale")):
            nn.init.uniform_(parameter, 0.1, 1.0)
    return network.eval()


def has_depthwise(network: nn.Module) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return any(isinstance(m, kinds) and m.groups > 1 and m.weight.shape[1] == 1 for m in network.modules())


def image_size(network: nn.Module) -> int:
    """The network's own where it takes no other, else a small one."""
    settings = network.default_cfg
    own, least = settings["input_size"][1], (settings.get("min_input_size") or (0, 0, 0))[1]
    return own if settings.get("fixed_input_size") else min(own, max(least, 96))


@torch.no_grad()
def compare(network: nn.Module, size: int) -> tuple[Accelerated, float, float]:
    """The accelerated network, how far its outputs lie from float64's (over the largest), and how far torch's own."""
    x = torch.randn(1, 3, size, size)
    fast = accelerate(network, x)
    actual, own = fast(x), network(x)
    truth = copy.deepcopy(network).double()(x.double())
    return fast, *(((y - truth).abs().max() / truth.abs().max()).item() for y in (actual, own))  # type: ignore[return-value]


def agrees(error: float, torch_error: float) -> bool:
    """Within 1e-4, or ten times torch's own distance where weights as drawn enlarge every rounding."""
    return error < max(1e-4, 10 * torch_error)


def row_of(name: str) -> dict | None:
    """One row, or None for a network without depthwise convolutions."""
    timm = models.import_timm()
    row = dict.fromkeys(COLUMNS, "") | {"network": name, "separable": separable.__version__}
    try:
        with torch.device("meta"):
            sketch = timm.create_model(name)
        if not has_depthwise(sketch) or sum(p.numel() for p in sketch.parameters()) > LARGEST_PARAMS:
            return None
        network = drawn(timm.create_model(name))
        size = image_size(network)
        fast, error, torch_error = compare(network, size)
    except Exception as error:
        return row | {"left_alone": f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"}
    report = fast.report
    reasons = dict.fromkeys(r.operation.removeprefix("aten::") for r in report.left_alone)
    return row | {
        "family": type(network).__module__.rpartition(".")[2],
        "size": size,
        "operations": len(report.rows),
        "native": len(report.rows) - len(report.left_alone),
        "programs": report.programs,
        "relative_error": f"{error:.1e}",
        "torch_error": f"{torch_error:.1e}",
        "left_alone": " ".join(sorted(reasons)),
    }


def main() -> None:
    torch.set_num_threads(1)
    done = {}
    if TABLE.exists():
        with TABLE.open() as file:
            done = {row["network"]: row for row in csv.DictReader(file) if row["separable"] == separable.__version__}
    for name in sys.argv[1:] or models.import_timm().list_models():
        if name in done and name not in sys.argv:
            continue
        row = row_of(name)
        gc.collect()
        if row is None:
            continue
        done[name] = row
        print(
            f"{name:40} {row['native']}/{row['operations']}  {row['relative_error']}  {row['left_alone']}", flush=True
        )
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(done[key] for key in sorted(done))
    measured = [r for r in done.values() if r["relative_error"]]
    wrong = [r["network"] for r in measured if not agrees(float(r["relative_error"]), float(r["torch_error"]))]
    print(f"{len(done)} networks, {len(wrong)} of them differ: {' '.join(wrong)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
