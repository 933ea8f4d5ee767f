"""Release archives: what is packed comes back, and whatever is wrong
with an archive is named before it shows.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreact.checkpoints.manifest import MANIFEST, read_manifest, sha256_of
from foreact.errors import UserError
from foreact.released.archives import pack, parse_size, unpack
from foreact.released.parts import find_parts, suffixes

PART = 40_000
NAME = "model_chunked.tar.gz.part_"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Relative path -> content, None for a folder."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def noise(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(count)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """An archive of one file in five parts, aa to ae."""
    (tmp_path / "model.pt").write_bytes(noise(180_000))
    (tmp_path / "release").mkdir()
    return pack(
        [tmp_path / "model.pt"], tmp_path / "release" / "model", max_size=PART, progress=False
    )


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def refused(src: Path, out: Path, message: str, **limits: int) -> None:
    """Unpacking ends in one sentence, and `out` is as it was."""
    before = tree(out.parent)
    with pytest.raises(UserError, match=message) as error:
        unpack(src, out, progress=False, **limits)
    assert "\n" not in str(error.value)
    assert tree(out.parent) == before


# --- round trips ----------------------------------------------------------------------------------

NAMES = st.text("abcé .-_", min_size=1, max_size=6).filter(lambda s: s.strip(". ") == s)
FILES = st.dictionaries(NAMES, st.binary(max_size=3000), min_size=1, max_size=4)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files=FILES, inside=FILES, max_size=st.integers(1, 4000))
def test_what_is_packed_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, bytes],
    inside: dict[str, bytes],
    max_size: int,
) -> None:
    root = tmp_path_factory.mktemp("trip")
    source = root / "source"
    (source / "dir" / "deeper" / "empty").mkdir(parents=True)
    for name, content in files.items():
        (source / f"f{name}").write_bytes(content)
    for name, content in inside.items():
        (source / "dir" / "deeper" / f"g{name}").write_bytes(content)
    sources = [source / "dir", *(source / f"f{name}" for name in files)]
    parts = pack(sources, root / "release" / "x", max_size=max_size, progress=False)
    sizes = [p.stat().st_size for p in parts]
    assert all(size == max_size for size in sizes[:-1])
    assert 0 < sizes[-1] <= max_size
    placed = unpack(root / "release", root / "out", progress=False)
    assert tree(root / "out") == tree(source)
    assert placed == sorted(root / "out" / p.name for p in sources)


def test_cat_and_tar_open_it(parts: list[Path], tmp_path: Path) -> None:
    assert [p.name for p in parts] == [NAME + s for s in ("aa", "ab", "ac", "ad", "ae")]
    (tmp_path / "out").mkdir()
    command = f"cat {tmp_path}/release/{NAME}* | tar xzf - -C {tmp_path}/out"
    subprocess.run(command, shell=True, check=True)
    assert tree(tmp_path / "out") == {"model.pt": (tmp_path / "model.pt").read_bytes()}


def test_split_and_tar_made_it(tmp_path: Path) -> None:
    """The way the release itself was made."""
    (tmp_path / "model.pt").write_bytes(noise(100_000))
    (tmp_path / "release").mkdir()
    command = f"tar czf - model.pt | split -b 10000 - release/{NAME}"
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    unpack(tmp_path / "release" / f"{NAME}aa", tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == {"model.pt": (tmp_path / "model.pt").read_bytes()}


def test_a_small_archive_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    (made,) = pack([tmp_path / "model.pt"], tmp_path / "small", progress=False)
    assert made == tmp_path / "small.tar.gz"
    facts = read_manifest(tmp_path)["small.tar.gz"]
    assert (facts.sha256, facts.bytes) == (sha256_of(made), made.stat().st_size)
    assert unpack(made, tmp_path / "out", progress=False) == [tmp_path / "out" / "model.pt"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for order in (("a", "b"), ("b", "a")):
        folder = tmp_path / "".join(order)
        (folder / "in").mkdir(parents=True)
        for n, name in enumerate(order):
            (folder / "in" / name).write_bytes(name.encode() * 1000)
            os.utime(folder / "in" / name, (n * 1000, n * 1000))
        made += pack([folder / "in" / n for n in order], folder / "x", progress=False)
    assert made[0].read_bytes() == made[1].read_bytes()


def test_extension_picks_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.pt", "b.txt", "deep/c.pt", "empty/d.log"):
        (tmp_path / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / name).write_text(name)
    pack([tmp_path / "runs"], tmp_path / "x", extension="pt", progress=False)
    unpack(tmp_path / "x.tar.gz", tmp_path / "out", progress=False)
    assert [k for k, v in tree(tmp_path / "out").items() if v is not None] == [
        "runs/a.pt",
        "runs/deep/c.pt",
    ]


def test_suffixes_follow_split(tmp_path: Path) -> None:
    """Their order is the order of names, also beyond two
    letters: 25 * 26 parts, then four letters.
    """
    subprocess.run("head -c 700 /dev/zero | split -b 1 - x", shell=True, check=True, cwd=tmp_path)
    ours = list(islice(suffixes(), 700))
    assert ours == sorted(ours) == sorted(p.name[1:] for p in tmp_path.iterdir())
    assert ours[648:652] == ["yy", "yz", "zaaa", "zaab"]
    assert list(islice(suffixes(), 650 + 25 * 26**2, 651 + 25 * 26**2)) == ["zzaaaa"]


def test_many_parts_and_the_fixed_two_letter_suffixes(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(noise(660))
    parts = pack([tmp_path / "model.pt"], tmp_path / "release" / "m", max_size=1, progress=False)
    assert len(parts) > 651
    assert parts[650].name.endswith("part_zaaa")
    assert find_parts(tmp_path / "release") == parts
    fixed = [a + b for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz"][
        :660
    ]
    (tmp_path / "fixed").mkdir()
    for suffix in fixed:
        (tmp_path / "fixed" / f"m.tar.gz.part_{suffix}").write_bytes(b"")
    assert [p.name[-2:] for p in find_parts(tmp_path / "fixed")] == fixed


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1900MB", 1_900_000_000),
        ("1M", 2**20),
        ("2GiB", 2**31),
        ("3 kB", 3000),
        ("1K", 1024),
        ("7", 7),
        ("9B", 9),
    ],
)
def test_sizes_as_split_reads_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "MB", "-1MB", "1.5GB", "1XB", "1 900 MB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UserError, match="should be a positive size such as 1900MB"):
        parse_size(text)


# --- packing refuses ------------------------------------------------------------------------------


def test_packing_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.pt").write_bytes(b"a")
    (tmp_path / "in" / "sub" / "a.pt").write_bytes(b"b")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a\nb").write_bytes(b"c")
    before = tree(tmp_path)
    inside = tmp_path / "in"
    for sources, extension, message in (
        ([], None, "no file in an empty list"),
        ([inside / "b.pt"], None, "There is no .*b.pt"),
        ([inside], "ckpt", r"no file that ends in \.ckpt"),
        ([inside / "a.pt", inside / "sub" / "a.pt"], None, "Two sources are called 'a.pt'"),
        ([tmp_path / "links"], None, "loop is neither a file nor a plain folder"),
        ([tmp_path / "odd"], None, r"The name 'odd/a\\nb' cannot be printed"),
    ):
        with pytest.raises(UserError, match=message):
            pack(sources, tmp_path / "new" / "x", extension=extension, progress=False)
    with pytest.raises(UserError, match="at least 1 byte"):
        pack([inside], tmp_path / "x", max_size=0, progress=False)
    with pytest.raises(UserError, match="could not be packed"):
        pack([inside], inside / "a.pt" / "x", progress=False)
    for nameless in (Path(), inside / "..", inside / ".tar.gz"):
        with pytest.raises(UserError, match="does not name an archive"):
            pack([inside], nameless, progress=False)
    assert tree(tmp_path) == before


def test_an_old_archive_is_never_mixed_with_a_new_one(parts: list[Path], tmp_path: Path) -> None:
    before = tree(tmp_path / "release")
    with pytest.raises(UserError, match="part_aa exists; remove the old archive"):
        pack([tmp_path / "model.pt"], tmp_path / "release" / "model_chunked.tar.gz", progress=False)
    assert tree(tmp_path / "release") == before


# --- parts that are not what they were ------------------------------------------------------------


def swap(parts: list[Path], a: int, b: int) -> None:
    first, second = parts[a].read_bytes(), parts[b].read_bytes()
    parts[a].write_bytes(second)
    parts[b].write_bytes(first)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(1000, 1100):
        content[at] ^= 0xFF
    path.write_bytes(content)


BROKEN: list[tuple[str, Callable[[list[Path]], object], str, str]] = [
    ("middle missing", lambda p: p[2].unlink(), "part_ac is missing", "part_ac is missing"),
    ("first missing", lambda p: p[0].unlink(), "part_aa is missing", "part_aa is missing"),
    (
        "last missing",
        lambda p: p[4].unlink(),
        "part_ae is missing, which",
        "ends too early: .*part_ad is cut short or",
    ),
    (
        "swapped",
        lambda p: swap(p, 1, 2),
        "part_ab .* holds what .*part_ac should",
        "damaged at .*part_ab",
    ),
    (
        "first swapped",
        lambda p: swap(p, 0, 1),
        "part_aa .* holds what .*part_ab should",
        "damaged at .*part_aa",
    ),
    (
        "last swapped",
        lambda p: swap(p, 1, 4),
        "part_ab .* holds what .*part_ae should",
        "part_ab has .* bytes where",
    ),
    (
        "middle cut short",
        lambda p: os.truncate(p[1], PART - 1),
        "part_ab .*39,999 bytes instead of 40,000",
        "part_ab has 39,999 bytes where others have 40,000",
    ),
    (
        "last cut short",
        lambda p: os.truncate(p[4], 7),
        "part_ae .* 7 bytes instead of",
        "ends too early: .*part_ae is",
    ),
    ("corrupt", lambda p: flip(p[3]), "part_ad .*SHA-256 differs", "damaged at .*part_a[de]"),
    (
        "twice",
        lambda p: p[2].write_bytes(p[1].read_bytes()),
        "part_ac .* holds what .*part_ab should hold",
        "part_ac holds the same as .*part_ab",
    ),
]


@pytest.mark.parametrize(
    ("harm", "named", "guessed"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
)
@pytest.mark.parametrize("manifest", [True, False])
def test_broken_sets(
    parts: list[Path],
    tmp_path: Path,
    harm: Callable[[list[Path]], object],
    named: str,
    guessed: str,
    manifest: bool,
) -> None:
    """With a manifest the part is named exactly; without one, as well as the bytes allow."""
    harm(parts)
    if not manifest:
        (tmp_path / "release" / MANIFEST).unlink()
    left = [p for p in parts if p.exists()]
    refused(left[0], tmp_path / "out", named if manifest else guessed)
    refused(tmp_path / "release", tmp_path / "out", named if manifest else guessed)


def test_a_part_appended_twice(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "release" / f"{NAME}af").write_bytes(parts[4].read_bytes())
    refused(parts[0], tmp_path / "out", "part_af holds the same as .*part_ae")


def test_two_whole_archives_in_a_row(tmp_path: Path) -> None:
    content = tar(tmp_path / "x.tar.gz", (member("a"), noise(20_000))).read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(content + gzip.compress(noise(20_000)))
    refused(tmp_path / "x.tar.gz", tmp_path / "out", "there is more after its end")


def test_a_damaged_manifest_is_named(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "release" / MANIFEST).write_text('{"files": {"x": {"sha256": "12"}}}')
    refused(parts[0], tmp_path / "out", f"{MANIFEST} is neither")


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>Not found</html>", gzip.compress(b"no tar" * 500), gzip.compress(b"")],
    ids=["empty", "page", "no tar", "nothing compressed"],
)
def test_no_archive_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar.gz").write_bytes(content)
    refused(tmp_path / "x.tar.gz", tmp_path / "out", "is damaged or no .tar.gz")


def test_a_lone_archive_cut_short(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar.gz", (member("a"), noise(5000)))
    os.truncate(path, path.stat().st_size - 9)
    refused(path, tmp_path / "out", "x.tar.gz is cut short")


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    """gzip's checksum is right here: the archive was already broken when it was packed."""
    path = tar(tmp_path / "x.tar.gz", (member("a"), noise(512)), (member("b"), b""))
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[1024 + 3] ^= 1
    path.write_bytes(gzip.compress(raw))
    refused(path, tmp_path / "out", "a file's header is damaged")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_tar_makes_it_crash(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    path = tar(root / "x.tar.gz", (member("a" * 120), b"x" * 700), (member("dir/é"), b"y"))
    raw = bytearray(gzip.decompress(path.read_bytes()))
    for at, value in changes:
        raw[at] = value
    path.write_bytes(gzip.compress(raw))
    try:
        placed = unpack(path, root / "out", progress=False)
    except UserError:
        assert not (root / "out").exists()
    else:
        assert {root / "out", path} | set(placed) >= set(root.glob("*")) | set(
            (root / "out").glob("*")
        )


# --- members that do not belong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member("/etc/passwd"), "'/etc/passwd', outside its folder"),
        (member("../evil"), "'../evil', outside its folder"),
        (member("good/../../evil"), "outside its folder"),
        (member("clear\x1b[2J"), r"the name 'clear\\x1b\[2J', which cannot be printed"),
        (member("lone\udcff"), r"the name 'lone\\udcff', which cannot be printed"),
        (member("link", tarfile.SYMTYPE, "/etc"), "'link' in the archive is a link, a device"),
        (member("link", tarfile.SYMTYPE, "a"), "'link' in the archive is a link"),
        (member("hard", tarfile.LNKTYPE, "../../secret"), "'hard' in the archive is a link"),
        (member("dev", tarfile.CHRTYPE), "'dev' in the archive is a link, a device"),
        (member("pipe", tarfile.FIFOTYPE), "'pipe' in the archive is a link, a device"),
        (member("a"), "holds 'a' twice"),
        (member("./a"), "holds './a' twice"),
        (member("a/b"), "holds 'a/b' twice or in an impossible place"),
        (member("x" * 300), "could not be unpacked"),
    ],
)
def test_unsafe_members(tmp_path: Path, info: tarfile.TarInfo, message: str) -> None:
    (tmp_path / "release").mkdir()
    path = tar(tmp_path / "release" / "x.tar.gz", (member("a"), b"content"), (info, b""))
    refused(path, tmp_path / "out", message)


