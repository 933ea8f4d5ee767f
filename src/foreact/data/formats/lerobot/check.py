"""What `foreact data check` adds for a LeRobot set: everything that files and rows can show.

Videos are scanned for the times of their pictures, not decoded; a picture that cannot be decoded is
found by the windows that the check reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foreact.data.formats.lerobot.check_pictures import check_pictures
from foreact.data.formats.lerobot.check_videos import check_videos
from foreact.data.formats.lerobot.episodes import orphans
from foreact.data.formats.lerobot.info import BOOKKEEPING
from foreact.data.formats.lerobot.readers import STAMP_ERROR
from foreact.data.formats.lerobot.stats import number_stats
from foreact.data.formats.lerobot.tables import open_parquet
from foreact.data.stores.findings import Finding
from foreact.errors import UserError, in_short
from foreact.files import parse_json, read_text

if TYPE_CHECKING:
    from foreact.data.formats.lerobot.store import LeRobotStore

EXACT_IN_FLOAT32 = 2**24
STATS_TOLERANCE = 1e-3
"""Share of a dimension's range by which stored statistics may differ from the rows'."""


def check_set(store: LeRobotStore) -> list[Finding]:
    """Compare all parts of a set with each other; see `EpisodeStore.findings`."""
    return [
        *_check_features(store),
        *_check_columns(store),
        *_check_counts(store),
        *_check_rows(store),
        *_check_tasks(store),
        *check_videos(store),
        *check_pictures(store),
        *_check_stats(store),
        *_check_orphans(store),
    ]


def _check_features(store: LeRobotStore) -> list[Finding]:
    found = [
        Finding("note", f"feature '{key}' {why} is left out")
        for key, why in store.facts.left_out().items()
    ]
    if store.native and store.spec.action is not None and store.spec.action.frame == "unknown":
        text = "nothing tells mode, frame and units of the actions; give a --task that does"
        found.append(Finding("note", text))
    for name, feature in store.features.items():
        if name in store.spec.cameras:
            height, width = store.spec.cameras[name]
            if sorted(feature.shape) != sorted((height, width, 3)):
                text = f"'{feature.key}' is {height} x {width}, info.json says {feature.shape}"
                found.append(Finding("warning", text))
        elif name in store.spec.state and "int" in feature.dtype:
            largest = np.abs(store.rows.whole(feature.key, feature.shape).astype(np.float64)).max()
            if largest > EXACT_IN_FLOAT32:
                text = f"'{name}' has integers up to {largest:.0f}, which float32 rounds"
                found.append(Finding("warning", text))
    return found


def _check_columns(store: LeRobotStore) -> list[Finding]:
    """Columns that info.json does not declare; they are not read."""
    if not store.rows.files:
        return []
    with open_parquet(store.rows.files[0]) as opened:
        extra = [name for name in opened.schema_arrow.names if name not in store.facts.features]
    if not extra:
        return []
    text = f"the data files have columns that info.json does not declare: {', '.join(extra)}"
    return [Finding("warning", f"{text}; they are left out, and lerobot refuses the set")]


def _check_counts(store: LeRobotStore) -> list[Finding]:
    """Counts in info.json; lerobot's own reader trusts them."""
    counts = {
        "total_episodes": len(store),
        "total_frames": len(store.rows),
        "total_tasks": len(store.tasks),
    }
    raw = store.facts.raw
    found = [
        Finding("warning", f"info.json says {entry} {raw.get(entry)}, there are {count}")
        for entry, count in counts.items()
        if raw.get(entry) != count
    ]
    splits = raw.get("splits")
    if isinstance(splits, dict) and len(splits) > 1:
        found.append(Finding("note", f"info.json divides the episodes: {splits}; not used"))
    return found


