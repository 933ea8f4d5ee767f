"""Cases about driving data: ego-trajectory windows, OpenDV
windows, mixing, what a run has not seen.
"""

from __future__ import annotations

import copy
import json

import numpy as np
from parity.registry import Case, adapter

from foreact.data.windows.loader import Windows
from foreact.data.windows.mixing import Subset, mix
from foreact.families.driving.data import ego
from foreact.families.driving.data.remaining import remaining
from foreact.families.driving.data.token_folders import TokenFolders, TrajectoryTokens
from foreact.families.driving.data.trajectories import Trajectories
from foreact.families.driving.data.windows import DrivingWindows
from foreact.families.driving.released.trajectories import open_trajectories, read_trajectory_pickle
from foreact.types import Batch

RAW_RATE_HZ = 2.0  # that of the model; the timestamps' gaps are kept, so it decides nothing


@adapter("vavam", "dataset_nuscenes", "dataset_nuplan")
def ego_trajectories(case: Case) -> None:
    config, camera = case.config, case.config["camera"]
    records = read_trajectory_pickle(case.folder / "data.pkl")
    assert records == json.loads((case.folder / "data.json").read_text())
    assert len(records) == case.meta["n_records"]
    before = copy.deepcopy(records)
    trajectories = Trajectories.from_records(records, camera, "case")
    assert records == before
    opened = open_trajectories(case.folder / "data.pkl", camera)
    assert opened.files == trajectories.files
    drives = TrajectoryTokens(
        trajectories, case.folder / config["tokens_rootdir"], rate_hz=RAW_RATE_HZ
    )

    options = {
        "frames": config["sequence_length"],
        "stride": config["subsampling_factor"],
        "gaps": "keep",
    }
    horizon = config["action_length"]
    reference = DrivingWindows(drives, horizon=horizon, command_horizon="reference", **options)
    plan = DrivingWindows(drives, horizon=horizon, **options)
    tokens_only = DrivingWindows(drives, horizon=None, future=horizon, **options)
    assert len(reference) == len(plan) == len(tokens_only) == case.meta["len"]
    everything = np.arange(len(reference))
    case.check("sequences_indices", reference.rows(everything)[:, : reference.frames])

    for name, item in case.meta["items"].items():
        chosen = np.array([item["window_idx"]])
        rows = reference.rows(chosen)
        origin, targets = reference.poses(chosen)
        batch = reference.batch(chosen)
        assert batch.plans is not None
        assert batch.commands is not None
        frames = rows[0, : reference.frames]
        rotations = ego.relative_rotations(origin, targets)
        times = trajectories.timestamps[frames]
        case.check(f"{name}.positions", batch.plans[0])
        case.check(f"{name}.rotations", rotations[0])
        case.check(f"{name}.timestamps", (times - times[0]) / 1e6)
        case.check(f"{name}.high_level_command", batch.commands[0])
        case.check(f"{name}.visual_tokens", batch.tokens["front"][0])
        full = plan.batch(chosen).commands
        assert full is not None
        case.check(f"{name}.command_full_horizon", full[0])
        if config["with_yaw_rate"]:
            case.check(f"{name}.yaw_rate", ego.yaw_rate(rotations)[0])
            assert reference.yaw_rates(chosen)[0] == ego.yaw_rate(rotations)[0].max()
        assert [trajectories.files[row] for row in frames] == item["file_paths"]
        (episode, last), *_ = reference.anchors.at(chosen).tolist()
        assert [trajectories.names[episode]] * len(frames) == item["scene_names"]
        assert item["tokens_only_video_id"] == trajectories.names[episode]
        assert last == frames[-1] - trajectories.starts[episode]
        assert (tokens_only.batch(chosen).tokens["front"] == batch.tokens["front"]).all()


@adapter("vavam", "dataset_opendv")
def opendv(case: Case) -> None:
    config = case.config
    drives = TokenFolders(case.folder / "flat_tokens", config["video_list"])
    windows = DrivingWindows(
        drives, frames=config["sequence_length"], stride=config["subsampling_factor"], horizon=None
    )
    assert len(windows) == case.meta["len"]
    assert int(drives.lengths.sum()) == case.meta["total_nb_frames"]
    index, rows = windows.anchors.at(np.arange(len(windows))), windows.rows(np.arange(len(windows)))
    found = [
        [drives.names[e], int(row - drives.starts[e])]
        for (e, _), row in zip(index, rows[:, 0], strict=True)
    ]
    assert found == case.meta["windows"]
    for number, item in case.meta["items"].items():
        chosen = np.array([item["window_idx"]])
        case.check(f"item{number}.visual_tokens", windows.batch(chosen).tokens["front"][0])
        assert drives.names[index[int(number), 0]] == item["video_id"]
        assert index[int(number), 1] == item["frame_idx"]


class Numbers:
    """Windows of a given number without content."""

    augments = False

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def load(self) -> None:
        """Nothing to load."""

    def batch(self, chosen: np.ndarray, rngs: object = None) -> Batch:
        return Batch()


@adapter("vavam", "data_mixing")
def data_mixing(case: Case) -> None:
    for entry in case.meta["mixes"]:
        parts: list[Windows] = [Numbers(n) for n in entry["lengths"]]
        mixed = mix(parts, entry["ratios"], entry["total_number_of_samples"], entry["seed"])
        assert len(mixed) == entry["result_len"]
        subsets = [part for part in mixed.parts if isinstance(part, Subset)]
        items = [[[parts.index(s.windows), row] for row in s.rows.tolist()] for s in subsets]
        assert [len(part) for part in items] == [n for n in entry["part_lengths"] if n]
        firsts = [first for first in entry["first_items_per_part"] if first]
        assert [part[: len(first)] for part, first in zip(items, firsts, strict=True)] == firsts
        if entry["items"] is not None:
            assert [item for part in items for item in part] == entry["items"]


@adapter("vavam", "remaining_indices")
def remaining_indices(case: Case) -> None:
    config = case.config
    options = {
        "world": config["world_size"],
        "batch_size": config["batch_size"],
        "seed": config["seed"],
    }
    options["drop_last"] = config["drop_last"]
    every = remaining(config["dataset_len"], steps=0, **options)
    left = remaining(config["dataset_len"], steps=config["steps"], **options)
    seen = [
        whole[: len(whole) - len(rest)].tolist() for whole, rest in zip(every, left, strict=True)
    ]
    assert seen == case.meta["seen_per_rank"]
    assert [rest.tolist() for rest in left] == case.meta["remaining_per_rank"]
    assert np.concatenate(left).tolist() == case.meta["remaining"]
