"""nuPlan from its data bases and images into a store."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.driving_worlds import SIZE, START, drive, write_nuplan

from foreact.data.stores.store import open_store
from foreact.errors import UserError
from foreact.families.driving.data.drives import StoreDrives
from foreact.families.driving.data.nuplan import nuplan_logs
from foreact.families.driving.data_verbs import import_nuplan

LOGS = {
    f"2021.05.12.22.0{i}.38_veh-35_01008_01518": drive(12 + i, seed=i, period=0.1) for i in range(2)
}


def take(root: Path, **options: Any) -> None:
    import_nuplan(
        root / "db", root / "images", root / "s.zarr", height=SIZE[0], width=SIZE[1], **options
    )


def test_a_log_becomes_an_episode_with_poses_of_full_precision(tmp_path: Path) -> None:
    write_nuplan(tmp_path / "db/mini", tmp_path / "images", LOGS)
    bytes_before = {p: p.read_bytes() for p in (tmp_path / "db").rglob("*.db")}
    take(tmp_path)
    drives = StoreDrives(open_store(tmp_path / "s.zarr"))
    assert drives.names == list(LOGS)
    assert drives.rate_hz == 10.0
    np.testing.assert_array_equal(drives.poses, np.concatenate(list(LOGS.values())))
    assert drives.timestamps is not None
    np.testing.assert_array_equal(drives.timestamps[:12], START + 100_000 * np.arange(12))
    means = drives.store.read(0, 0, 12, ["front"])["front"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(np.diff(means), 1.0, atol=0.5)
    assert bytes_before == {p: p.read_bytes() for p in (tmp_path / "db").rglob("*.db")}


def test_logs_without_images_are_left_out_aloud(tmp_path: Path) -> None:
    write_nuplan(tmp_path / "db", tmp_path / "images", LOGS)
    (tmp_path / "images" / next(iter(LOGS))).rename(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="12 of 25 images .* 1 of 2 scenes have none"):
        take(tmp_path)
    assert open_store(tmp_path / "s.zarr").info("name").tolist() == [list(LOGS)[1]]


def test_chosen_logs_only(tmp_path: Path) -> None:
    write_nuplan(tmp_path / "db", tmp_path / "images", LOGS)
    (tmp_path / "val.txt").write_text(list(LOGS)[1])
    take(tmp_path, logs=tmp_path / "val.txt")
    assert open_store(tmp_path / "s.zarr").lengths.tolist() == [13]
    with pytest.raises(UserError, match="no log 'gone'"):
        nuplan_logs(tmp_path / "db", ["gone"])


def test_what_is_no_data_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"no \.db file"):
        take(tmp_path)
    log = tmp_path / "db/log.db"
    log.write_bytes(b"not sqlite" * 100)
    with pytest.raises(UserError, match=r"log\.db cannot be read as a log of nuPlan"):
        take(tmp_path)
    log.unlink()
    with closing(sqlite3.connect(log)) as base, base:
        base.execute("CREATE TABLE lidar_pc (token BLOB)")
    with pytest.raises(UserError, match="no such table"):
        take(tmp_path)
    log.unlink()
    write_nuplan(tmp_path / "db", tmp_path / "images", {"a": drive(3)})
    with pytest.raises(UserError, match="no frame of camera 'CAM_B0'"):
        take(tmp_path, camera="CAM_B0")
    write_nuplan(tmp_path / "db/again", tmp_path / "images", {"a": drive(3)})
    with pytest.raises(UserError, match="the log 'a' twice"):
        take(tmp_path)
    assert not (tmp_path / "s.zarr").exists()
