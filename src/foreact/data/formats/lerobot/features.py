"""The features of a set that our writer makes: names, shapes and what is known of the videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreact.data.formats.lerobot.info import (
    ACTION,
    BOOKKEEPING,
    CAMERA_PREFIX,
    REWARD,
    STATE_PREFIX,
)
from foreact.data.formats.lerobot.video_writer import Codec
from foreact.types import StreamSpec


def camera_key(camera: str) -> str:
    """The name in a set of a camera of ours."""
    return f"{CAMERA_PREFIX}{camera}"


def state_key(stream: str) -> str:
    """The name in a set of a state of ours; "next.done" and such of LeRobot's own stay."""
    return stream if stream.startswith("next.") else f"{STATE_PREFIX}{stream}"


def plain_rate(fps: float) -> float | int:
    """Frames per second as JSON should have them: lerobot writes whole numbers as integers."""
    return int(fps) if float(fps).is_integer() else fps


def written_features(
    spec: StreamSpec, codec: Codec, pix_fmts: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The entry "features" of meta/info.json.

    Args:
        spec: of the store.
        codec: of the videos.
        pix_fmts: of each camera's videos, by its name in the set.
    """
    features: dict[str, dict[str, Any]] = {}
    for name, (height, width) in spec.cameras.items():
        features[camera_key(name)] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": codec,
                "video.pix_fmt": pix_fmts[camera_key(name)],
                "video.is_depth_map": False,
                "video.fps": plain_rate(spec.fps),
                "video.channels": 3,
                "has_audio": False,
            },
        }
    for name, names in spec.state.items():
        features[state_key(name)] = _vector(names)
    if spec.action is not None:
        features[ACTION] = _vector(spec.action.names)
    if spec.has_reward:
        features[REWARD] = {"dtype": "float32", "shape": [1], "names": None}
    for key in BOOKKEEPING:
        dtype = "float32" if key == "timestamp" else "int64"
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def _vector(names: Sequence[str]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": list(names)}
