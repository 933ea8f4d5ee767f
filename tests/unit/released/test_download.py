"""Downloads from a server that breaks off, lies about sizes and serves wrong parts."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.misbehaving_server import (
    Handler,
    Server,
    announce,
    break_off,
    fail,
    ignore_ranges,
    serving,
)

from foreact.checkpoints.manifest import MANIFEST, FileFacts, parse_checksums, read_manifest
from foreact.errors import UserError
from foreact.released.download import fetch, read_checksums
from foreact.released.transfer import Client

CONTENT = np.random.default_rng(0).bytes(300_000)
NAME = "model.pt"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        state.files[NAME] = CONTENT
        yield state


class Waits(list[float]):
    """Stands in for sleep and remembers how long it was told to."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def get(
    server: Server,
    out: Path,
    *names: str,
    known: dict[str, FileFacts] | None = None,
    waits: Any = None,
    **client: Any,
) -> list[Path]:
    patient = Client(timeout=5.0, sleep=Waits() if waits is None else waits, **client)
    return fetch(
        [names or (NAME,)], out, base_url=server.url, known=known, client=patient, progress=False
    )


def whole(out: Path, content: bytes = CONTENT, name: str = NAME) -> None:
    """The file is there and recorded, and nothing else is left."""
    assert (out / name).read_bytes() == content
    facts = read_manifest(out)[name]
    assert (facts.sha256, facts.bytes) == (sha256(content), len(content))
    assert facts.url is not None
    assert not [p for p in out.iterdir() if p.name.endswith((".part", ".part.json", ".tmp"))]


def refused(server: Server, out: Path, message: str, **options: Any) -> None:
    """One sentence, and nothing under the final name."""
    with pytest.raises(UserError, match=message) as error:
        get(server, out, **options)
    assert "\n" not in str(error.value)
    assert not (out / NAME).exists()
    assert not (out / MANIFEST).exists()


# --- servers that behave --------------------------------------------------------------------------


def test_a_file(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path / "new" / "folder") == [tmp_path / "new" / "folder" / NAME]
    whole(tmp_path / "new" / "folder")


def test_all_parts_of_a_set(server: Server, tmp_path: Path) -> None:
    server.files |= {f"m.tar.gz.part_a{c}": CONTENT[i : i + 1000] for i, c in enumerate("abc")}
    names = [f"m.tar.gz.part_a{c}" for c in "abc"]
    assert [p.name for p in get(server, tmp_path, *names)] == names
    for i, name in enumerate(names):
        whole(tmp_path, CONTENT[i : i + 1000], name)


def test_an_empty_file(server: Server, tmp_path: Path) -> None:
    server.files[NAME] = b""
    get(server, tmp_path)
    whole(tmp_path, b"")


def test_the_second_name_where_the_first_is_missing(server: Server, tmp_path: Path) -> None:
    server.files = {"m.tar.gz": CONTENT}
    names = [["m.pt"], ["m.tar.gz"]]
    (path,) = fetch(
        names, tmp_path, base_url=server.url, client=Client(sleep=Waits()), progress=False
    )
    assert path.name == "m.tar.gz"
    server.asked.clear()
    assert fetch(names, tmp_path, base_url=server.url, progress=False) == [path]
    assert server.asked == []


