"""What `foreact data check | stats | show` report about a store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foreact.data.check_pictures import check_pictures
from foreact.data.formats.video import contact_sheet, save_image, write_mp4
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.findings import Finding, Severity
from foreact.data.stores.opening import Options, open_episodes
from foreact.data.windows.anchors import LARGEST_GAP, TIMESTAMP, gaps_in
from foreact.data.windows.hand_findings import hand_findings
from foreact.data.windows.hand_poses import HandPoses
from foreact.data.windows.loader import WindowDataset, ordered_batches
from foreact.data.windows.mixture import open_mixture
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.types import StreamSpec

CHECK_SPAN = 16
"""Steps of the windows that `check_store` reads, where episodes are that long."""


@dataclass
class Report:
    """What `check_store` found.

    Attributes:
        store: path of the store.
        findings: in the order of the checks.
        windows_per_second: of reading random windows of every stream, one process; measured, so it
            varies.
    """

    store: Path
    findings: list[Finding] = field(default_factory=list)
    windows_per_second: float = 0.0

    @property
    def ok(self) -> bool:
        return all(finding.severity != "error" for finding in self.findings)

    def add(self, severity: Severity, text: str) -> None:
        self.findings.append(Finding(severity, text))

    def __str__(self) -> str:
        lines = [str(self.store), *map(str, self.findings)]
        if self.windows_per_second:
            lines.append(f"{'note':<8}read {self.windows_per_second:.0f} windows/s in one process")
        return "\n".join(lines)


def check_store(
    path: str | Path,
    spec: StreamSpec | None = None,
    *,
    windows: int = 100,
    seed: int = 0,
    options: Options | None = None,
    hands: HandPoses | None = None,
) -> Report:
    """Look for what would spoil a training.

    Every number of states and actions is read, missing chunks of every stream are counted, time
    stamps are compared with the store's rate, up to 1,024 pictures of every camera are decoded,
    and, where nothing is wrong, `windows` windows drawn with `seed` are read.

    Args:
        path: the store, or a mixture of several as .json, whose members are checked one by one.
        spec: as in `open_episodes`; a mixture needs it.
        windows: how many to read.
        seed: which.
        options: as in `open_episodes`.
        hands: whose poses the store records, if it does; they are looked at too.

    Raises:
        UserError: the store cannot be opened at all; see `open_episodes`.
    """
    path = Path(path)
    report = Report(path)
    if path.suffix == ".json" and path.is_file():
        if spec is None:
            raise UserError(f"The mixture {path} does not say what it is of; name it with --task.")
        mixture = open_mixture(path, spec)
        if hands is not None:
            mixture.spec(hands)  # do the members' rates agree?
        for store in mixture.stores:
            report.add("note", f"member {store.label}")
            _check(store, report, windows, seed, hands)
    else:
        store = open_episodes(path, spec, options=options)
        report.store = store.path
        _check(store, report, windows, seed, hands)
    return report


def _check(
    store: EpisodeStore, report: Report, windows: int, seed: int, hands: HandPoses | None
) -> None:
    _describe(store, report)
    report.findings += store.findings()
    whole = True
    for name in store.streams:
        whole &= _check_chunks(store, name, report)
    if whole:
        for name in _number_streams(store):
            _check_numbers(store, name, report)
        _check_times(store, report)
        if hands is not None:
            report.findings += hand_findings(store, hands)
        told = report.findings
        report.findings += [finding for finding in check_pictures(store) if finding not in told]
        if report.ok:
            _check_windows(store, windows, seed, report)


@dataclass(frozen=True, kw_only=True)
class StreamStats:
    """Statistics of one state or action stream, one entry per dimension.

    Attributes:
        out_of_range: share of the values outside the range of the statistics compared with, or
            None.
    """

    names: tuple[str, ...]
    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    out_of_range: np.ndarray | None = None


def store_stats(
    path: str | Path,
    spec: StreamSpec | None = None,
    against: Normalizer | None = None,
    *,
    options: Options | None = None,
) -> dict[str, StreamStats]:
    """Per-dimension statistics of every state and action stream.

    Args:
        path: the store.
        spec: as in `open_episodes`.
        against: statistics of a checkpoint; streams that it does not know are left uncompared.
            Where a large share of the values lies outside its range, the store's numbers mean
            something else (unit, frame or mode).
        options: as in `open_episodes`.
    """
    store = open_episodes(path, spec, options=options)
    stats = {}
    for name in _number_streams(store):
        values = store.all_rows(name)
        outside = None
        if against is not None and name in against.streams:
            outside = against.out_of_range(values, name)
        wide = values.astype(np.float64)
        stats[name] = StreamStats(
            names=_dimension_names(store, name),
            min=wide.min(0),
            max=wide.max(0),
            mean=wide.mean(0),
            std=wide.std(0),
            out_of_range=outside,
        )
    return stats


def format_stats(stats: dict[str, StreamStats]) -> str:
    """`store_stats` as a table for the terminal."""
    width = max([11, *map(len, stats)]) + 1
    lines = [
        f"{'stream':<{width}}{'dim':<16}{'min':>12}{'max':>12}{'mean':>12}{'std':>12}"
        f"{'out of range':>14}"
    ]
    for stream, s in stats.items():
        for i, name in enumerate(s.names):
            outside = "" if s.out_of_range is None else f"{100 * s.out_of_range[i]:.1f} %"
            numbers = "".join(f"{float(x[i]):>12.4g}" for x in (s.min, s.max, s.mean, s.std))
            lines.append(f"{stream:<{width}}{name:<16}{numbers}{outside:>14}")
    return "\n".join(lines)


def show_store(
    path: str | Path,
    spec: StreamSpec | None = None,
    *,
    out_dir: str | Path,
    episodes: Sequence[int] = (0, 1, 2, 3),
    frames: int = 8,
    options: Options | None = None,
) -> list[Path]:
    """Write pictures of some episodes: a contact sheet per camera, an mp4 per episode and camera.

    Args:
        path: the store.
        spec: as in `open_episodes`.
        out_dir: folder for `<camera>.png` and `<camera>_<episode>.mp4`.
        episodes: episode numbers; those beyond the end are left out.
        frames: evenly spaced frames per episode on the sheet.
        options: as in `open_episodes`.

    Returns:
        The files written.
    """
    store, out_dir = open_episodes(path, spec, options=options), Path(out_dir)
    chosen = [e for e in episodes if 0 <= e < len(store)]
    if not store.spec.cameras or not chosen or frames < 1:
        raise UserError(
            f"There is nothing to show: {store.path} has cameras {sorted(store.spec.cameras)} and "
            f"episodes 0..{len(store) - 1}, asked for were episodes {list(episodes)} with "
            f"{frames} frames each."
        )
    written = []
    for camera in store.spec.cameras:
        images, labels = [], []
        for episode in chosen:
            video = store.read(episode, 0, int(store.lengths[episode]), [camera])[camera]
            for step in np.linspace(0, len(video) - 1, frames).round().astype(int):
                images.append(video[step])
                labels.append(f"{episode}: {step}")
            target = out_dir / f"{camera}_{episode}.mp4"
            write_mp4(target, video, store.spec.fps)
            written.append(target)
        sheet = out_dir / f"{camera}.png"
        save_image(sheet, contact_sheet(images, labels, columns=frames))
        written.insert(0, sheet)
    return written


def _describe(store: EpisodeStore, report: Report) -> None:
    n, steps = store.lengths, int(store.lengths.sum())
    origin = "own spec" if store.native else "spec given by the task"
    report.add(
        "note",
        f"{len(store)} episodes, {steps} steps ({steps / store.spec.fps / 60:.1f} min), {origin}",
    )
    report.add("note", f"episode lengths {n.min()} to {n.max()}, median {int(np.median(n))}")
    for name, (height, width) in store.spec.cameras.items():
        report.add("note", f"camera '{name}' {height} x {width} at {store.spec.fps:g} fps")
    if (action := store.spec.action) is not None:
        units = ", ".join(f"{a} [{u}]" for a, u in zip(action.names, action.units, strict=True))
        report.add(
            "note", f"action {units}; {action.mode}, frame '{action.frame}', {action.rate_hz:g} Hz"
        )


def _check_chunks(store: EpisodeStore, name: str, report: Report) -> bool:
    """Whether every chunk is there and whole."""
    missing, short = store.bad_chunks(name)
    for label, keys in (("missing", missing), ("cut short", short)):
        if keys:
            report.add(
                "error",
                f"the store is truncated: {len(keys)} chunks of '{name}' {label}, "
                f"first '{keys[0]}'",
            )
    return not missing and not short


def _check_numbers(store: EpisodeStore, name: str, report: Report) -> None:
    values, names = store.all_rows(name), _dimension_names(store, name)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row = int(bad[0, 0])
        episode = int(np.searchsorted(store.starts, row, side="right") - 1)
        report.add(
            "error",
            f"stream '{name}' has {len(bad)} NaN or infinite values, the first in episode "
            f"{episode} at step {row - int(store.starts[episode])}, dim '{names[bad[0, 1]]}'",
        )
        return
    low, high = values.min(0), values.max(0)
    for i, dim in enumerate(names):
        report.add("note", f"'{name}.{dim}' lies in {low[i]:.4g} .. {high[i]:.4g}")
        if high[i] - low[i] < 1e-4:
            report.add("warning", f"'{name}.{dim}' is constant ({low[i]:.4g})")
    action = store.spec.action
    if name == "action" and action is not None:
        for i, dim in enumerate(names):
            least = -np.inf if action.low is None else action.low[i]
            most = np.inf if action.high is None else action.high[i]
            outside = float(((values[:, i] < least) | (values[:, i] > most)).mean())
            if outside > 0:
                share = f"{100 * outside:.2g} %"
                text = f"{share} of 'action.{dim}' lie outside the spec's {least:g} .. {most:g}"
                report.add("error" if outside > 0.05 else "warning", f"{text} {action.units[i]}")


def _check_times(store: EpisodeStore, report: Report) -> None:
    """Compare the nominal rate with the time stamps, where there are any in microseconds."""
    if not store.has(TIMESTAMP):
        return
    stamps = store.all_rows(TIMESTAMP)
    if stamps.dtype.kind not in "iu" or stamps.size != len(stamps) or len(stamps) < 2:
        return
    periods = np.diff(stamps.reshape(-1).astype(np.int64)) / 1e6
    periods = np.delete(periods, store.starts[1:] - 1)  # from one episode to the next
    if len(periods) == 0:
        return
    usual, fps = float(np.median(periods)), store.spec.fps
    gaps = np.delete(gaps_in(stamps, fps), store.starts[1:] - 1)
    if gaps.mean() > 0.5 or not usual * fps > 0.75:
        report.add(
            "error",
            f"by their time stamps the steps are {usual:g} s apart, by the store's {fps:g} Hz they "
            f"should be {1 / fps:g} s apart: import it again from what is complete",
        )
    elif gaps.any():
        report.add(
            "warning",
            f"{gaps.sum()} of {len(periods)} steps come after a gap of more than {LARGEST_GAP:g} "
            f"periods, the longest of {periods.max():g} s: windows across them are left out",
        )
    else:
        report.add("note", f"time stamps agree with {fps:g} Hz: {usual:g} s from step to step")


def _check_windows(store: EpisodeStore, windows: int, seed: int, report: Report) -> None:
    span = int(min(CHECK_SPAN, store.lengths.max()))
    offsets = tuple(range(span))
    numbers = dict.fromkeys(store.spec.state, offsets)
    window = Window(
        video=dict.fromkeys(store.spec.cameras, offsets),
        state=numbers,
        actions=offsets if store.spec.action is not None else (),
    )
    plain = Normalizer.fit(
        {n: np.eye(2, _width(store, n)) for n in _number_streams(store)}, "identity"
    )
    # Gaps are told of by `_check_times`.
    dataset = WindowDataset(store, window, np.arange(len(store)), plain, gaps="keep")
    chosen = np.random.default_rng(seed).choice(
        len(dataset), size=min(windows, len(dataset)), replace=False
    )
    began = time.perf_counter()
    try:
        for _ in ordered_batches(dataset, batch_size=1, chosen=chosen):
            pass
    except UserError as error:
        report.add("error", str(error))
        return
    report.windows_per_second = len(chosen) / max(time.perf_counter() - began, 1e-9)
    report.add("note", f"{len(chosen)} windows of {span} steps read")


def _number_streams(store: EpisodeStore) -> list[str]:
    return [name for name in store.streams if name not in store.spec.cameras]


def _dimension_names(store: EpisodeStore, name: str) -> tuple[str, ...]:
    if name in store.spec.state:
        return store.spec.state[name]
    if name == "reward":
        return ("reward",)
    assert store.spec.action is not None
    return store.spec.action.names


def _width(store: EpisodeStore, name: str) -> int:
    return len(_dimension_names(store, name))
