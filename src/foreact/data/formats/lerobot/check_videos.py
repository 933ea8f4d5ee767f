"""Whether the videos of a LeRobot set have a picture for every row, and the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foreact.data.formats.lerobot.episodes import VideoPlaces
from foreact.data.formats.lerobot.readers import STAMP_ERROR
from foreact.data.formats.mp4_index import look_at_video
from foreact.data.stores.findings import Finding
from foreact.errors import UserError
from foreact.progress import Progress

if TYPE_CHECKING:
    from foreact.data.formats.lerobot.store import LeRobotStore

LEROBOT_TOLERANCE = 1e-4
"""Seconds; lerobot refuses a picture that is further from its row's time."""


def check_videos(store: LeRobotStore) -> list[Finding]:
    """Scan every video file that a camera of the spec uses."""
    used = [
        (name, store.episodes.videos[feature.key], number)
        for name, feature in store.features.items()
        if feature.kind == "video" and name in store.spec.cameras
        for number in range(len(store.episodes.videos[feature.key].files))
    ]
    found = []
    for name, places, number in Progress(used, desc="scan", unit="video"):
        try:
            found += _check_file(store, name, places, number)
        except UserError as error:
            found.append(Finding("error", str(error)))
    return found


def _check_file(
    store: LeRobotStore, camera: str, places: VideoPlaces, number: int
) -> list[Finding]:
    file, fps = places.files[number], store.facts.fps
    where = file.relative_to(store.path)
    episodes = np.flatnonzero(places.file_of == number)
    episodes = episodes[np.argsort(places.start[episodes], kind="stable")]
    index = store.frames.index(file)
    found, rows = [], int(store.lengths[episodes].sum())
    if (size := look_at_video(file).size) != store.spec.cameras[camera]:
        text = f"{where} has pictures of {size}, the first file of {store.spec.cameras[camera]}"
        found.append(Finding("error", text))
    if len(index) < rows:
        text = f"{where} has {len(index)} pictures for {rows} rows: pictures slide against actions"
        found.append(Finding("error", text))
    off, still, absent = 0.0, 0, []
    for episode in episodes:
        start, length = int(store.starts[episode]), int(store.lengths[episode])
        times = places.start[episode] + store.seconds[start : start + length]
        numbers = index.nearest(times)
        distance = float(np.abs(index.times[numbers] - times).max())
        if not distance <= 0.5 / fps + STAMP_ERROR:  # a time that is no number too
            absent.append(int(episode))
        else:
            off = max(off, distance)
        still += int((np.diff(numbers) == 0).sum())
    if absent:
        text = f"{where} lacks pictures of {len(absent)} episodes, first episode {absent[0]}"
        found.append(Finding("error", text))
    if still:
        text = f"{where} shows {still} steps the picture of the step before, by its time"
        found.append(Finding("warning", text))
    if off > LEROBOT_TOLERANCE:
        text = (
            f"{where} is up to {off:.4f} s off the rows' times; here the nearest picture is taken, "
            f"lerobot refuses more than {LEROBOT_TOLERANCE:g} s"
        )
        found.append(Finding("warning", text))
    return found + _check_neighbours(store, str(where), places, episodes)


def _check_neighbours(
    store: LeRobotStore, where: str, places: VideoPlaces, episodes: np.ndarray
) -> list[Finding]:
    """Episodes in the order of their pictures: do they overlap, or leave pictures between them?"""
    period, found = 1 / store.facts.fps, []
    last = store.seconds[store.starts[episodes] + store.lengths[episodes] - 1]
    ends = places.start[episodes] + last + period
    between = places.start[episodes[1:]] - ends[:-1]
    over = np.flatnonzero(between < -period / 2)
    if len(over):
        first, second = episodes[over[0]], episodes[over[0] + 1]
        text = f"in {where} the pictures of episode {first} run into those of episode {second}"
        found.append(Finding("error", text))
    spare = np.flatnonzero(between > period / 2)
    if len(spare):
        text = (
            f"{where} has {between[spare].sum():.1f} s of pictures between {len(spare)} pairs of "
            "episodes, as discarded takes leave them; they are not read"
        )
        found.append(Finding("note", text))
    return found