def test_a_symlink_cannot_carry_a_file_outside(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "x.tar.gz", (member("d", tarfile.SYMTYPE, ".."), b""), (member("d/evil"), b"x")
    )
    refused(path, tmp_path / "out", "'d' in the archive is a link")


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    with open(tmp_path / "holes", "wb") as file:
        file.truncate(2**24)
    subprocess.run("tar --sparse -czf x.tar.gz holes", shell=True, check=True, cwd=tmp_path)
    refused(
        tmp_path / "x.tar.gz",
        tmp_path / "out",
        "'holes' in the archive is a link, a device or sparse",
    )


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_name_of_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    info = member("././@LongLink", kind)
    info.size = 4 * 2**30
    (tmp_path / "x.tar.gz").write_bytes(
        gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**17))
    )
    refused(tmp_path / "x.tar.gz", tmp_path / "out", "a file's name claims 4,294,967,296 bytes")


def test_names_upon_names_end_in_one_sentence(tmp_path: Path) -> None:
    info = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 1
    (tmp_path / "x.tar.gz").write_bytes(
        gzip.compress((info.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 2000)
    )
    refused(tmp_path / "x.tar.gz", tmp_path / "out", "is damaged")


def test_limits(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar.gz", *((member(f"f{i}"), b"0" * 50_000) for i in range(4)))
    assert path.stat().st_size < 2000
    refused(path, tmp_path / "out", "unpacks to more than 100,000 bytes", max_total=100_000)
    refused(path, tmp_path / "out", "more than 3 files", max_members=3)
    assert len(unpack(path, tmp_path / "out", max_members=4, progress=False)) == 4


def test_nothing_is_replaced_and_what_is_there_stays(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar.gz", (member("new"), b"new"), (member("old"), b"new"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(b"old")
    refused(path, tmp_path / "out", "old exists; remove it")
    (tmp_path / "out" / "old").rename(tmp_path / "out" / "other")
    unpack(path, tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == {"new": b"new", "old": b"new", "other": b"old"}


def test_which_archive(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    refused(tmp_path / "release", tmp_path / "out", r"should hold one archive .* found none")
    refused(tmp_path / "nothing.tar.gz", tmp_path / "out", "There is no file")
    for name in ("a", "b"):
        tar(tmp_path / "release" / f"{name}.tar.gz", (member(name), b""))
    refused(tmp_path / "release", tmp_path / "out", r"found a.tar.gz, b.tar.gz; name a file")
    assert unpack(tmp_path / "release" / "b.tar.gz", tmp_path / "out", progress=False) == [
        tmp_path / "out" / "b"
    ]
