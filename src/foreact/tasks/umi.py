"""UMI: tasks shown by a gripper in a human hand, with one camera at the wrist (arXiv 2402.10329).

Nothing simulates them. Positions are in metres in the frame of a tag on the table, which no two
recordings share; rotations are axis times angle in radians. The stored start and end poses are
those of the demonstration, repeated on every row. No file stores its rate: it is the camera's.
"""

from __future__ import annotations

from foreact.data.windows.hand_poses import umi_hands
from foreact.types import StreamSpec
from foreact.worlds import Task

FPS = 59.94
POSITION, ROTATION = ("x", "y", "z"), ("rotation_x", "rotation_y", "rotation_z")


def umi_spec(robots: int = 1, size: int = 224) -> StreamSpec:
    """What the files of `robots` arms hold, in pictures of `size` pixels a side."""
    cameras, state = {}, {}
    for number in range(robots):
        cameras[f"camera{number}_rgb"] = (size, size)
        robot = f"robot{number}"
        state[f"{robot}_eef_pos"] = POSITION
        state[f"{robot}_eef_rot_axis_angle"] = ROTATION
        state[f"{robot}_gripper_width"] = ("width",)
        state[f"{robot}_demo_start_pose"] = POSITION + ROTATION
        state[f"{robot}_demo_end_pose"] = POSITION + ROTATION
    return StreamSpec(cameras=cameras, fps=FPS, state=state)


HANDS = umi_hands()
INSTRUCTIONS = {
    "cup": "place the cup on the saucer with its handle to the left",
    "towel": "fold the towel",
    "mouse": "arrange the mouse on the mouse pad",
}
"""What the people did in the three public sets; a mixture may say it in other words."""

TASK = Task(
    name="umi",
    spec=umi_spec(),
    camera="camera0_rgb",
    hands="foreact.tasks.umi:HANDS",
    proprioception={stream: len(names) for stream, names in HANDS.state.items()},
    score_note="Recordings of people; nothing scores them.",
)
