"""Text, tables and folders as editors, spreadsheets and Macs leave them."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreact.data.formats.frames import read_names
from foreact.files import listed, parse_json, parse_table, read_text


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfa\r\nb\r\n",
        "\ufeffa\nb\n".encode("utf-16-le"),
        "\ufeffa\r\nb\r\n".encode("utf-16-be"),
        b"a\rb\r",
    ],
)
def test_marks_and_line_ends_are_no_part_of_a_text(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.txt").write_bytes(data)
    assert read_text(tmp_path / "t.txt") == "a\nb\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.txt", "\ufeffa\r\n\r\n b c ,\r\n"),
        ("n.json", '\ufeff["a", "b c",]\r\n'),
        ("n.JSON", '[\n"a",\n"b c",\n]'),
        ("n.txt", '["a", "b c"]'),
        ("n.csv", "a,\nb c,\n,\n"),
    ],
)
def test_lists_of_names_come_from_any_editor(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_names(tmp_path / name) == ["a", "b c"]


def test_commas_inside_texts_stay() -> None:
    assert parse_json('{"a": "x,]", "b": [1, 2, ],}') == {"a": "x,]", "b": [1, 2]}
    with pytest.raises(ValueError, match="Expecting"):
        parse_json("[1,,2]")


@pytest.mark.parametrize(
    "text",
    [
        'id\ttitle\nx\ta, "b"; c\n',
        'id\ttitle\t\n\n x \ta, "b"; c\t\n\t\t\n',
        'id,title,,\nx,"a, ""b""; c",,\n,,,\n',
        'id;title\nx;"a, ""b""; c"\n',
    ],
)
def test_tables_come_from_any_spreadsheet(text: str) -> None:
    assert parse_table(text) == [{"id": "x", "title": 'a, "b"; c'}]


def test_folders_are_listed_without_what_systems_leave(tmp_path: Path) -> None:
    for name in ("10.mp4", "2.MP4", "._2.mp4", ".DS_Store", "notes.txt", "__MACOSX/1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in listed(tmp_path, endings=[".mp4"])] == ["2.MP4", "10.mp4"]
    assert [p.name for p in listed(tmp_path, "**/*")] == ["2.MP4", "10.mp4", "notes.txt"]
    assert listed(tmp_path / "nowhere") == []
