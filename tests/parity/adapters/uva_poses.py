"""Cases about rotations and poses."""

from __future__ import annotations

from typing import get_args

import numpy as np
from parity.registry import Case, adapter

from foreact.data.poses import (
    Reference,
    from_vector,
    pose_vector,
    refer,
    restore,
)
from foreact.data.rotations import Form, convert

FORMS: dict[str, Form] = {
    "axis_angle": "axis_angle",
    "quaternion": "quat_wxyz",
    "matrix": "matrix",
    "rotation_6d": "rows_6d",
}
NAMES: dict[str, Reference] = {
    "abs": "absolute",
    "rel": "legacy",
    "relative": "relative",
    "delta": "delta",
}
"""Of the reference -> ours."""


@adapter("uva", "rotation_pose")
def rotation_pose(case: Case) -> None:
    values = {name: tensor.numpy() for name, tensor in case.io.items()}
    checked = 0
    for name in values:
        # out/A_to_B: of the axis-angles; out/B_to_A_back: of what came out of that
        source, _, target = name.removeprefix("out/").removesuffix("_back").partition("_to_")
        if source not in FORMS or target not in FORMS:
            continue
        given = values["in/axis_angle"]
        if name.endswith("_back"):
            given = values[f"out/{target}_to_{source}"]
        elif source != "axis_angle":
            given = values[f"out/axis_angle_to_{source}"]
        case.check(name, convert(given, FORMS[source], FORMS[target]))
        checked += 1
    assert checked >= 8
    noisy = convert(values["in/noisy_rot6d"], "rows_6d", "matrix")
    case.check("out/noisy_rot6d_to_matrix", noisy)
    case.check("out/umi_rot6d_to_mat", noisy)
    poses = from_vector(values["in/pose6"], "axis_angle")
    case.check("out/pose_to_mat", poses)
    case.check("out/mat_to_pose10d", pose_vector(poses, "rows_6d"))
    case.check("out/pose10d_to_mat", from_vector(values["out/mat_to_pose10d"], "rows_6d"))
    case.check("out/mat_to_pose6", pose_vector(poses, "axis_angle"))
    assert set(NAMES.values()) == set(get_args(Reference))
    for name, reference in NAMES.items():
        for entry in values:
            if entry.startswith(f"out/{name}/forward_base"):
                base = poses[int(entry.removeprefix(f"out/{name}/forward_base"))]
                referred = refer(poses, base, reference)
                case.check(entry, referred)
                case.check(entry.replace("forward", "backward"), restore(referred, base, reference))
    euler = values["in/euler_XYZ"]
    x, y, z = (convert(np.eye(3)[i] * euler[:, [i]], "axis_angle", "matrix") for i in range(3))
    case.check("out/euler_XYZ_to_matrix", x @ y @ z)
