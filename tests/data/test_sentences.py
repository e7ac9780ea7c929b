"""The reader of labelled sentences: four formats, encodings, and every bad line named, counted, skipped or refused."""

import gzip
import random

import pytest
from tests import real_data

from separable import progress
from separable.data import conll, sentences
from separable.errors import InputError


def written(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return path


def pairs(corpus):
    return [(s.text, s.label) for s in corpus.sentences]


WANTED = [("Profit rose, they said.", "positive"), ("净利润下降", "negative")]
FILES = {
    "a.csv": 'label,text\r\npositive,"Profit rose, they said."\r\nnegative,净利润下降\r\n',
    "a.tsv": "text\tnote\tlabel\nProfit rose, they said.\t1\tpositive\n净利润下降\t2\tnegative\n",
    "a.jsonl": '{"text": "Profit rose, they said.", "label": "positive"}\n\n'
    '{"label": "negative", "text": "净利润下降"}\n',
    "a.txt": "Profit rose, they said.@positive\r\n净利润下降@negative\r\n",
}


@pytest.mark.parametrize("name", FILES)
def test_each_format_gives_the_same_sentences(tmp_path, name):
    plain = written(tmp_path / name, FILES[name])
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(FILES[name].encode()))
    marked = written(tmp_path / f"marked-{name}", FILES[name], "utf-8-sig")
    for path in (plain, packed, marked):
        assert pairs(sentences.read(path, strict=True)) == WANTED


def test_only_the_last_at_sign_parts_text_from_label(tmp_path):
    path = written(tmp_path / "a.txt", "write to us@home.fi @neutral\n")
    assert pairs(sentences.read(path)) == [("write to us@home.fi", "neutral")]


def test_columns_are_found_by_usual_names_or_named(tmp_path):
    path = written(tmp_path / "a.csv", "utterance,comment,intent\nhello,x,greet\n")
    assert pairs(sentences.read(path)) == [("hello", "greet")]
    assert pairs(sentences.read(path, text_column="comment", label_column="intent")) == [("x", "greet")]
    other = written(tmp_path / "b.csv", "a,b\nhello,greet\n")
    with pytest.raises(InputError, match="has the columns a, b; name one of them"):
        sentences.read(other)
    with pytest.raises(InputError, match="label_column = c"):
        sentences.read(other, text_column="a", label_column="c")


