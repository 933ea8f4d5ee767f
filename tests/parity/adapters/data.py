"""Cases about data: scaling, windows and splits, the PushT file."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from parity.registry import Case, adapter
from support.arrays import bare_store

from foreact.data.stores.store import open_store
from foreact.data.windows.anchors import find_anchors
from foreact.data.windows.loader import WindowDataset
from foreact.data.windows.normalize import Mode, Normalizer, fit_stream
from foreact.data.windows.split import downsample_episodes, split_episodes
from foreact.data.windows.window import Window, place
from foreact.types import ActionSpec, StreamSpec

MODES: dict[str, Mode] = {
    "limits": "limits",
    "gaussian": "gaussian",
    "limits_nooffset": "symmetric",
}
POSE_MODES: dict[str, Mode] = {
    "abs_action": "positions",
    "abs_action_dual": "positions",
    "range": "range",
}


@adapter("uva", "normalizer")
def normalizer(case: Case) -> None:
    inputs = {
        k.removeprefix("in/"): v
        for k, v in case.io.items()
        if k.startswith("in/") and k.count("/") == 1
    }
    queries = {
        k.removeprefix("in/query/"): v for k, v in case.io.items() if k.startswith("in/query/")
    }
    for label, mode in MODES.items():
        fitted = Normalizer.fit({name: inputs[name].numpy() for name in queries}, mode)
        prefix = f"{label}/state_dict/"
        state = {k.removeprefix(prefix): v for k, v in case.io.items() if k.startswith(prefix)}
        loaded = Normalizer.from_reference(state)
        # The reference adds its fixed image scaling by hand.
        assert set(loaded.streams) == {*queries, "image"}
        assert (loaded.streams["image"].scale, loaded.streams["image"].offset) == ((2.0,), (-1.0,))
        for name, query in queries.items():
            check_statistics(case, f"{prefix}params_dict.{name}.", fitted, name)
            for one in (fitted, loaded):
                case.check(f"{label}/normalized/{name}", one.encode(query, name))
                case.check(f"{label}/normalized/{name}", one.encode(query.numpy(), name))
                case.check(
                    f"{label}/unnormalized/{name}", one.decode(one.encode(query, name), name)
                )
    by_width = {
        v.shape[1]: v.numpy() for k, v in inputs.items() if k.startswith("action") and k != "action"
    }
    for label, mode in POSE_MODES.items():
        prefix = f"{label}/state_dict/params_dict."
        if f"{prefix}scale" in case.io:
            values = by_width[case.io[f"{prefix}scale"].shape[0]]
            fitted = Normalizer({"action": fit_stream(values, mode)})
            check_statistics(case, prefix, fitted, "action")


def check_statistics(case: Case, prefix: str, fitted: Normalizer, name: str) -> None:
    stats = fitted.streams[name]
    for key in ("scale", "offset"):
        case.check(f"{prefix}{key}", torch.tensor(getattr(stats, key)))
    for key in ("min", "max", "mean", "std"):
        case.check(f"{prefix}input_stats.{key}", torch.tensor(getattr(stats, key)))


def window_of(length: int, pad_before: int, pad_after: int, **streams: Any) -> Window:
    offsets: dict[str, Any] = {k: v or tuple(range(length)) for k, v in streams.items()}
    return Window(pad_before=pad_before, pad_after=pad_after, **offsets)


def every_anchor(window: Window, lengths: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    anchors = find_anchors(bare_store(lengths.tolist()), window, episodes)
    return anchors.at(np.arange(len(anchors)))


@adapter("uva", "sequence_sampler")
def sequence_sampler(case: Case) -> None:
    ends = case.io["in/episode_ends"].numpy()
    lengths = np.diff(ends, prepend=0)
    starts = ends - lengths
    for label, sizes in case.config.items():
        window = window_of(
            sizes["sequence_length"], sizes["pad_before"], sizes["pad_after"], actions=None
        )
        for which, episodes in (
            ("all", np.arange(len(ends))),
            ("masked", np.flatnonzero(case.io["in/episode_mask"].numpy())),
        ):
            rows = []
            for episode, anchor in every_anchor(window, lengths, episodes):
                steps, inside = place(window.actions, anchor, lengths[episode])
                seen = np.flatnonzero(inside)
                first, last = starts[episode] + steps[seen[0]], starts[episode] + steps[seen[-1]]
                rows.append([first, last + 1, seen[0], seen[-1] + 1])
            case.check(f"{label}/indices_{which}", np.array(rows))
    for key in case.io:
        if match := re.fullmatch(r"val_mask/n(\d+)_r([\d.]+)_s(\d+)", key):
            n = int(match[1])
            case.check(
                key, np.isin(np.arange(n), split_episodes(n, float(match[2]), int(match[3]))[1])
            )
        if match := re.fullmatch(r"downsample_mask/n(\d+)_max(\d+)_s(\d+)", key):
            n = int(match[1])
            case.check(
                key,
                np.isin(
                    np.arange(n), downsample_episodes(np.arange(n), int(match[2]), int(match[3]))
                ),
            )
    sizes = next(iter(case.config.values()))
    window = window_of(
        sizes["sequence_length"], sizes["pad_before"], sizes["pad_after"], actions=None
    )
    anchors = every_anchor(window, lengths, np.flatnonzero(case.io["in/episode_mask"].numpy()))
    for i in case.io["sample/picked"].tolist():
        episode, anchor = anchors[i]
        rows = starts[episode] + place(window.actions, anchor, lengths[episode])[0]
        for stream in ("x", "y"):
            case.check(f"sample/{i}/{stream}", case.io[f"in/{stream}"][torch.from_numpy(rows)])


@adapter("uva", "pusht_dataset")
def pusht_dataset(case: Case) -> None:
    config = case.config
    stored = {
        k.removeprefix("zarr/"): v.numpy() for k, v in case.io.items() if k.startswith("zarr/")
    }
    state_dim, action_dim = stored["data/state"].shape[1], stored["data/action"].shape[1]
    names = tuple(f"a{i}" for i in range(action_dim))
    spec = StreamSpec(
        cameras={"img": stored["data/img"].shape[1:3]},
        fps=10.0,
        action=ActionSpec(
            names=names, units=("px",) * action_dim, frame="world", mode="absolute", rate_hz=10.0
        ),
        state={"state": tuple(f"s{i}" for i in range(state_dim))},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pusht.zarr"
        group = zarr.open_group(str(path), mode="w", zarr_format=2)
        for name, values in stored.items():
            group.create_array(
                name, data=values.astype(np.float32) if name == "data/img" else values
            )
        store = open_store(path, spec)
        train, val = split_episodes(len(store), config["val_ratio"], config["seed"])
        case.check("out/train_mask", np.isin(np.arange(len(store)), train))

        # The reference fits on every episode, those for validation included, and on the agent's
        # part of the state.
        rows = np.arange(int(store.lengths.sum()))
        data = {
            "action": store.gather("action", rows),
            "agent_pos": store.gather("state", rows)[:, :2],
        }
        fitted = Normalizer.fit(data, "limits")
        prefix = "out/normalizer/"
        expected = {k.removeprefix(prefix): v for k, v in case.io.items() if k.startswith(prefix)}
        assert set(Normalizer.from_reference(expected).streams) == {*data, "image"}
        for name in data:
            check_statistics(case, f"{prefix}params_dict.{name}.", fitted, name)

        raw = Normalizer.fit_store(store, modes="identity")
        window = window_of(
            config["horizon"],
            config["pad_before"],
            config["pad_after"],
            video={"img": tuple(range(config["horizon"]))},
            state={"state": tuple(range(config["horizon"]))},
            actions=None,
        )
        for side, episodes in (("train", train), ("val", val)):
            dataset = WindowDataset(store, window, episodes, raw)
            case.check(f"out/len_{side}", torch.tensor(len(dataset)))
            for i in sorted(
                {int(k.split("/")[2]) for k in case.io if k.startswith(f"out/{side}/")}
            ):
                batch = dataset.batch(np.array([i]))
                assert batch.actions is not None
                case.check(f"out/{side}/{i}/obs/image", batch.video["img"][0])
                case.check(f"out/{side}/{i}/obs/agent_pos", batch.state["state"][0, :, :2])
                case.check(f"out/{side}/{i}/action", batch.actions[0])
