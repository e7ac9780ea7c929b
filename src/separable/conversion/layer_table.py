"""What became of each layer, as a table for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def layer_table(conversion: Mapping[str, Any]) -> Table:
    """A row for each convolution, totals last, from `Conversion.to_json()`."""
    share = conversion["macs_after"] / max(conversion["macs_before"], 1)
    rows = conversion["comparison"]["rows"]
    whole = {row["network"]: row["ms"] for row in rows if row["runtime"] == conversion["target"]}
    table = Table(title="Converted layers", title_justify="left", show_footer=True)
    table.add_column("layer", footer="whole network")
    table.add_column("form")
    table.add_column("error", justify="right")
    table.add_column("MMACs before", justify="right", footer=f"{conversion['macs_before'] / 1e6:.2f}")
    table.add_column("after", justify="right", footer=f"{conversion['macs_after'] / 1e6:.2f} ({share:.0%})")
    table.add_column("params before", justify="right", footer=f"{conversion['params_before']:,}")
    table.add_column("after", justify="right", footer=f"{conversion['params_after']:,}")
    table.add_column(f"ms in {conversion['target']} before", justify="right", footer=_ms(whole.get("dense")))
    table.add_column("after", justify="right", footer=_ms(whole.get("separable")))
    for layer in conversion["layers"]:
        form = layer["note"] if layer["form"] is None else layer["form"]
        form += f", rank {layer['rank']}" if layer["rank"] else ""
        cells = [layer["name"], form, "" if layer["error"] is None else f"{layer['error']:.4f}"]
        cells += [f"{layer['macs_before'] / 1e6:.3f}", f"{layer['macs_after'] / 1e6:.3f}"]
        cells += [f"{layer['params_before']:,}", f"{layer['params_after']:,}"]
        table.add_row(*cells, _ms(layer["ms_before"]), _ms(layer["ms_after"]))
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
