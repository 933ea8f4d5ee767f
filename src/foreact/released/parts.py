"""A long file split into NAME.part_aa, NAME.part_ab, ...: naming, reading and writing as one.

The suffixes are those of `split`, so that their alphabetical order is the order of the parts and
`cat NAME.part_*` is the whole: aa ... yz, then zaaa ... zyzz, then zzaaaa ... Sets that use up all
two-letter suffixes instead (`split -a 2`: ... yz, za ... zz) are understood too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice, product
from pathlib import Path
from string import ascii_lowercase

from foreact.checkpoints.manifest import FileFacts
from foreact.errors import UserError
from foreact.files import listed

PART = re.compile(r"(?P<whole>.+)\.part_(?P<suffix>[a-z]{2,})")


def suffixes() -> Iterator[str]:
    """aa, ab, ... yz, zaaa, ... without end."""
    for leading in count():
        for first in ascii_lowercase[:-1]:
            for rest in product(ascii_lowercase, repeat=leading + 1):
                yield "z" * leading + first + "".join(rest)


def find_parts(src: Path) -> list[Path]:
    """The files that make up one archive, in order.

    Args:
        src: a lone file, any part of a set, or a folder that holds one archive (.tar.gz, whole or
            in parts).

    Raises:
        UserError: there is none, there are several, or a part is missing between the first and the
            last.
    """
    src = Path(src)
    if src.is_dir():
        src = _only_archive(src)
    if not src.is_file():
        raise UserError(
            f"There is no file {src}; give an archive, its first part, or the folder that holds it."
        )
    found = PART.fullmatch(src.name)
    if found is None:
        return [src]
    parts = {
        other["suffix"]: path
        for path in listed(src.parent)
        if (other := PART.fullmatch(path.name)) and other["whole"] == found["whole"]
    }
    expected = list(islice(_sequence(parts), len(parts)))
    missing = [suffix for suffix in expected if suffix not in parts]
    if missing:
        raise UserError(
            f"{found['whole']}.part_{missing[0]} is missing: {src.parent} holds the parts "
            f"{', '.join(sorted(parts))}; download it again."
        )
    return [parts[suffix] for suffix in expected]


def _sequence(parts: Iterable[str]) -> Iterator[str]:
    two_letters = ["".join(pair) for pair in product(ascii_lowercase, repeat=2)]
    return iter(two_letters) if set(parts) <= set(two_letters) else suffixes()


def _only_archive(folder: Path) -> Path:
    first: dict[str, Path] = {}
    for path in listed(folder):
        match = PART.fullmatch(path.name)
        whole = match["whole"] if match else path.name
        if whole.endswith((".tar.gz", ".tgz")):
            first.setdefault(whole, path)
    if len(first) != 1:
        names = ", ".join(first) or "none"
        raise UserError(
            f"{folder} should hold one archive (.tar.gz or its parts), found {names}; name a file."
        )
    return next(iter(first.values()))


class PartsReader:
    """Files read one after another as one stream.

    Args:
        paths: the files.
        advance: told the bytes of every read.

    Attributes:
        current: the file that the last bytes came from.
    """

    def __init__(
        self, paths: Sequence[Path], advance: Callable[[int], object] = lambda count: None
    ) -> None:
        self._rest = list(paths)
        self._advance = advance
        self._next()

    def _next(self) -> None:
        self.current = self._rest.pop(0)
        self._file = open(self.current, "rb")  # noqa: SIM115

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        data = self._file.read(size)
        while len(data) < size and self._rest:
            self._file.close()
            self._next()
            data += self._file.read(size - len(data))
        self._advance(len(data))
        return data

    def close(self) -> None:
        self._file.close()


class PartsWriter:
    """One stream written as files of `max_size` bytes each, the last one shorter.

    Args:
        folder: where they are written, as 0, 1, ...
        max_size: bytes of one file.

    Attributes:
        facts: bytes and hash of every file that is closed.
    """

    def __init__(self, folder: Path, max_size: int) -> None:
        self.facts: list[FileFacts] = []
        self._folder, self._max_size = folder, max_size
        self._next()

    def path(self, index: int) -> Path:
        return self._folder / str(index)

    def _next(self) -> None:
        self._file = open(self.path(len(self.facts)), "wb")  # noqa: SIM115
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:
            room = self._max_size - self._file.tell()
            if room == 0:
                self.close()
                self._next()
                continue
            self._file.write(rest[:room])
            self._digest.update(rest[:room])
            rest = rest[room:]
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Close the last file; it is then among `facts`."""
        if not self._file.closed:
            self.facts.append(FileFacts(sha256=self._digest.hexdigest(), bytes=self._file.tell()))
            self._file.close()
