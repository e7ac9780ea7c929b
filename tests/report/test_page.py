"""A page is whole, safe, complete in itself, and readable by those who cannot see it."""

import base64
import io
import re
import sys
import wave
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from separable.errors import InputError
from separable.report import Section, figure, pictures, plots, sounds, table, write_page

VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Collects what a page refers to and checks that its elements nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def drawing():
    fig = Figure(figsize=(4, 3))
    fig.subplots().plot([0, 1], [0, 1], color=plots.INK)
    return fig


def full_page(file):
    sections = [
        Section("Numbers", ["A paragraph with <tags> & more.", table(["layer", "ms"], [["a", 1.5]], "Times")]),
        Section("Drawings", [figure(drawing(), "One", "a line"), figure(drawing(), "Two", "a line")]),
        Section("Pictures", [pictures([[[0, 255], [255, 0]]], ["a 'cat' & dog"], "examples")]),
        Section("Sounds", [sounds([[0.0, 0.5, -0.5]], 8000, ["a 'beep' & more"], "examples")]),
    ]
    return write_page(file, "A <title>", sections, subtitle="quietly", facts=[("1.5 ms", "time")])


def test_a_page_loads_nothing_and_its_elements_nest(tmp_path):
    text = full_page(tmp_path / "page.html").read_text()
    page = Reader(text)
    assert page.references
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", text))
    assert "@import" not in text
    assert "script" not in {tag for tag, _ in page.tags}
    assert len(page.ids) == len(set(page.ids))


def test_text_is_escaped_and_markup_is_not(tmp_path):
    text = full_page(tmp_path / "page.html").read_text()
    assert "<p>A paragraph with &lt;tags&gt; &amp; more.</p>" in text
    assert "<h1>A &lt;title&gt;</h1>" in text
    assert "<table>" in text
    assert "alt='a &#x27;cat&#x27; &amp; dog'" in text


def test_figures_have_a_title_and_a_description_and_follow_the_pages_colours():
    svg = figure(drawing(), "Rise & fall", "one line from corner to corner")
    assert re.search(r'<svg [^>]*role="img" aria-label="Rise &amp; fall"[^>]*><title>Rise &amp; fall</title>', svg)
    assert "<desc>one line from corner to corner</desc>" in svg
    assert "var(--ink)" in svg
    assert not any(colour in svg for colour in plots.THEME)
    assert figure(drawing(), "Rise & fall", "one line from corner to corner") == svg  # the same from run to run


def test_a_failed_write_leaves_the_old_page_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    file.write_text("old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(InputError, match=r"file = .*No space left on device"):
        write_page(file, "New", [])
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_no_page(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        write_page(tmp_path, "New", [])


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_with_what_to_install(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"package = {package}: .*pip install 'separable\[deploy\]'"):
        write_page(tmp_path / "page.html", "New", [Section("One", [figure(Figure(), "a", "b")])])


def test_numbers_stand_right_and_words_left():
    html = table(
        ["layer", "count", "time", "note"], [["a", 12345, "1.5 ms", "x"], ["b", None, "−40 %", "2 layers of 3"]]
    )
    assert "<th scope='col' class='number'>count</th>" in html
    assert "<td class='number'>12,345</td>" in html
    assert "<td class='number'></td>" in html
    assert "<td class='number'>1.5 ms</td>" in html
    assert "<td>2 layers of 3</td>" in html
    assert "<tfoot>" not in html
    assert "<tfoot><tr><th scope='row'>sum" in table(["layer", "n"], [["a", 1]], total=["sum", 1])


def test_the_head_of_the_row_headings_stands_left_as_they_do():
    html = table(["batch", "ms"], [[1, 1.5], [3, 2.5]])
    assert "<th scope='col'>batch</th><th scope='col' class='number'>ms</th>" in html


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(InputError, match="must have 2 cells"):
        table(["a", "b"], [["x"]])


def test_each_picture_needs_a_caption():
    with pytest.raises(InputError, match="as many as the images, 1"):
        pictures([[[0]]], [], "examples")


def test_a_sound_on_the_page_is_a_wav_file_of_its_samples_never_cut():
    markup = sounds([[0.0, 0.5, -1.0], [0.0, 4.0, -2.0]], 8000, ["soft", "too loud"], "examples")
    files = [base64.b64decode(data) for data in re.findall(r"data:audio/wav;base64,([^']*)", markup)]
    found = []
    for data in files:
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
            found.append(list(memoryview(file.readframes(9)).cast("h")))
    assert found == [[0, 16384, -32767], [0, 32767, -16384]]
    with pytest.raises(InputError, match="as many as the sounds, 1"):
        sounds([[0.0]], 8000, [], "examples")
