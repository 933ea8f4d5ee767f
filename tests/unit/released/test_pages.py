"""Hosts that ask back before they send a large file, and those that only send pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.misbehaving_server import Handler, Misdeed, Server, break_off, serving

from foreact.errors import UserError
from foreact.released.download import fetch
from foreact.released.pages import confirmed_address, page_title
from foreact.released.transfer import Client

CONTENT = np.random.default_rng(0).bytes(200_000)
ASKED = "download?id=ABC&export=download"
CONFIRMED = "confirmed/download?id=ABC&export=download&confirm=t&uuid=1-2"
FORM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form action="/search"><input name="q" value="x"></form>
<form id="download-form" action="/confirmed/download" method="get"><input type="submit" value="Go">
<input type="hidden" name="id" value="ABC"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="1-2"></form>
<form><input name="feedback" value="y"></form></body></html>"""
LINK = '<a id="uc-download-link" href="/confirmed/download?id=ABC&amp;confirm=t">Download</a>'
QUOTA = "<html><title>Google Drive - Quota\n exceeded</title><p>Too many users</p></html>"


def page(text: str) -> Misdeed:
    def answer(handler: Handler, content: bytes) -> bool:
        body = text.encode()
        kind = {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(body))}
        handler.answer(200, kind, body)
        return True

    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    with serving() as state:
        state.head_works = False
        yield state


def get(server: Server, out: Path) -> list[Path]:
    return fetch(
        [["pusht.ckpt"]],
        out,
        base_url="https://example.invalid",
        addresses={"pusht.ckpt": f"{server.url}/{ASKED}"},
        client=Client(timeout=5.0, sleep=lambda seconds: None),
        progress=False,
    )


def test_a_page_that_asks_for_confirmation_is_answered(server: Server, tmp_path: Path) -> None:
    """As Google Drive does: the length, the file, and what was missing of it come behind a form."""
    server.always[ASKED] = page(FORM)
    server.files[CONFIRMED] = CONTENT
    server.misdeeds[CONFIRMED] = [lambda handler, content: False, break_off(50_000)]
    (path,) = get(server, tmp_path)
    assert path == tmp_path / "pusht.ckpt"
    assert path.read_bytes() == CONTENT
    assert server.gets(CONFIRMED)[-1] == "bytes=50000-"


def test_a_page_without_a_file_is_said(server: Server, tmp_path: Path) -> None:
    server.always[ASKED] = page(QUOTA)
    with pytest.raises(
        UserError,
        match=r"answers with a page \('Google Drive - Quota exceeded'\), not with the file",
    ):
        get(server, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    server.always[ASKED] = page(FORM)
    server.always[CONFIRMED] = page(FORM)  # for ever
    with pytest.raises(UserError, match="answers with a page"):
        get(server, tmp_path / "out")


def test_older_pages_have_a_link() -> None:
    assert confirmed_address(LINK.encode(), "https://a.example/uc?id=ABC") == (
        "https://a.example/confirmed/download?id=ABC&confirm=t"
    )
    assert confirmed_address(QUOTA.encode(), "https://a.example/uc") is None
    assert page_title(b"no title") == ""
