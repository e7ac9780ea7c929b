import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import real_data

from separable.data import conll, entities
from separable.errors import InputError

IOB1 = """-DOCSTART- -X- O O

U.N. NNP I-NP I-ORG
Iraq NNP B-NP B-ORG
. . O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""


def write(folder, text, name="a.conll", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_reads_iob1_columns_into_bioes(tmp_path):
    corpus = conll.read(write(tmp_path, IOB1))
    assert [s.tags for s in corpus.sentences] == [["S-ORG", "S-ORG", "O"], ["B-PER", "E-PER"]]
    assert corpus.sentences[1].words == ["Peter", "Blackburn"]
    assert [(s.document, s.line) for s in corpus.sentences] == [(1, 3), (1, 7)]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-A", "I-A", "B-A"], ["B-A", "E-A", "S-A"]),  # IOB2
        (["B-A", "E-A", "S-A"], ["B-A", "E-A", "S-A"]),  # BIOES
        (["B-A", "M-A", "E-A"], ["B-A", "I-A", "E-A"]),  # BMES
        (["I-A", "I-A", "B-A"], ["B-A", "E-A", "S-A"]),  # IOB1
        (["I-A", "I-B", "O"], ["S-A", "S-B", "O"]),
    ],
)
def test_every_scheme_means_the_same_spans(tmp_path, tags, expected):
    text = "".join(f"w\t{tag}\n" for tag in tags)
    assert conll.read(write(tmp_path, text)).sentences[0].tags == expected


@given(st.lists(st.tuples(st.sampled_from(["", "A", "B"]), st.integers(1, 4)), min_size=1))
def test_spans_survive_each_scheme(pieces):
    spans, at = [], 0
    for kind, length in pieces:
        spans += [(kind, at, at + length)] if kind else []
        at += length
    assert entities.spans(entities.iob2(spans, at)) == spans
    assert entities.spans(entities.bioes(spans, at)) == spans


def test_a_bad_line_costs_its_sentence_and_is_named(tmp_path):
    corpus = conll.read(write(tmp_path, "a O\nb\n\nc O\nd B-\n\ne S-X\n"))
    assert [s.words for s in corpus.sentences] == [["e"]]
    assert len(corpus.skipped) == 2
    assert "line 2: one column, 'b'" in corpus.skipped[0]
    assert "line 5: 'B-' is no tag" in corpus.skipped[1]


def test_strict_refuses_a_bad_line_by_its_number(tmp_path):
    with pytest.raises(InputError, match="line 2: one column"):
        conll.read(write(tmp_path, "a O\nb\n\nc O\n"), strict=True)


def test_wrong_encoding_is_named_with_its_line(tmp_path):
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        conll.read(write(tmp_path, "a O\nMünchen S-LOC\n", encoding="latin-1"))


def test_a_byte_order_mark_and_windows_lines_are_no_part_of_words(tmp_path):
    corpus = conll.read(write(tmp_path, "a O\r\nb S-X\r\n\r\n", encoding="utf-8-sig"))
    assert corpus.sentences[0].words == ["a", "b"]
    assert corpus.sentences[0].tags == ["O", "S-X"]


@pytest.mark.parametrize("text", ["", "\n\n\n", "-DOCSTART- -X- O O\n\n"])
def test_a_file_without_sentences_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="holds no tagged sentence"):
        conll.read(write(tmp_path, text))


def test_a_missing_file_and_a_damaged_archive_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        conll.read(tmp_path / "none.conll")
    packed = tmp_path / "a.conll.xz"
    packed.write_bytes(lzma.compress(IOB1.encode())[:-20])
    with pytest.raises(InputError, match="cannot be unpacked"):
        conll.read(packed)


def test_reads_json_lines_and_names_bad_ones(tmp_path):
    rows = [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"], "document": "x"},
        {"tokens": ["Paris"], "tags": ["B-LOC"], "document": "y"},
        {"tokens": ["a", "b"], "tags": ["O"]},
        {"tokens": [], "tags": []},
        {"words": ["a"]},
    ]
    corpus = conll.read(write(tmp_path, "\n".join(json.dumps(row) for row in rows) + "\n{", "a.jsonl"))
    assert [s.tags for s in corpus.sentences] == [["S-ORG", "O"], ["S-LOC"]]
    assert [s.document for s in corpus.sentences] == [0, 1]
    assert [line.split(":")[0] for line in corpus.skipped] == ["line 3", "line 4", "line 5", "line 6"]


def test_reads_chinese_characters_and_keeps_a_wide_space(tmp_path):
    corpus = conll.read(write(tmp_path, "高 B-NAME\n勇 E-NAME\n\u3000 O\n：\tO\n"))
    assert corpus.sentences[0].words == ["高", "勇", "\u3000", "："]
    assert corpus.sentences[0].tags == ["B-NAME", "E-NAME", "O", "O"]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sentences", "tokens"),
    [("eng.train.xz", 14041, 203621), ("eng.testa", 3250, 51362), ("eng.testb", 3453, 46435)],
)
def test_reads_conll_2003_whole(name, sentences, tokens):
    corpus = conll.read(real_data.folder("conll2003") / name, strict=True)
    assert len(corpus.sentences) == sentences
    assert sum(len(s.words) for s in corpus.sentences) == tokens
    assert corpus.kinds() == ["LOC", "MISC", "ORG", "PER"]


@pytest.mark.data
@pytest.mark.parametrize(("name", "sentences"), [("train", 3821), ("dev", 463), ("test", 477)])
def test_reads_chinese_resumes_whole(name, sentences):
    corpus = conll.read(real_data.folder("zh_ner") / "resume" / f"{name}.char.bmes", strict=True)
    assert len(corpus.sentences) == sentences
    assert len(corpus.kinds()) == 8
