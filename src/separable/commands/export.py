"""A network as one ONNX file."""

from pathlib import Path

from separable import store
from separable.commands.network import example_of, open_network
from separable.commands.result import Result
from separable.errors import InputError
from separable.export import export_onnx


def run(source: str, out: Path, weights: Path | None, shape: str | None, overwrite: bool) -> Result:
    if out.exists() and not overwrite:
        raise InputError("--out", out, "exists already; name another file or add --overwrite")
    network = open_network(source, weights)
    about = store.read_about(Path(source)) if Path(source).is_dir() else None
    export_onnx(network.model, example_of(network, shape), out, about=about)
    size_bytes = out.stat().st_size
    data = {"network": network.name, "file": str(out), "size_bytes": size_bytes}
    return Result(data, [], f"Written: {out} ({size_bytes / 1e6:.2f} MB), equal to torch at batch 1 and 3")
