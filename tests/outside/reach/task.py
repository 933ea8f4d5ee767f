"""The task: what the numbers mean, where it is acted out, what a score means."""

from foreact.worlds import Task
from reach.world import SPEC

TASK = Task(
    name="reach",
    spec=SPEC,
    camera="top",
    env="reach.world:ReachWorld",
    score_note="An episode's score is how near the dot came to the square: 1 is on it.",
)
