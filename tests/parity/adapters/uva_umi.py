"""Cases about UMI: windows of hand poses, acting in poses, smoothing."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from parity.adapters.uva_poses import NAMES
from parity.registry import Case, adapter

from foreact.data.stores.store import open_store
from foreact.data.windows.choosing import share_of_episodes
from foreact.data.windows.hand_poses import HandPoses, umi_hands
from foreact.data.windows.hand_windows import HandWindows
from foreact.data.windows.members import MemberStore
from foreact.data.windows.window import Window
from foreact.policies.smoothing import smooth
from foreact.tasks.umi import umi_spec

CAMERA = "camera0_rgb"


class Recorded:
    """In place of a generator: the noise that the reference drew."""

    def __init__(self, noise: np.ndarray) -> None:
        self.noise = noise

    def normal(self, scale: float, size: tuple[int, ...]) -> np.ndarray:
        assert size == self.noise.shape
        return self.noise


@adapter("uva", "umi_dataset_item")
def umi_dataset_item(case: Case) -> None:
    config = case.config
    assert not config["random_img_sampling"]
    values = {name: tensor.numpy() for name, tensor in case.io.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "umi.zarr"
        group = zarr.open_group(str(path), mode="w", zarr_format=2)
        for name in values:
            if name.startswith("zarr/"):
                group.create_array(name.removeprefix("zarr/"), data=values[name])
        store = open_store(path, umi_spec(size=config["image_size"]))
        used, _ = share_of_episodes(
            np.arange(len(store)), config["used_episode_ratio"], config["seed"]
        )
        case.check("out/used_episode_indices", used)
        hands = umi_hands(stride=config["down_sample_steps"])
        low, frames = tuple(range(-15, 17)), tuple(range(-12, 17, 4))
        windows = HandWindows(
            MemberStore(store, mirror_mask=config["mask_mirror"]),
            hands,
            Window(video={CAMERA: frames}, state=dict.fromkeys(hands.state, low), actions=low),
            used,
        )
        case.check("out/index_pool", windows.index)
        items = sorted({int(m[1]) for m in (re.match(r"item(\d+)/", k) for k in values) if m})
        assert items
        for item in items:
            noise: Any = Recorded(values[f"item{item}/draw/start_pose_noise"])
            batch = windows.batch(np.array([item]), [noise])
            case.check(f"item{item}/obs/{CAMERA}", batch.video[CAMERA][0])
            for name in hands.state:
                case.check(f"item{item}/obs/{name}", batch.state[name][0])
            assert batch.actions is not None
            case.check(f"item{item}/action", batch.actions[0])
            # Where a frame lies among the steps of the states.
            places = torch.tensor([[low.index(o)] for o in frames], dtype=torch.float32)
            case.check(f"item{item}/obs/img_indices", places)


@adapter("uva", "umi_real_obs_action")
def umi_real_obs_action(case: Case) -> None:
    values = {name: tensor.numpy() for name, tensor in case.io.items()}
    config = case.config
    hands = HandPoses(
        hands=umi_hands(config["n_robots"]).hands,
        state_reference=NAMES[config["obs_pose_repr"]],
        action_reference=NAMES[config["action_pose_repr"]],
    )
    seen = {
        name.removeprefix("in/env/"): value
        for name, value in values.items()
        if name.startswith("in/env/")
    }
    starts = {
        str(hand.start): values[f"in/episode_start_pose/{number}"]
        for number, hand in enumerate(hands.hands)
    }
    between = values["in/tx_robot1_robot0"] if config["n_robots"] == 2 else None
    states = hands.states(seen, starts=starts, between=between)
    expected = [name for name in values if name.startswith("out/obs/")]
    assert len(expected) >= 4
    for name in expected:
        case.check(name, states[name.removeprefix("out/obs/")])
    now = {name: value[-1] for name, value in seen.items()}
    case.check("out/env_action", hands.absolute(values["in/action"], now))


@adapter("uva", "smooth_action")
def smooth_action(case: Case) -> None:
    case.check("out/smoothed", smooth(case.io["in/action"].numpy(), "mean"))
