"""`foreact data export-lerobot`: a store as a LeRobotDataset v3.0."""

from __future__ import annotations

from pathlib import Path

from foreact.data.formats.lerobot.export import Written, export_lerobot
from foreact.data.formats.lerobot.video_writer import Codec
from foreact.data.stores.opening import open_episodes
from foreact.tasks import find_task


def export(
    store: Path,
    out: Path,
    task: str | None = None,
    codec: Codec = "h264",
    task_text: str | None = None,
    data_mb: int = 100,
    video_mb: int = 200,
    robot: str | None = None,
) -> Written:
    """Write any store as a LeRobotDataset v3.0, which lerobot trains from and its tools show.

    Args:
        store: the store, or anything else that is opened in place.
        out: a new folder for the set.
        task: what the streams mean; needed unless the store says so itself.
        codec: of the videos; every reader knows h264, av1 makes smaller files.
        task_text: the instruction, such as "Push the T onto the mark", of a store that has none.
        data_mb: size at which a new data file begins.
        video_mb: size at which a new video file begins.
        robot: name of the robot, for the set's robot_type.
    """
    episodes = open_episodes(store, None if task is None else find_task(task).spec)
    written = export_lerobot(
        episodes,
        out,
        codec=codec,
        task_text=task_text,
        data_mb=data_mb,
        video_mb=video_mb,
        robot=robot,
    )
    print(f"{written.episodes} episodes, {written.steps} steps, {written.tasks} tasks: {out}")
    return written