BAD = {
    "a.csv": ('text,label\n"two\nlines",x\n,x\nb,\nc,x,y\nd,x\n', [4, 5, 6], ["is empty", "no label", "3 fields"]),
    "a.tsv": ('text\tlabel\n"a\tx\nb\n \tx\nd\tx\n', [3, 4], ["1 fields where", "is empty"]),
    "a.jsonl": (
        '{"text": "a", "label": "x"}\n[1]\n{"text": 5, "label": "x"}\n{"text": "", "label": "x"}\n{oops\n'
        '{"text": "d", "label": 7}\n',
        [2, 3, 4, 5],
        ["one JSON object", '"text" must be text', "is empty", "one JSON object"],
    ),
    "a.txt": ("a@x\nno label here\n@x\n\nb@\nd\0@x\nd@x\n", [2, 3, 5, 6], ["no @", "is empty", "no label", "NUL"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_named_counted_and_skipped_or_refused(tmp_path, name):
    content, lines, reasons = BAD[name]
    corpus = sentences.read(written(tmp_path / name, content))
    assert len(corpus.sentences) == 2
    assert [bad.line for bad in corpus.skipped] == lines
    for bad, reason in zip(corpus.skipped, reasons, strict=True):
        assert reason in str(bad)
        assert str(bad).startswith(f"line {bad.line}: ")
    with pytest.raises(InputError, match=f"line {lines[0]}: "):
        sentences.read(tmp_path / name, strict=True)


def test_a_quote_never_closed_loses_nothing_before_it_and_is_named(tmp_path):
    corpus = sentences.read(written(tmp_path / "a.csv", 'text,label\na,x\n"b,x\nc,x\n'))
    assert pairs(corpus) == [("a", "x")]
    assert [bad.line for bad in corpus.skipped] == [3]


def test_a_class_whose_every_line_is_bad_is_told(tmp_path):
    corpus = sentences.read(written(tmp_path / "a.txt", "a@x\n@y\n @y\n@x\n"))
    assert corpus.empty_classes() == {"y": 2}


ENCODED = [
    ("utf-8", "latin-1", "Ääni nousi@x\n", "line 1 is not utf-8 .byte 0xc4.; name the file's encoding, e.g. latin-1"),
    ("utf-8", "gb18030", "a@x\n净利润下降@y\n", "line 2 is not utf-8 .*e.g. gb18030"),
    ("utf-8", "gb18030", "Profit of the year 2009 rose by 12 percent@x\n公司净利润@y\n", "line 2 .*e.g. gb18030"),
    ("utf-8", "latin-1", "Déjà élevé, élan à l'été@x\n", "line 1 .*e.g. latin-1"),
    ("utf-8", "utf-16", "净利@x\n", "begins with the mark of utf-16"),
    ("gb18030", "latin-1", "hyvä tulos@x\n", "line 1 is not gb18030 .*e.g. latin-1"),
    ("latin-1", "utf-8", "Ääni@x\n", "is UTF-8 and would be misread as latin-1"),
]


@pytest.mark.parametrize(("said", "true", "content", "sentence"), ENCODED)
def test_text_in_another_encoding_is_refused_and_read_with_the_right_one(tmp_path, said, true, content, sentence):
    path = written(tmp_path / "a.txt", content, true)
    with pytest.raises(InputError, match=sentence):
        sentences.read(path, encoding=said)
    assert sentences.read(path, encoding=true).texts[-1] in content


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.txt", b"", "holds no labelled sentence"),
        ("a.txt", b"only text\n", "the first problem: line 1: no @"),
        ("a.csv.gz", b"not packed", "cannot be unpacked"),
        ("a.csv.xz", b"not packed", "cannot be unpacked"),
    ],
)
def test_a_file_without_sentences_is_one_clear_sentence(tmp_path, name, content, rule):
    with pytest.raises(InputError, match=rule):
        sentences.read(written(tmp_path / name, content))


def test_missing_files_and_unknown_encodings_are_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        sentences.read(tmp_path / "none.csv")
    with pytest.raises(InputError, match="encoding = klingon: is no known encoding"):
        sentences.read(written(tmp_path / "a.txt", "a@x\n"), encoding="klingon")


@pytest.mark.data
def test_reads_the_real_files_whole():
    bank = real_data.folder("phrasebank") / "Sentences_75Agree.txt"
    corpus = sentences.read(bank, strict=True, encoding="latin-1")
    assert len(corpus.sentences) == 3453
    assert {label: corpus.labels.count(label) for label in corpus.classes()} == {
        "negative": 420,
        "neutral": 2146,
        "positive": 887,
    }
    headlines = sentences.read(real_data.folder("zh_finance") / "test_data.csv", strict=True)
    assert headlines.labels.count("1") == headlines.labels.count("0") == 1200
    assert len(sentences.read(real_data.folder("banking77") / "train.csv.xz", strict=True).classes()) == 77


def test_bytes_that_are_no_text_get_no_advice_on_their_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes(random.Random(1).randbytes(400))
    with pytest.raises(InputError, match=r"it does not look like text$"):
        sentences.read(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("reader", "name", "good", "bad"),
    [
        (sentences, "a.jsonl", '{"text": "a", "label": "x"}\n', '{"text": "a"}\n'),
        (conll, "a.conll", "Ada B-PER\n\n", "Ada\n\n"),
    ],
)
def test_the_first_bad_lines_and_their_number_are_told(tmp_path, capsys, reader, name, good, bad):
    path = written(tmp_path / name, good * 3 + bad * 7)
    with progress.shown():
        assert len(reader.read(path).skipped) == 7
    told = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"skipped {name} line ") for line in told] == [True] * 5 + [False]
    assert told[-1] == f"7 of 10 sentences of {name} could not be used and were skipped"
    reader.read(path)
    assert not capsys.readouterr().err
