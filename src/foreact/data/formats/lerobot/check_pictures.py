"""Whether every row of a LeRobot set has its picture, where pictures lie in the rows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from foreact.data.formats.lerobot.readers import coded_pictures
from foreact.data.stores.findings import Finding
from foreact.errors import UserError, decoding
from foreact.progress import Progress

if TYPE_CHECKING:
    from foreact.data.formats.lerobot.store import LeRobotStore


def check_pictures(store: LeRobotStore) -> list[Finding]:
    """Look at the head and the checksums of every picture; pixels are not decoded."""
    found = []
    for name, feature in store.features.items():
        if feature.kind != "image" or name not in store.spec.cameras:
            continue
        wrong = []
        groups = range(len(store.rows.group_starts))
        for group in Progress(groups, desc=f"scan '{name}'", unit="part"):
            first = int(store.rows.group_starts[group])
            column, _ = store.rows.group(group, feature.key)
            for row, data in enumerate(coded_pictures(column), first):
                if fault := _fault(data, store.spec.cameras[name]):
                    wrong.append((row, fault))
        if wrong:
            row, fault = wrong[0]
            text = f"{len(wrong)} pictures of '{name}' cannot be used; {store.where(row)} {fault}"
            found.append(Finding("error", text))
    return found


def _fault(data: bytes | None, size: tuple[int, int]) -> str | None:
    """What is wrong with a coded picture of a camera of that height and width."""
    if not isinstance(data, bytes):
        return "has none, perhaps a path to a file that was not brought along"
    try:
        with decoding("it is damaged"), Image.open(io.BytesIO(data)) as image:
            found, mode = (image.height, image.width), image.mode
            image.verify()
    except UserError:
        return "is damaged"
    if found != size:
        return f"is {found[0]} x {found[1]}, the first one {size[0]} x {size[1]}"
    return f"is of mode {mode}, as depth is" if mode[0] in "IF" else None
