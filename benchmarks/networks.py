"""Whole networks: `accelerate` beside eager, compiled, onnxruntime and OpenVINO, in float32 and bfloat16.

    python benchmarks/networks.py [--kind separable] [--threads 1] [--only mobilenetv1_100 ...] [--rounds 15]

Two kinds, each with geometric means of its own: separable networks at batch 1, and dense and grouped ones.

Random weights, random batch norms; outputs are compared with eager's before anything is timed. The peers take turns,
every other round backwards; the first call of a turn, which finds the caches as another peer left them, is not timed.
With one thread the processor time of the whole process is taken, which on a shared machine leaves out the turns of
others; with more, the clock. One row a network, peer and number of threads in results/networks.csv.
The floor is the network's multiply-adds at the rate of the largest matrix product, measured in the same run.
OpenVINO is timed where it can be imported, and the table says where it cannot.
"""

import argparse
import copy
import datetime
import importlib.util
import io
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import measured
import torch
from torch import Tensor, nn
from vgg_unet import VGGUNet

import separable
from separable import _native, accelerate, cost, models
from separable.cost import processor
from separable.errors import InputError

NETWORKS = {  # kind of each, batch, height and width
    "mobilenetv1_100": ("separable", 1, 224),
    "mobilenetv2_100": ("separable", 1, 224),
    "mobilenetv3_large_100": ("separable", 1, 224),
    "efficientnet_b0": ("separable", 1, 224),
    "convnext_tiny": ("separable", 1, 224),
    "legacy_xception": ("separable", 1, 299),
    "resnet18": ("dense", 1, 224),
    "resnet18, batch 8": ("dense", 8, 224),
    "resnet50": ("dense", 1, 224),
    "vgg11": ("dense", 1, 224),
    "regnetx_008": ("dense", 1, 224),
    "vgg_unet": ("dense", 1, 256),
}
FLOAT32_PEERS = ("eager", "eager channels-last", "compile with freezing", "onnxruntime", "openvino f32")
CALLS = 3  # timed in each turn
Run = Callable[[], Tensor]


def network(name: str) -> nn.Module:
    """timm's, or the text detector's, with batch norms and layer scales that do something."""
    torch.manual_seed(0)
    made = VGGUNet().eval() if name == "vgg_unet" else models.import_timm().create_model(name.split(",")[0]).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    for parameter_name, parameter in made.named_parameters():
        if parameter_name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.1, 1.0)
    return made


def ours(model: nn.Module, x: Tensor) -> Run:
    fast = accelerate(model, x)
    if fast.report.left_alone:
        print(fast.report)
    return lambda: fast(x)


def ours_bfloat16(model: nn.Module, x: Tensor) -> Run:
    fast = accelerate(model, x, dtype=torch.bfloat16)
    return lambda: fast(x)


def eager(model: nn.Module, x: Tensor) -> Run:
    return lambda: model(x)


def eager_channels_last(model: nn.Module, x: Tensor) -> Run:
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: model(x)


def compiled(model: nn.Module, x: Tensor) -> Run:
    import torch._inductor.config as inductor

    inductor.freezing = True
    torch._dynamo.reset()
    fast = torch.compile(copy.deepcopy(model).to(memory_format=torch.channels_last))
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        fast(x)
    return lambda: fast(x)


def _onnx(model: nn.Module, x: Tensor) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, opset_version=17)
    return file.getvalue()


def onnxruntime(model: nn.Module, x: Tensor) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(_onnx(model, x), options, providers=["CPUExecutionProvider"])
    name, given = session.get_inputs()[0].name, x.numpy()
    return lambda: torch.from_numpy(session.run(None, {name: given})[0])


