"""Does any damaged file end the command line otherwise than in one sentence?

    python tests/fuzz.py --cases 10000 [--seed N] [--reader NAME] [--jobs N]

Small valid files of every kind are changed at random and read by `foreact`, each case in a child
process of one that has imported everything, with limits of memory and time. A traceback, a signal,
a hang, output that a refused command leaves behind and code that a file made run are faults; each
is printed with the line that repeats it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from support.confined import SAID, Verdict, call, fork, wait
from support.damage import damage_folder
from support.readers import READERS, Reader

from foreact.cli import main as foreact_main
from foreact.cli import verbs

VERDICTS = ("read", "refused", "traceback", "signal", "hang", "no sentence", "left behind")
VERDICTS = (*VERDICTS, "code run")
BLOCK = 50
"""Cases of a reader for which its example is made anew."""
OPTIONAL = ("h5py", "imagecodecs", "PIL.JpegImagePlugin", "tyro", "torch.utils.data")


def prepare() -> None:
    """Import whatever a call may import, so that a child computes and does not load."""
    torch.set_num_threads(1)
    paths = [path for path, _ in verbs().values()]
    for name in (*(path.partition(":")[0] for path in paths), *OPTIONAL):
        importlib.import_module(name)


def make(reader: Reader, folder: Path) -> None:
    """Write the reader's valid example, in a child: zarr and torch start threads.

    Raises:
        RuntimeError: it could not be made.
    """
    folder.mkdir(parents=True)
    if wait(fork(lambda: reader.make(folder), folder, limited=False), 120):
        raise RuntimeError(f"{reader.name}: {(folder / SAID).read_text()}")
    (folder / SAID).unlink()
    if not (folder / "data").is_dir():
        raise RuntimeError(f"{reader.name}: no example was made")


def warm_up(reader: Reader, example: Path) -> None:
    """Import what the reader's calls import on their way: once, and not in every child again."""
    with tempfile.TemporaryDirectory(dir=example.parent) as scratch:
        folder = Path(scratch) / "case"
        shutil.copytree(example, folder)

        def list_modules() -> None:
            for words in reader.calls:
                with suppress(SystemExit, Exception):  # the first case will tell of it
                    foreact_main(words.split())
            (folder / "modules").write_text("\n".join(sys.modules))

        wait(fork(list_modules, folder, limited=False), 120)
        for name in (folder / "modules").read_text().split("\n"):
            with suppress(Exception):  # made up while it ran, and no module to import
                importlib.import_module(name)
    gc.freeze()  # children would copy every page that the collector touches


def run_case(reader: Reader, example: Path, number: int, seed: int) -> tuple[Verdict, str]:
    """One damaged copy of the example, read; returns the verdict and what was done."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    with tempfile.TemporaryDirectory(dir=example.parent) as scratch:
        folder = Path(scratch) / "case"
        shutil.copytree(example, folder)
        changes = damage_folder(folder / "data", rng) if number else ["unchanged"]
        words = rng.choice(reader.calls)
        verdict = call(words.split(), folder, reader.may_leave)
    return verdict, f"foreact {words}   ({'; '.join(changes)})"


def run_reader(task: tuple[Reader, range, int]) -> tuple[Counter[str], list[str]]:
    """Some cases of one reader; returns the count of each verdict and the faults in words.

    The first case is the example as it was made, which must be read.
    """
    reader, numbers, seed = task
    counts, faults = Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        example = Path(scratch) / "example"
        make(reader, example)
        warm_up(reader, example)
        for number in numbers:
            verdict, words = run_case(reader, example, number, seed)
            counts[verdict.kind] += 1
            if verdict.is_fault or (number == 0 and verdict.kind != "read"):
                faults.append(
                    f"{verdict.kind.upper()}: {reader.name}, case {number}, seed {seed}\n"
                    f"  {words}\n  " + verdict.text.replace("\n", "\n  ")
                )
    return counts, faults


def table(counts: dict[str, Counter[str]]) -> str:
    """Readers by verdicts."""
    lines = [f"{'reader':<22}" + "".join(f"{verdict:>12}" for verdict in VERDICTS)]
    total: Counter[str] = sum(counts.values(), Counter())
    for name, row in [*counts.items(), ("all", total)]:
        lines.append(f"{name:<22}" + "".join(f"{row[verdict] or '.':>12}" for verdict in VERDICTS))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exit status 1 where there was a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000, help="over all readers")
    parser.add_argument("--first", type=int, default=0, help="number of each reader's first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", default="", help="part of the names or groups to take")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(argv)
    chosen = [r for r in READERS if options.reader in r.name or options.reader == r.group]
    if not chosen:
        parser.error(f"no reader '{options.reader}'; there are {[r.name for r in READERS]}")
    prepare()
    each = -(-options.cases // len(chosen))
    shares = min(BLOCK, -(-each // options.jobs) if len(chosen) < options.jobs else each)
    last = options.first + each
    tasks = [
        (reader, range(start, min(start + shares, last)), options.seed)
        for reader in chosen
        for start in range(options.first, last, shares)
    ]
    counts: dict[str, Counter[str]] = {reader.name: Counter() for reader in chosen}
    faults: list[str] = []
    # Some of every reader early, so that Ctrl-C leaves a table that says something.
    tasks.sort(key=lambda task: task[1].start)
    with get_context("fork").Pool(options.jobs) as pool, suppress(KeyboardInterrupt):
        for (reader, _, _), (some, words) in zip(tasks, pool.imap(run_reader, tasks), strict=True):
            counts[reader.name] += some
            faults += words
            for fault in words:
                print(fault + "\n", flush=True)
    print(table(counts))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
