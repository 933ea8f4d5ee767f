"""From the catalogue to a model's file: list, get from a server that
breaks off, unpack; and the way back, pack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tyro
from support.misbehaving_server import Server, break_off, serving

from foreact.commands import weights
from foreact.errors import UserError
from foreact.released.catalogue import catalogue

MODEL = "vavim-l-139k-finetuned"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    with serving() as state:
        yield state


def run(verb: str, *argv: str) -> object:
    return tyro.cli(getattr(weights, verb), args=list(argv))


def test_a_large_model_from_release_to_disk(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `pack` makes under the catalogue's names is what `get` and `unpack` bring back."""
    content = np.random.default_rng(0).bytes(250_000)
    (names,) = catalogue().entry(MODEL).candidates
    stem = names[0].partition("_chunked")[0]
    (tmp_path / f"{stem}.pt").write_bytes(content)
    run(
        "pack",
        str(tmp_path / f"{stem}.pt"),
        "--out",
        str(tmp_path / "up" / stem),
        "--max-size",
        "100kB",
    )
    assert sorted(p.name for p in (tmp_path / "up").glob("*.part_*")) == list(names)
    sums = "".join(
        f"{hashlib.sha256((tmp_path / 'up' / n).read_bytes()).hexdigest()}  {n}\n" for n in names
    )
    server.files = {n: (tmp_path / "up" / n).read_bytes() for n in names} | {
        "SHA256SUMS": sums.encode()
    }
    server.misdeeds[names[1]] = [break_off(30_000)]

    out = tmp_path / "released"
    run(
        "get",
        MODEL,
        "--out",
        str(out),
        "--base-url",
        server.url,
        "--sha256",
        f"{server.url}/SHA256SUMS",
    )
    assert server.gets(names[1]) == [None, "bytes=30000-"]
    printed = capsys.readouterr().out
    assert "VaViM-L" in printed
    assert "licence  research-only RAIL" in printed
    assert "note     an older release table labels the third part 'part 2'" in printed
    assert f"next: foreact weights unpack {out / names[0]} --out {out}" in printed

    run("unpack", str(out), "--out", str(tmp_path / "models"))
    assert (tmp_path / "models" / f"{stem}.pt").read_bytes() == content
    assert f"now holds {stem}.pt" in capsys.readouterr().out


def test_a_small_model_under_either_name(server: Server, tmp_path: Path) -> None:
    server.files = {"width_768_pretrained_38k.tar.gz": b"archive"}
    paths = weights.get("vavim-s-38k-pretrained", tmp_path, base_url=server.url)
    assert [p.name for p in paths] == ["width_768_pretrained_38k.tar.gz"]
    server.files = {
        "width_768_pretrained_77k.pt": b"pickle",
        "width_768_pretrained_77k.tar.gz": b"archive",
    }
    paths = weights.get("vavim-s-77k-pretrained", tmp_path, base_url=server.url)
    assert [p.name for p in paths] == ["width_768_pretrained_77k.pt"]


def test_the_entry_without_files_says_why_and_takes_names(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot be downloaded: the release table links .* --files"
    ):
        run(
            "get",
            "vavim-l-139k-pretrained",
            "--out",
            str(tmp_path / "out"),
            "--base-url",
            server.url,
        )
    assert server.asked == []
    server.files = {"guess.part_aa": b"a", "guess.part_ab": b"b"}
    argv = ("get", "vavim-l-139k-pretrained", "--out", str(tmp_path), "--base-url", server.url)
    run(*argv, "--files", "guess.part_aa", "guess.part_ab")
    assert (tmp_path / "guess.part_ab").read_bytes() == b"b"


def test_list_shows_all_of_the_release(capsys: pytest.CaptureFixture[str]) -> None:
    weights.list_()
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    for entry in catalogue().entries:
        assert [line for line in lines if line.startswith(f"  {entry.id} ")], entry.id
        if entry.note:
            assert f"note: {entry.note}" in printed
    assert "VaVAM-B  319,366,144 + 37,948,672 parameters (published as 318M + 38M)" in printed
