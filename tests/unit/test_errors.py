"""Sentences for people: printable, of bearable length."""

from __future__ import annotations

from foreact.errors import LONGEST_WORD, in_short, on_one_line


def test_words_that_a_damaged_file_holds_are_cut_and_paths_are_not() -> None:
    path = "/".join(["folder"] * 60)
    assert len(path) < LONGEST_WORD
    assert on_one_line(f"{path} has the family\n'{'x' * 5000}'.") == (
        f"{path} has the family '{'x' * 96}..."
    )
    assert on_one_line("a\tb\x1b[0m") == "a b [0m"
    assert on_one_line("a" + "\0" * 5000 + "b") == "a b"
    assert len(in_short(ValueError("y" * 10_000))) < 200