def test_no_name_is_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has none of a.pt or a.tar.gz; check --base-url"):
        fetch([["a.pt"], ["a.tar.gz"]], tmp_path / "out", base_url=server.url, progress=False)
    with pytest.raises(UserError, match=r"/b.pt does not exist \(404\)"):
        fetch([["b.pt"]], tmp_path / "out", base_url=server.url, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_second_call_downloads_nothing(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    server.asked.clear()
    get(server, tmp_path)
    assert server.asked == []
    whole(tmp_path)


def test_a_second_call_finds_damage(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    (tmp_path / NAME).write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(UserError, match=r"model.pt is damaged or another file"):
        get(server, tmp_path)


def test_a_file_of_unknown_origin(server: Server, tmp_path: Path) -> None:
    """It is taken if the server's has its length, and
    recorded; otherwise it is never overwritten.
    """
    (tmp_path / NAME).write_bytes(b"short")
    with pytest.raises(UserError, match=r"has 5 bytes and .* has 300000; remove the file"):
        get(server, tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"short"
    (tmp_path / NAME).write_bytes(CONTENT)
    get(server, tmp_path)
    whole(tmp_path)
    assert server.gets(NAME) == []


def test_a_server_without_head(server: Server, tmp_path: Path) -> None:
    server.head_works = False
    get(server, tmp_path)
    whole(tmp_path)


# --- servers that do not --------------------------------------------------------------------------


@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', None])
def test_it_goes_on_where_it_broke_off(server: Server, tmp_path: Path, etag: str | None) -> None:
    if etag:
        server.etags[NAME] = etag
    server.misdeeds[NAME] = [break_off(100_000), break_off(50_000)]
    waits = Waits()
    get(server, tmp_path, waits=waits)
    whole(tmp_path)
    assert server.gets(NAME) == [None, "bytes=100000-", "bytes=150000-"]
    assert waits == [1.0, 1.0]


def test_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.misdeeds[NAME] = [break_off(100_000), *[break_off(0)] * 2]
    refused(
        server,
        tmp_path,
        "could not be received in 3 tries .*closed after 100,000 of 300,000 bytes",
        attempts=3,
    )
    assert (tmp_path / f"{NAME}.part").stat().st_size == 100_000
    server.asked.clear()
    get(server, tmp_path)
    assert server.gets(NAME) == ["bytes=100000-"]
    whole(tmp_path)


def test_a_part_that_was_already_complete(server: Server, tmp_path: Path) -> None:
    """A process that was killed between the last byte and the final name."""
    server.misdeeds[NAME] = [break_off(299_999), *[break_off(0)] * 2]
    refused(server, tmp_path, "could not be received", attempts=2)
    with open(tmp_path / f"{NAME}.part", "ab") as file:
        file.write(CONTENT[-1:])
    server.asked.clear()
    get(server, tmp_path)
    assert server.gets(NAME) == []
    whole(tmp_path)


def test_a_part_of_another_address_is_not_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 1000)
    (tmp_path / f"{NAME}.part.json").write_text(
        json.dumps({"url": "http://elsewhere/model.pt", "total": 300_000})
    )
    get(server, tmp_path)
    assert server.gets(NAME) == [None]
    whole(tmp_path)


def test_a_part_without_notes_is_not_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 1000)
    (tmp_path / f"{NAME}.part.json").write_text("not json")
    get(server, tmp_path)
    assert server.gets(NAME) == [None]
    whole(tmp_path)


def test_a_server_that_knows_no_ranges(server: Server, tmp_path: Path) -> None:
    server.misdeeds[NAME] = [break_off(100_000), ignore_ranges]
    get(server, tmp_path)
    whole(tmp_path)


def test_a_file_that_changed_meanwhile(server: Server, tmp_path: Path) -> None:
    """If-Range makes the server send the new version whole."""
    other = CONTENT[::-1]

    def change(handler: Handler, content: bytes) -> bool:
        server.files[NAME], server.etags[NAME] = other, '"v2"'
        handler.regular(other)
        return True

    server.etags[NAME] = '"v1"'
    server.misdeeds[NAME] = [break_off(100_000), change]
    get(server, tmp_path)
    whole(tmp_path, other)


@pytest.mark.parametrize("change", ["etag", "total", "start"])
def test_a_range_of_another_file_is_not_appended(
    server: Server, tmp_path: Path, change: str
) -> None:
    """A server that ignores If-Range, or answers with a range that was not asked for."""

    def wrong(handler: Handler, content: bytes) -> bool:
        start = 100_000 - (change == "start")
        body = content + b"!" if change == "total" else content
        handler.send_range(body, start, {"ETag": '"v2"' if change == "etag" else '"v1"'})
        return True

    server.etags[NAME] = '"v1"'
    server.misdeeds[NAME] = [break_off(100_000), wrong]
    get(server, tmp_path)
    assert server.gets(NAME) == [None, "bytes=100000-", None]
    whole(tmp_path)


def test_a_refused_range_starts_anew(server: Server, tmp_path: Path) -> None:
    server.misdeeds[NAME] = [break_off(100_000), fail(416)]
    get(server, tmp_path)
    assert server.gets(NAME) == [None, "bytes=100000-", None]
    whole(tmp_path)


def test_the_file_shrank_below_what_is_here(server: Server, tmp_path: Path) -> None:
    server.misdeeds[NAME] = [break_off(200_000), *[break_off(0)] * 2]
    refused(server, tmp_path, "could not be received", attempts=2)
    server.files[NAME] = CONTENT[:1000]
    get(server, tmp_path)
    whole(tmp_path, CONTENT[:1000])


def test_waiting_grows_and_ends(server: Server, tmp_path: Path) -> None:
    server.always[NAME] = fail(503)
    waits = Waits()
    refused(
        server,
        tmp_path / "out",
        r"model.pt could not be received in 6 tries \(the server answered 503\)",
        waits=waits,
    )
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert not (tmp_path / "out").exists()


def test_the_server_says_how_long_to_wait(server: Server, tmp_path: Path) -> None:
    server.misdeeds[NAME] = [
        fail(429, Retry_After="7"),
        fail(503, Retry_After="100000"),
        fail(500, Retry_After="soon"),
    ]
    waits = Waits()
    get(server, tmp_path, waits=waits)
    assert waits == [7.0, 60.0, 4.0]
    whole(tmp_path)


@pytest.mark.parametrize("status", [401, 403, 400, 451])
def test_a_refusal_is_not_repeated(server: Server, tmp_path: Path, status: int) -> None:
    server.always[NAME] = fail(status)
    waits = Waits()
    refused(
        server, tmp_path / "out", rf"model.pt is refused by its server \({status} ", waits=waits
    )
    assert waits == []


def test_a_silent_server(server: Server, tmp_path: Path) -> None:
    def hang(handler: Handler, content: bytes) -> bool:
        time.sleep(0.5)
        return True

    server.always[NAME] = hang
    with pytest.raises(UserError, match=r"could not be received in 2 tries .*timed out"):
        fetch(
            [[NAME]],
            tmp_path,
            base_url=server.url,
            progress=False,
            client=Client(timeout=0.05, attempts=2, sleep=Waits()),
        )


def test_nobody_listens(tmp_path: Path) -> None:
    with serving() as state:
        url = state.url
    with pytest.raises(UserError, match=r"could not be received in 2 tries .*refused"):
        fetch(
            [[NAME]],
            tmp_path / "x",
            base_url=url,
            client=Client(attempts=2, sleep=Waits()),
            progress=False,
        )
    assert not (tmp_path / "x").exists()


# --- lies about sizes -----------------------------------------------------------------------------


def test_more_is_announced_than_comes(server: Server, tmp_path: Path) -> None:
    server.always[NAME] = announce(300_001)
    refused(
        server, tmp_path, "could not be received in 3 tries .*300,000 of 300,001 bytes", attempts=3
    )


def test_less_is_announced_than_there_is(server: Server, tmp_path: Path) -> None:
    """The cut is invisible to HTTP; whoever knows the file is not deceived."""
    server.always[NAME] = announce(299_999)
    known = {NAME: FileFacts(sha256=sha256(CONTENT), bytes=len(CONTENT))}
    refused(
        server, tmp_path, "announces 299,999 bytes where the checksums say 300,000", known=known
    )
    refused(
        server,
        tmp_path,
        "SHA-256 .* where the checksums say",
        known={NAME: FileFacts(sha256=sha256(CONTENT))},
    )
    assert list(tmp_path.iterdir()) == []


def test_no_length_at_all(server: Server, tmp_path: Path) -> None:
    server.always[NAME] = announce(None)
    server.head_works = False
    refused(
        server,
        tmp_path,
        "came without a length, so nobody can tell whether it is whole; pass --sha256",
    )
    get(server, tmp_path, known={NAME: FileFacts(sha256=sha256(CONTENT))})
    whole(tmp_path)


@pytest.mark.parametrize("wait", ["²", "9" * 5000, "soon", "-1"])
def test_a_wait_that_is_no_number_is_not_obeyed(server: Server, tmp_path: Path, wait: str) -> None:
    server.misdeeds[NAME] = [fail(503, Retry_After=wait)]
    waits = Waits()
    get(server, tmp_path, waits=waits)
    assert waits == [1.0]
    whole(tmp_path)


def test_a_chunked_answer_needs_no_length(server: Server, tmp_path: Path) -> None:
    def chunked(handler: Handler, content: bytes) -> bool:
        handler.protocol_version = "HTTP/1.1"
        pieces = [content[i : i + 99_999] for i in range(0, len(content), 99_999)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in [*pieces, b""])
        handler.answer(
            200,
            {"Content-Length": "", "Transfer-Encoding": "chunked"},
            body[: len(body) - cut.pop()],
        )
        return True

    cut = [0, 7]  # the first answer lacks its end
    server.misdeeds[NAME] = [chunked, chunked]
    waits = Waits()
    get(server, tmp_path, waits=waits)
    assert len(waits) == 1
    whole(tmp_path)


def test_no_room(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=299_999))
    refused(server, tmp_path, "has 0.0 GB of free space, the download needs 0.0 GB")


# --- wrong parts ----------------------------------------------------------------------------------


def test_a_wrong_part(server: Server, tmp_path: Path) -> None:
    """Right in length, wrong in content: nothing of it stays, and what was right before does."""
    names = ["m.part_aa", "m.part_ab"]
    server.files |= {"m.part_aa": CONTENT, "m.part_ab": CONTENT[::-1]}
    known = {name: FileFacts(sha256=sha256(CONTENT)) for name in names}
    with pytest.raises(
        UserError, match=r"m.part_ab brought a file with SHA-256 .* where the checksums say"
    ):
        get(server, tmp_path, *names, known=known)
    assert sorted(p.name for p in tmp_path.iterdir()) == [MANIFEST, "m.part_aa"]
    server.files["m.part_ab"] = CONTENT
    server.asked.clear()
    get(server, tmp_path, *names, known=known)
    assert server.gets("m.part_aa") == []
    whole(tmp_path, CONTENT, "m.part_ab")


def test_an_etag_that_is_a_hash_is_believed(server: Server, tmp_path: Path) -> None:
    server.etags[NAME] = f'"{sha256(b"another")}"'
    refused(server, tmp_path, "SHA-256 .* where its server says")
    server.etags[NAME] = f'"{sha256(CONTENT)}"'
    get(server, tmp_path)
    whole(tmp_path)


def test_a_continued_part_that_was_damaged(server: Server, tmp_path: Path) -> None:
    server.misdeeds[NAME] = [break_off(100_000), *[break_off(0)] * 2]
    known = {NAME: FileFacts(sha256=sha256(CONTENT), bytes=300_000)}
    refused(server, tmp_path, "could not be received", attempts=2, known=known)
    with open(tmp_path / f"{NAME}.part", "r+b") as file:
        file.write(b"damage")
    refused(server, tmp_path, "SHA-256 .* run the command again", known=known)
    get(server, tmp_path, known=known)
    whole(tmp_path)


def test_the_recorded_hash_holds_for_a_new_download(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    (tmp_path / NAME).unlink()
    server.files[NAME] = CONTENT[::-1]
    with pytest.raises(UserError, match="where the checksums say"):
        get(server, tmp_path)


@pytest.mark.parametrize("patience", [{"timeout": 0.0}, {"timeout": -1.0}, {"attempts": 0}])
def test_no_patience_at_all(patience: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="A timeout above 0 and 1 try or more are needed"):
        Client(**patience)


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["file:///etc", "ftp://host/x", "/etc", "github.com/x", "data:text/plain,x"]
)
def test_only_http(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="is not an address of https or http"):
        fetch([["passwd"]], tmp_path, base_url=url, client=Client(sleep=Waits()), progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_no_redirect_elsewhere(server: Server, tmp_path: Path, target: str) -> None:
    server.always[NAME] = fail(302, Location=target)
    refused(server, tmp_path, "is not an address of|is refused by its server .302")


def test_a_redirect_is_followed_with_its_range(server: Server, tmp_path: Path) -> None:
    server.files["there"] = CONTENT
    server.always[NAME] = fail(302, Location=f"{server.url}/there")
    server.misdeeds["there"] = [break_off(100_000)]
    get(server, tmp_path)
    assert server.gets("there") == [None, "bytes=100000-"]
    whole(tmp_path)
    assert str(read_manifest(tmp_path)[NAME].url) == f"{server.url}/{NAME}"


def test_endless_redirects_end(server: Server, tmp_path: Path) -> None:
    server.always[NAME] = fail(302, Location=f"{server.url}/{NAME}")
    refused(server, tmp_path, "is refused by its server")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a\\b"])
def test_names_stay_in_their_folder(server: Server, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="should be the bare name of a file"):
        fetch([[name]], tmp_path / "out", base_url=server.url, progress=False)
    assert list(tmp_path.iterdir()) == []


# --- folders --------------------------------------------------------------------------------------


def test_two_downloads_at_once(server: Server, tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    refused(server, tmp_path, "Another download is writing to")
    os.close(handle)
    get(server, tmp_path)
    whole(tmp_path)


def test_the_folder_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    refused(server, tmp_path / "out" / "deeper", "cannot be written")
    refused(server, tmp_path / "out", "cannot be written")


# --- checksums ------------------------------------------------------------------------------------


def test_checksums_from_a_file_or_the_server(server: Server, tmp_path: Path) -> None:
    digest = sha256(CONTENT)
    text = f"{digest}  ./release/{NAME}\n{digest.upper()} *other file.pt\n"
    (tmp_path / "SHA256SUMS").write_text(text)
    server.files["SHA256SUMS"] = text.encode()
    expected = {NAME: FileFacts(sha256=digest), "other file.pt": FileFacts(sha256=digest)}
    assert read_checksums(str(tmp_path / "SHA256SUMS")) == expected
    assert read_checksums(f"{server.url}/SHA256SUMS") == expected
    get(server, tmp_path / "out")
    assert read_checksums(str(tmp_path / "out" / MANIFEST)) == read_manifest(tmp_path / "out")


def test_checksums_choose_the_set_that_they_name(server: Server, tmp_path: Path) -> None:
    server.files["m.tar.gz"] = CONTENT
    known = {"m.tar.gz": FileFacts(sha256=sha256(CONTENT))}
    fetch([[NAME], ["m.tar.gz"]], tmp_path, base_url=server.url, known=known, progress=False)
    assert not (tmp_path / NAME).exists()
    with pytest.raises(UserError, match=r"The checksums do not name model.pt"):
        fetch([[NAME]], tmp_path, base_url=server.url, known=known, progress=False)


@pytest.mark.parametrize(
    "text", ["", "<html>", "abc  file", "{}", '{"files": []}', '{"files": {"a": {"sha256": "x"}}}']
)
def test_what_is_no_checksums(server: Server, tmp_path: Path, text: str) -> None:
    server.files["SUMS"] = text.encode()
    with pytest.raises(UserError, match=r"is neither a .* nor a list of lines"):
        read_checksums(f"{server.url}/SUMS")
    with pytest.raises(UserError, match="cannot be read"):
        read_checksums(str(tmp_path / "missing"))


def test_checksums_that_are_no_text_or_too_long(server: Server) -> None:
    server.files |= {"bin": b"\xff\xfa", "long": b"a" * (2**22 + 1)}
    with pytest.raises(UserError, match="is no text"):
        read_checksums(f"{server.url}/bin")
    with pytest.raises(UserError, match="more than 4,194,304 bytes"):
        read_checksums(f"{server.url}/long")


@given(st.text(max_size=200))
def test_no_text_makes_the_parser_crash(text: str) -> None:
    with suppress(UserError):
        assert parse_checksums(text, "it")


# --- all at once ----------------------------------------------------------------------------------

MISDEEDS = st.one_of(
    st.integers(0, 5000).map(break_off),
    st.sampled_from([500, 502, 429, 416]).map(fail),
    st.just(ignore_ranges),
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(misdeeds=st.lists(MISDEEDS, max_size=5), etag=st.sampled_from(['"v1"', None]))
def test_any_sequence_of_misdeeds_ends_in_the_right_bytes(
    server: Server, tmp_path_factory: pytest.TempPathFactory, misdeeds: list[Any], etag: str | None
) -> None:
    content = CONTENT[:5000]
    server.files[NAME] = content
    server.etags = {NAME: etag} if etag else {}
    server.misdeeds[NAME] = list(misdeeds)
    out = tmp_path_factory.mktemp("out")
    get(server, out)
    whole(out, content)