def openvino_f32(model: nn.Module, x: Tensor) -> Run:
    return _openvino(model, x, {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_default(model: nn.Module, x: Tensor) -> Run:
    return _openvino(model, x, {})


def _openvino(model: nn.Module, x: Tensor, options: dict) -> Run:
    import openvino as ov

    core = ov.Core()
    options = {**options, "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(_onnx(model, x)), "CPU", options).create_infer_request()
    given = x.numpy()
    return lambda: torch.from_numpy(request.infer([given])[0])


PEERS: dict[str, Callable[[nn.Module, Tensor], Run]] = {
    "accelerate": ours,
    "accelerate bf16": ours_bfloat16,
    "eager": eager,
    "eager channels-last": eager_channels_last,
    "compile with freezing": compiled,
    "onnxruntime": onnxruntime,
    "openvino f32": openvino_f32,
    "openvino default": openvino_default,
}


def peak_macs_a_ms(clock: Callable[[], float]) -> float:
    """Of a matrix product whose factors stay in cache, by as many threads; the best of many, for this is a limit."""
    a, b, out = torch.randn(768, 384), torch.randn(384, 384), torch.empty(768, 384)
    times = []
    for _ in range(100):
        started = clock()
        torch.mm(a, b, out=out)
        times.append(clock() - started)
    return a.numel() * b.shape[1] / (min(times) * 1e3)


def difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def measure(name: str, rounds: int, compile_too: bool) -> list[dict]:
    """One row a peer; a wrong output has no speed."""
    threads = torch.get_num_threads()
    clock = time.process_time if threads == 1 else time.perf_counter
    kind, batch, size = NETWORKS[name]
    model, x = network(name), torch.randn(batch, 3, size, size)
    expected, runs, errors = model(x), {}, {}
    for peer, make in PEERS.items():
        if peer.startswith("openvino") and importlib.util.find_spec("openvino") is None:
            continue
        if peer.startswith("compile") and not compile_too:
            continue
        try:
            runs[peer] = make(model, x)
        except InputError as error:
            print(f"{name}: {peer}: {error}")
            continue
        errors[peer] = difference(runs[peer](), expected)
        exact = "bf16" not in peer and "default" not in peer
        assert not exact or errors[peer] < 1e-4, (peer, errors[peer])
    times: dict[str, list[float]] = {peer: [] for peer in runs}
    turns = list(runs.items())
    for i in range(rounds):
        for peer, run in turns if i % 2 else reversed(turns):
            run()
            for _ in range(CALLS):
                started = clock()
                run()
                times[peer].append((clock() - started) * 1e3)
    macs, peak = cost.count(model, x).macs, peak_macs_a_ms(clock)
    medians = {peer: statistics.median(samples) for peer, samples in times.items()}
    best = min(medians[peer] for peer in FLOAT32_PEERS if peer in medians)
    return [
        {
            "network": name,
            "kind": kind,
            "batch": batch,
            "size": size,
            "threads": threads,
            "peer": peer,
            "median_ms": round(medians[peer], 3),
            "p20_ms": round(sorted(samples)[len(samples) // 5], 3),
            "best_f32_peer_over_this": round(best / medians[peer], 3),
            "eager_over_this": round(medians["eager"] / medians[peer], 3),
            "floor_ms": round(macs / peak, 3),
            "relative_error": f"{errors[peer]:.1e}",
            "macs": macs,
            "clock": "processor" if threads == 1 else "wall",
            "isa": _native.isa(),
            "processor": processor(),
            "torch": torch.__version__,
            "separable": separable.__version__,
            "date": datetime.date.today().isoformat(),
        }
        for peer, samples in times.items()
    ]


def summary(rows: list[dict]) -> None:
    """The table, and the geometric means that the claims are about."""
    for row in rows:
        print(
            f"{row['network']:22} {row['threads']} {row['peer']:22} {row['median_ms']:9.3f} ms"
            f"  best peer/this {row['best_f32_peer_over_this']:5.2f}  eager/this {row['eager_over_this']:5.2f}"
            f"  floor {row['floor_ms']:7.3f}  error {row['relative_error']}"
        )
    for threads, kind in sorted({(row["threads"], row["kind"]) for row in rows}):
        mine = [row for row in rows if (row["peer"], row["threads"], row["kind"]) == ("accelerate", threads, kind)]
        for column in ("best_f32_peer_over_this", "eager_over_this"):
            mean = math.exp(statistics.fmean(math.log(row[column]) for row in mine))
            least = min(mine, key=lambda row: row[column])
            worst = f"least {least[column]} ({least['network']})"
            print(f"{kind}, {threads} threads, {column}: geometric mean {mean:.2f}, {worst}")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="1 or 2; both, each in a fresh process, if not given")
    parser.add_argument("--kind", choices=("separable", "dense"), help="both, if not given")
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    options = parser.parse_args()
    if options.threads is None:  # thread pools of the peers are made once a process
        for threads in ("1", "2"):
            subprocess.run([sys.executable, *sys.argv, "--threads", threads], check=True)
        return
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.only:
        if options.kind not in (None, NETWORKS[name][0]):
            continue
        rows += measure(name, options.rounds, not options.without_compile)
        print(f"{name}: done", flush=True)
    summary(rows)
    measured.write("networks", rows, ("network", "threads", "processor"))


if __name__ == "__main__":
    main()
