"""One self-contained page: HTML from one template, figures as inline SVG, nothing fetched when it is read.

Callers hand over plain data. Text is escaped; what `table`, `figure`, `pictures` and `sounds` give is markup already.
jinja2 and matplotlib are imported when a page is made, so that the core does without them.
"""

import base64
import html
import importlib
import io
import re
import wave
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from separable.atomic import write_beside
from separable.errors import InputError, need


class Markup(str):
    """HTML that is safe to put in a page as it is."""

    def __html__(self) -> str:  # the protocol by which jinja2 leaves it alone
        return self


@dataclass
class Section:
    """A heading and what stands under it: strings (escaped, a paragraph each) and markup from this room."""

    title: str
    parts: Sequence[str] = field(default_factory=list)


def write_page(
    file: str | Path,
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: str = "",
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write one HTML file that needs no other.

    Args:
        file: where; written beside and renamed, so that a reader never sees half a page.
        title, subtitle: text of the header.
        sections: what the page shows, in order.
        facts: (value, what it is) pairs in large type under the header.

    Returns:
        The path written.

    Raises:
        InputError: the file cannot be written; jinja2 is not installed.
    """
    jinja2 = needs("jinja2")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_resource("page.html.jinja"))
    page = template.render(
        title=title, subtitle=subtitle, facts=facts, sections=sections, style=Markup(_resource("page.css"))
    )
    with write_beside(file, argument="file") as beside:
        beside.write_text(page, encoding="utf-8")
    return Path(file)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", total: Sequence[Any] = ()
) -> Markup:
    """A table: numbers right-aligned, None as an empty cell, `total` as its last line.

    The first cells are row headings, which stand left whatever they hold.

    >>> "<th scope='row'>a &lt; b</th>" in table(["layer", "ms"], [["a < b", 1.5]])
    True
    """
    for row in (*rows, *([total] if total else [])):
        if len(row) != len(columns):
            raise InputError("rows", list(row), f"must have {len(columns)} cells, one for each column")
    numeric = [
        any(_is_number(row[i]) for row in rows) and all(row[i] is None or _is_number(row[i]) for row in rows)
        for i in range(len(columns))
    ]
    numeric[0] = False  # the row headings, which stand left whatever they say
    head = "".join(
        f"<th scope='col'{_numeric(is_number)}>{html.escape(c)}</th>"
        for c, is_number in zip(columns, numeric, strict=True)
    )
    body = "".join(_row(row, numeric) for row in rows)
    foot = f"<tfoot>{_row(total, numeric)}</tfoot>" if total else ""
    said = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return Markup(
        f"<div class='scroll' tabindex='0' role='region' aria-label='{html.escape(caption or columns[0], quote=True)}'>"
        f"<table>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table></div>"
    )


def figure(fig: Any, title: str, description: str, tips: dict[str, str] | None = None) -> Markup:
    """A matplotlib figure as inline SVG that follows the page's light or dark colours.

    Args:
        fig: a matplotlib.figure.Figure drawn with the colours of `plots` (others stay as they are).
        title: shown under the figure and read first by a screen reader.
        description: what a reader who cannot see the figure needs to know.
        tips: text shown over an element, by the element's gid.
    """
    matplotlib = needs("matplotlib")
    plots = importlib.import_module("separable.report.plots")
    salt = f"{title}{description}"  # ids differ from figure to figure and not from run to run
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for drawn, shown in plots.THEME.items():
        svg = svg.replace(drawn, shown)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = f"f{zlib.crc32(salt.encode()):x}"
    svg = re.sub(r'id="([\w.]+_\d+)"', rf'id="{prefix}-\1"', svg)
    for gid, text in (tips or {}).items():
        svg = svg.replace(f'<g id="{gid}">', f"<g><title>{html.escape(text)}</title>", 1)
    width = round(fig.get_figwidth() * 104)
    label = f"<title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>"
    svg = re.sub(
        r"(<svg [^>]*?)>",
        rf'\1 role="img" aria-label="{html.escape(title)}" style="max-width: {width}px">',
        svg,
        count=1,
    )
    svg = svg.replace(">", f">{label}", 1)
    return Markup(f"<figure>{svg}<figcaption>{html.escape(title)}</figcaption></figure>")


def pictures(images: Sequence[Any], captions: Sequence[str], title: str) -> Markup:
    """Small pictures in a row, each with its caption; images are uint8 arrays or tensors [H, W] or [H, W, 3]."""
    numpy, image = needs("numpy"), needs("PIL.Image")
    if len(images) != len(captions):
        raise InputError("captions", len(captions), f"must be as many as the images, {len(images)}")
    cells = []
    for pixels, caption in zip(images, captions, strict=True):
        buffer = io.BytesIO()
        image.fromarray(numpy.asarray(pixels, dtype=numpy.uint8)).save(buffer, "PNG")
        data, said = base64.b64encode(buffer.getvalue()).decode(), html.escape(caption, quote=True)
        source = f"data:image/png;base64,{data}"
        cells.append(f"<figure><img src='{source}' alt='{said}'><figcaption>{said}</figcaption></figure>")
    return Markup(
        f"<div class='pictures' role='group' aria-label='{html.escape(title, quote=True)}'>{''.join(cells)}</div>"
    )


def sounds(samples: Sequence[Any], rate: int, captions: Sequence[str], title: str) -> Markup:
    """Sounds to be played, each with its caption; samples are arrays or tensors [n] between -1 and 1, `rate` a second.

    A sound that is louder than that is made softer as a whole, not cut.
    """
    numpy = needs("numpy")
    if len(samples) != len(captions):
        raise InputError("captions", len(captions), f"must be as many as the sounds, {len(samples)}")
    cells = []
    for values, caption in zip(samples, captions, strict=True):
        array = numpy.asarray(values, dtype=numpy.float64)
        array = 32767 * array / max(1.0, float(numpy.abs(array).max(initial=0.0)))
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes(array.round().astype("<i2").tobytes())
        data, said = base64.b64encode(buffer.getvalue()).decode(), html.escape(caption, quote=True)
        source = f"data:audio/wav;base64,{data}"
        player = f"<audio controls preload='none' aria-label='{said}' src='{source}'></audio>"
        cells.append(f"<figure>{player}<figcaption>{said}</figcaption></figure>")
    return Markup(
        f"<div class='sounds' role='group' aria-label='{html.escape(title, quote=True)}'>{''.join(cells)}</div>"
    )


def needs(module: str) -> ModuleType:
    """What only pages need, imported; where it is missing, the error says what to install."""
    return need(module, "deploy", "to make pages")


def _row(cells: Sequence[Any], numeric: Sequence[bool]) -> str:
    first, *others = (("" if c is None else html.escape(c if isinstance(c, str) else f"{c:,}")) for c in cells)
    rest = "".join(f"<td{_numeric(n)}>{c}</td>" for c, n in zip(others, numeric[1:], strict=True))
    return f"<tr><th scope='row'>{first}</th>{rest}</tr>"


def _numeric(is_number: bool) -> str:
    return " class='number'" if is_number else ""


def _is_number(cell: Any) -> bool:
    """Numbers, and text that begins as one does ("1.25 ms", "−40 %")."""
    return isinstance(cell, (int, float)) or bool(re.match(r"^[-+−]?[\d.,]+( ?[%×]| [A-Za-zµ/]+)?$", str(cell)))


def _resource(name: str) -> str:
    return resources.files("separable.report").joinpath(name).read_text(encoding="utf-8")
