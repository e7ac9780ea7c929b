"""Plots show every value they were given, in the page's colours, and refuse what they cannot draw."""

import io
import re

import pytest

from separable.errors import InputError
from separable.report import plots

POINTS = [
    {"name": "conv1", "group": "dense", "intensity": 60.0, "gflops": 80.0},
    {"name": "block<1>", "group": "depthwise", "intensity": 2.0, "gflops": 4.0},
    {"name": "idle", "group": "dense", "intensity": 0.0, "gflops": 0.0},
]


def titles(svg):
    return re.findall(r"<title>(.*?)</title>", svg)


def test_roofline_names_each_layer_and_both_roofs():
    svg = plots.roofline(POINTS, 100.0, 10.0, 50.0)
    assert titles(svg)[1:] == [
        "conv1 (dense): 80.0 GFLOP/s at 60.0 FLOPs a byte",
        "block&lt;1&gt; (depthwise): 4.0 GFLOP/s at 2.0 FLOPs a byte",
    ]
    for said in ("arithmetic: 100 GFLOP/s", "roof of memory, 10 GB/s", "roof of caches, 50 GB/s", "dense", "depthwise"):
        assert said in svg
    assert "roof of caches" not in plots.roofline(POINTS, 100.0, 10.0)


def test_bars_show_each_value_with_its_unit():
    svg = plots.bars(["a", "b"], [1.0, 0.25], unit="ms", title="Time", marks=[0.5, 0.2], mark_name="the roof")
    assert titles(svg) == ["Time", "a: 1 ms", "b: 0.25 ms"]
    assert "the roof" in svg
    assert "the longest is a with 1 ms" in svg


def test_bars_draw_a_span_beside_its_value_and_make_room_for_it(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "figure", lambda fig, *_: drawn.append(fig))
    plots.bars(["a", "b"], [1.0, 0.25], unit="ms", title="Time", spans=[(0.5, 4.0), (0.2, 0.3)])
    (axes,) = drawn[0].axes
    assert [tuple(line.get_xdata()) for line in axes.lines] == [(0.5, 4.0), (0.2, 0.3)]
    assert axes.get_xlim()[1] > 4.0
    with pytest.raises(InputError, match="spans"):
        plots.bars(["a", "b"], [1.0, 0.25], unit="ms", title="Time", spans=[(0.5, 4.0)])


def test_intervals_show_each_value_and_where_it_lies():
    labels, values, spans = ["cat", "d<o>g", "none"], [5.0, -2.0, 1.0], [(1.0, 9.5), (-4.0, 0.5), None]
    svg = plots.intervals(
        labels, values, spans, unit="points", title="Loss", groups=["sure", "", ""], kinds=["", "sure"]
    )
    assert titles(svg) == ["Loss", "cat: 5 (1 to 9.5) points", "d&lt;o&gt;g: -2 (-4 to 0.5) points", "none: 1 points"]
    assert "the largest is cat with 5 points" in svg
    assert "sure</text>" in svg


def test_intervals_leave_room_for_negative_values_and_draw_bars_from_zero(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "figure", lambda fig, *_: drawn.append(fig))
    plots.intervals(["a", "b"], [-3.0, 2.0], [(-5.0, -1.0), (1.0, 4.0)], unit="points", title="t", bars=True)
    axes = drawn[0].axes[0]
    low, high = axes.get_xlim()
    assert low < -5
    assert high > 4
    assert sorted((bar.get_x(), bar.get_width()) for bar in axes.patches) == [(0, -3.0), (0, 2.0)]


def test_curves_say_where_they_end():
    svg = plots.curves({"train": ([1, 2, 3], [0.9, 0.5, 0.25])}, x="epoch", y="loss", title="Loss")
    assert "<desc>loss over epoch: train ends at 0.25.</desc>" in svg


def test_confusion_counts_the_diagonal_and_shows_each_count():
    svg = plots.confusion([[41, 3], [0, 52]], ["cat", "dog"])
    assert "93 of 96 examples of 2 classes lie on the diagonal" in svg
    assert all(f">{n}</text>" in svg for n in (41, 3, 52))


def test_confusion_of_long_names_still_has_room_for_its_counts(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "figure", lambda fig, *_: (fig.savefig(io.BytesIO()), drawn.append(fig)))
    for size in (2, 3, 12, 30):
        plots.confusion(
            [[int(i == j) for j in range(size)] for i in range(size)], [f"{i} {'word ' * 30}{i}" for i in range(size)]
        )
    for fig in drawn:
        box = fig.axes[0].get_window_extent()
        assert box.width / fig.dpi > 0.25 * fig.get_size_inches()[0]
        names = [label.get_text() for label in fig.axes[0].get_yticklabels()]
        assert len(set(names)) == len(names)


def test_no_stand_in_colour_reaches_a_page():
    every = (
        plots.roofline(POINTS, 100.0, 10.0, 50.0),
        plots.bars([f"{i}" for i in range(8)], range(1, 9), unit="ms", title="t", groups=list("abcdefgh")),
        plots.curves({str(i): ([0, 1], [i, i]) for i in range(8)}, x="x", y="y", title="t"),
        plots.confusion([[1]], ["a"]),
        plots.intervals(["a"], [1.0], [(0.0, 2.0)], unit="ms", title="t", bars=True),
    )
    for svg in every:
        assert "#0101" not in svg
        assert "var(--s1)" in svg


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: plots.roofline([], 1.0, 1.0), "points = "),
        (lambda: plots.roofline(POINTS[2:], 1.0, 1.0), "points = "),
        (lambda: plots.bars([], [], unit="ms", title="t"), "values = "),
        (lambda: plots.bars(["a"], [1, 2], unit="ms", title="t"), "as many as the labels, 1"),
        (lambda: plots.bars(["a"], [1], unit="ms", title="t", marks=[1, 2]), "as many as the labels, 1"),
        (lambda: plots.intervals([], [], [], unit="ms", title="t"), "values = "),
        (lambda: plots.intervals(["a"], [1], [], unit="ms", title="t"), "as many as the labels, 1"),
        (lambda: plots.curves({"a": ([1], [])}, x="x", y="y", title="t"), "series = a"),
        (lambda: plots.confusion([[1, 2]], ["a", "b"]), "must be 2 x 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, said):
    with pytest.raises(InputError, match=said):
        draw()
