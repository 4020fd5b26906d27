"""Tables as BIDS, pandas and Excel write them; every fault is told with file and line."""

from pathlib import Path

import pandas as pd
import pytest

from mindllm.utils.errors import InputError
from mindllm.utils.tables import read_table, require_values


def table(tmp_path: Path, content: str | bytes, name: str = "t.tsv") -> pd.DataFrame:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(file, "the table", ("stimulus", "caption"))


@pytest.mark.parametrize(
    "caption",
    [
        '"Hi from here', 'a 12" pizza', '"quoted"', "None", "null", "NA", "N/A", "nan", "NaN",
        "NULL", "<NA>", "#N/A", "-", "1.0", "007", "1e5", "True", "a, b", "a\u2028b", "a\x85b",
        "a\x0bb", "it's", "東京", "e\u0301",
    ],
)  # fmt: skip
def test_a_tsv_has_no_quoting_and_only_empty_and_na_are_missing(
    tmp_path: Path, caption: str
) -> None:
    rows = table(tmp_path, f"stimulus\tcaption\nimg0\t{caption}\nimg1\ta cat\nimg2\t\nimg3\tn/a\n")
    assert rows["stimulus"].tolist() == ["img0", "img1", "img2", "img3"]
    assert rows["caption"].tolist() == [caption, "a cat", None, None]
    assert rows.index.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfstimulus\tcaption\n1 \ta dog\n\n 2\ta cat\t\n".replace(b"cat\t", b"cat"),
        b"stimulus\tcaption\r\n1\ta dog \r\n2\ta cat\r\n\t\r\n",
        b"stimulus\tcaption\r1\ta dog\r2\ta cat",
    ],
    ids=["mark and blanks", "Windows", "old Mac"],
)
def test_marks_blanks_and_line_breaks(tmp_path: Path, content: bytes) -> None:
    rows = table(tmp_path, content)
    assert rows.to_dict("list") == {"stimulus": ["1", "2"], "caption": ["a dog", "a cat"]}


def test_a_csv_has_quoting(tmp_path: Path) -> None:
    written = pd.DataFrame({"stimulus": ["007", "b"], "caption": ['a "big", dog\nruns', "NA"]})
    written.to_csv(tmp_path / "t.csv", index=False, encoding="utf-8-sig")
    rows = read_table(tmp_path / "t.csv", "the table")
    assert rows.to_dict("list") == written.to_dict("list")


def test_whole_numbers(tmp_path: Path) -> None:
    text = "volume\tstimulus\tcaption\trepetition\tseconds\n0.0\ta\tx\tn/a\t1.5\n1\tb\ty\t2\tn/a\n"
    rows = table(tmp_path, text)
    assert rows["volume"].tolist() == [0, 1]
    assert rows["volume"].dtype == "int64"
    assert rows["repetition"].astype(object).tolist() == [pd.NA, 2]
    assert rows["seconds"].iloc[0] == 1.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("volume\tstimulus\tcaption\n0\ta\tx\n0.5\tb\ty\n", "line 3: the volume '0.5' is no whole"),
        ("volume\tstimulus\tcaption\nNA\ta\tx\n", "line 2: the volume 'NA' is no whole number"),
        ("volume\tstimulus\tcaption\n1e400\ta\tx\n", "line 2: the volume '1e400' is no whole"),
        ("stimulus\tcaption\na\n", "line 2 has 1 cells; the header has 2"),
        ("stimulus\tcaption\na\tb\tc\n", "line 2 has 3 cells; the header has 2"),
        ("stimulus\tcaption\tcaption\na\tb\tc\n", "has the column 'caption' twice"),
        ("stimulus\ttext\na\tb\n", r"has the columns \['stimulus', 'text'\]; expected `stimulus`"),
        (b"", r"has the columns \[\]"),
        ("stimulus\tcaption\n".encode("utf-16"), "is no text in UTF-8"),
        (b"stimulus\tcaption\na\t\xed\xa0\xbd\n", "is no text in UTF-8"),
        (b"stimulus\tcaption\na\t\0\n", "holds the character NUL"),
    ],
)
def test_bad_tables(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        table(tmp_path, content)


def test_an_unbalanced_quote_in_a_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.csv, line 3 is no line .* quotation mark may lack"):
        table(tmp_path, 'stimulus,caption\na,"x\nb,y\n', "t.csv")


def test_missing_values_are_refused_by_their_line(tmp_path: Path) -> None:
    rows = table(tmp_path, "stimulus\tcaption\tsession\na\tx\t1\n\nb\ty\tn/a\n")
    with pytest.raises(InputError, match=r"t\.tsv, line 4 has no session: .* in 1 of 2 lines"):
        require_values(rows, ("stimulus", "run", "session"), tmp_path / "t.tsv")


def test_cells_in_quotation_marks_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table(tmp_path, 'stimulus\tcaption\na\t"he said ""hi"""\nb\tsay "hi" to "me"\n')
    assert "1 lines have cells in quotation marks, which are kept" in caplog.text