def _check_rows(store: LeRobotStore) -> list[Finding]:
    found = []
    expected = {"index": np.arange(len(store.rows)), "frame_index": store.step_numbers}
    for name, numbers in expected.items():
        wrong = np.flatnonzero(store.rows.whole(name, [1])[:, 0] != numbers)
        if len(wrong):
            text = f"'{name}' of {len(wrong)} rows does not count on, first at row {wrong[0]}"
            found.append(Finding("warning", text))
    stamps = store.rows.whole("timestamp", [1])[:, 0].astype(np.float64)
    fps, last = store.facts.fps, store.starts[1:] - 1
    periods = np.delete(np.diff(stamps), last)
    if (stuck := int((~(periods > 0)).sum() + (~np.isfinite(stamps[store.starts])).sum())) > 0:
        text = f"time stamps of {stuck} rows are no numbers, or do not rise within an episode"
        found.append(Finding("error", text))
    off = np.abs(stamps - store.step_numbers / fps) > STAMP_ERROR
    if off.any():
        usual = float(np.median(periods)) if len(periods) else 0.0
        rate = f"{1 / usual:.4g} Hz" if usual > 0 else "no rate"
        text = (
            f"time stamps of {off.sum()} of {len(off)} rows are not frame_index / fps with the "
            f"{fps:g} of info.json; their usual step of {usual:.6g} s is {rate}"
        )
        found.append(Finding("warning", text))
    return found


def _check_tasks(store: LeRobotStore) -> list[Finding]:
    numbers, found = store.task_index, []
    outside = np.flatnonzero((numbers < 0) | (numbers >= max(1, len(store.tasks))))
    if len(outside):
        text = (
            f"task_index of {len(outside)} rows is none of the {len(store.tasks)} tasks, first "
            f"{numbers[outside[0]]} at row {outside[0]}"
        )
        found.append(Finding("error", text))
    changes = np.flatnonzero(np.diff(numbers)) + 1
    within = np.setdiff1d(changes, store.starts)
    if len(within):
        episodes = len(np.unique(np.searchsorted(store.starts, within, side="right")))
        found.append(Finding("note", f"the instruction changes within {episodes} episodes"))
    return found


def _check_stats(store: LeRobotStore) -> list[Finding]:
    """Compare stats.json with the rows; nothing else uses it."""
    file = store.path / "meta" / "stats.json"
    if not file.is_file():
        return [Finding("note", "there is no meta/stats.json; lerobot needs it to train")]
    try:
        stored = parse_json(read_text(file))
        wrong = [
            name
            for name, feature in store.facts.features.items()
            if feature.kind == "numbers" and name not in BOOKKEEPING and name in stored
            if _differ(stored[name], store.rows.whole(name, feature.shape))
        ]
    except UserError:
        raise
    except Exception as error:  # whatever the file holds
        return [Finding("warning", f"meta/stats.json is damaged ({in_short(error)})")]
    if not wrong:
        return []
    text = f"meta/stats.json differs from the rows in {', '.join(wrong)}; it is not used here"
    return [Finding("warning", text)]


def _differ(stored: dict[str, Any], values: np.ndarray) -> bool:
    if not np.isfinite(values).all():
        return False  # told by the check of the numbers
    own = number_stats(values)
    span = np.maximum(np.array(own["max"]) - np.array(own["min"]), 1e-6)
    for name in ("min", "max", "mean", "std"):
        theirs = np.asarray(stored[name], np.float64).reshape(-1)
        if theirs.shape != span.shape:
            return True
        if (np.abs(theirs - np.array(own[name])) > STATS_TOLERANCE * span).any():
            return True
    return False


def _check_orphans(store: LeRobotStore) -> list[Finding]:
    found = orphans(store.facts, store.episodes)
    if not found:
        return []
    first = found[0].relative_to(store.path)
    rows = any(file.suffix.lower() == ".parquet" for file in found)
    text = f"{len(found)} files belong to no episode, first {first}"
    return [Finding("warning", text + ("; lerobot would add its rows" if rows else ""))]
