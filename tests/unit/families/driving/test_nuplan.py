"""nuPlan from its data bases and images into a store."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.driving_worlds import SIZE, START, drive, write_nuplan

from foreact.data.inspect import check_store
from foreact.data.stores.store import open_store
from foreact.errors import UserError
from foreact.families.driving.data.drives import measured_rate
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
    drives = open_store(tmp_path / "s.zarr")
    assert drives.names == list(LOGS)
    assert drives.spec.fps == 10.0
    np.testing.assert_array_equal(drives.all_rows("ego_pose"), np.concatenate(list(LOGS.values())))
    np.testing.assert_array_equal(
        drives.all_rows("timestamp")[:12], START + 100_000 * np.arange(12)
    )
    means = drives.read(0, 0, 12, ["front"])["front"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(np.diff(means), 1.0, atol=0.5)
    assert bytes_before == {p: p.read_bytes() for p in (tmp_path / "db").rglob("*.db")}


def test_logs_without_images_are_left_out_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nuplan(tmp_path / "db", tmp_path / "images", LOGS)
    (tmp_path / "images" / next(iter(LOGS))).rename(tmp_path / "elsewhere")
    take(tmp_path)
    table = capsys.readouterr().out
    assert re.search(r"episodes +2 +1 +1  1 without any image in \S+, such as 2021\S+0\.38", table)
    assert re.search(r"images +25 +13 +12  12 not in \S+, such as 2021\S+/CAM_F0/00000.jpg", table)
    assert open_store(tmp_path / "s.zarr").info("name").tolist() == [list(LOGS)[1]]


def test_what_the_tables_do_not_join_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nuplan(tmp_path / "db", tmp_path / "images", LOGS | {"lost": drive(4)})
    names = list(LOGS)
    for log, change in (
        (names[0], "DELETE FROM image"),
        (names[1], "UPDATE image SET ego_pose_token = NULL WHERE rowid % 6 = 1"),
        ("lost", "DELETE FROM ego_pose"),
    ):
        with closing(sqlite3.connect(tmp_path / f"db/{log}.db")) as base, base:
            base.execute(change)
    account = import_nuplan(
        tmp_path / "db", tmp_path / "images", tmp_path / "s.zarr", height=18, width=32
    )
    assert (account.found("episodes"), account.episodes) == (3, 1)
    assert (account.found("images"), account.taken("images")) == (17, 8)
    table = capsys.readouterr().out
    assert f"1 without any image of camera CAM_F0, such as {names[0]}" in table
    assert "1 without any image with an ego pose of camera CAM_F0, such as lost" in table
    assert "9 without an ego pose, such as " in table
    assert open_store(tmp_path / "s.zarr").lengths.tolist() == [8]


def test_the_rate_is_that_of_the_images_which_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nuplan(tmp_path / "db", tmp_path / "images", {"a": drive(31, period=0.1)})
    for number in range(31):
        if number % 5:
            (tmp_path / f"images/a/CAM_F0/{number:05d}.jpg").unlink()
    take(tmp_path)
    assert "has 2 frames per second: its frames are 0.5 s apart" in capsys.readouterr().out
    assert open_store(tmp_path / "s.zarr").spec.fps == 2.0
    assert check_store(tmp_path / "s.zarr").ok


@pytest.mark.parametrize(
    ("seconds", "rate"),
    [
        ([0.1] * 20, 10.0),
        ([0.1, 0.11, 0.09, 0.1, 5.0, 0.1], 10.0),  # a gap
        ([0.5] * 9, 2.0),
        ([0.5, 0.5, 1.0, 0.5, 0.5], 2.0),
        ([0.05] * 9, 20.0),
        ([], 10.0),
    ],
)
def test_a_rate_is_measured_where_frames_are_evenly_missing(
    seconds: list[float], rate: float
) -> None:
    stamps = START + np.rint(np.cumsum([0.0, *seconds]) * 1e6).astype(np.int64)
    assert measured_rate([stamps], 10.0) == rate


def test_time_stamps_of_another_unit_are_refused() -> None:
    with pytest.raises(UserError, match="should be microseconds, 100000 apart"):
        measured_rate([np.arange(0, 1000, 100)], 10.0)


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
    with closing(sqlite3.connect(tmp_path / "db/a.db")) as base, base:
        base.execute("UPDATE ego_pose SET qw = x'ff' WHERE rowid = 2")
    with pytest.raises(UserError, match=r"a\.db cannot be read as a log of nuPlan \(an ego pose"):
        take(tmp_path)
    write_nuplan(tmp_path / "db/again", tmp_path / "images", {"a": drive(3)})
    with pytest.raises(UserError, match="the log 'a' twice"):
        take(tmp_path)
    assert not (tmp_path / "s.zarr").exists()
