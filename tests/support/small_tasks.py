"""The tasks of other projects' data at the size of the small files of these tests; importable."""

from __future__ import annotations

import dataclasses

from foreact.tasks.libero10 import TASK as LIBERO10
from foreact.tasks.tool_hang import TASK as TOOL_HANG_TASK
from foreact.tasks.umi import TASK as UMI_TASK
from foreact.tasks.umi import umi_spec
from foreact.worlds import Task
from support import manipulation_files, umi_files


def _small(task: Task, size: int) -> Task:
    cameras = dict.fromkeys(task.spec.cameras, (size, size))
    return dataclasses.replace(task, spec=dataclasses.replace(task.spec, cameras=cameras))


TOOL_HANG = _small(TOOL_HANG_TASK, manipulation_files.SIZE)
LIBERO = _small(LIBERO10, manipulation_files.SIZE)
UMI = dataclasses.replace(UMI_TASK, spec=umi_spec(size=umi_files.SIZE))
