"""`data check | stats | show | import`: they find what is
wrong and say nothing where nothing is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr

from foreact.data.formats.replay_buffer import import_store
from foreact.data.formats.video import read_video
from foreact.data.inspect import check_store, format_stats, show_store, store_stats
from foreact.data.stores.derived import write_stream
from foreact.data.stores.store import StoreWriter, open_store
from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.types import ActionSpec, StreamSpec

ACTION = ActionSpec(
    names=("x", "y"),
    units=("px", "px"),
    frame="world",
    mode="absolute",
    rate_hz=10.0,
    low=(0, 0),
    high=(512, 512),
)
SPEC = StreamSpec(cameras={"img": (16, 16)}, fps=10.0, action=ACTION, state={"state": ("a", "b")})
LENGTHS = (25, 40, 18)


def make_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n = sum(LENGTHS)
    return {
        "img": rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8),
        "state": rng.normal(size=(n, 2)).astype(np.float32),
        "action": rng.uniform(0, 512, (n, 2)).astype(np.float32),
    }


def write_foreign(path: Path, zarr_format: Literal[2, 3] = 2, **change: np.ndarray) -> Path:
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    for name, values in (make_arrays() | change).items():
        group.create_array(f"data/{name}", data=values, chunks=(10, *values.shape[1:]))
    group.create_array("data/extra", data=np.zeros(sum(LENGTHS)))
    group.create_array("meta/episode_ends", data=np.cumsum(LENGTHS))
    return path


def texts(path: Path, severity: str) -> list[str]:
    return [f.text for f in check_store(path, SPEC, windows=10).findings if f.severity == severity]


def test_a_sound_store_has_no_complaints(tmp_path: Path) -> None:
    report = check_store(write_foreign(tmp_path / "s.zarr"), SPEC, windows=10)
    assert report.ok
    assert {f.severity for f in report.findings} == {"note"}
    text = str(report)
    for part in (
        "3 episodes, 83 steps",
        "lengths 18 to 40",
        "16 x 16 at 10 fps",
        "x [px]",
        "10 windows of 16 steps",
    ):
        assert part in text
    assert report.windows_per_second > 0


def test_each_fault_is_found(tmp_path: Path) -> None:
    arrays = make_arrays()
    nan = arrays["action"].copy()
    nan[30, 1] = np.nan
    (found, *_) = texts(write_foreign(tmp_path / "nan.zarr", action=nan), "error")
    assert (
        found
        == "stream 'action' has 1 NaN or infinite values, the first in episode 1 at step 5, dim 'y'"
    )

    still = arrays["state"].copy()
    still[:, 1] = 3
    assert texts(write_foreign(tmp_path / "still.zarr", state=still), "warning") == [
        "'state.b' is constant (3)"
    ]

    (found,) = texts(
        write_foreign(tmp_path / "dark.zarr", img=np.full_like(arrays["img"], 9)), "error"
    )
    assert found.startswith("camera 'img' shows one single colour in every picture looked at, fi")

    black = arrays["img"].copy()
    black[[24, 65]] = 0
    (found,) = texts(write_foreign(tmp_path / "black.zarr", img=black), "warning")
    assert found.startswith("camera 'img' shows one single colour in 2 of 83 pictures looked at, ")
    assert "first step 24 of '0' in " in found

    (found,) = texts(
        write_foreign(tmp_path / "metres.zarr", action=arrays["action"] - [300, 0]), "error"
    )
    assert "'action.x' lie outside the spec's 0 .. 512 px" in found
    few = arrays["action"].copy()
    few[0, 0] = 513
    (found,) = texts(write_foreign(tmp_path / "few.zarr", action=few), "warning")
    assert "'action.x' lie outside" in found


@pytest.mark.parametrize(
    ("zarr_format", "damage"), [(2, "missing"), (3, "missing"), (2, "cut short")]
)
def test_truncated_chunks_are_counted(
    tmp_path: Path, zarr_format: Literal[2, 3], damage: str
) -> None:
    path = write_foreign(tmp_path / "s.zarr", zarr_format)
    if damage == "cut short":
        with StoreWriter(tmp_path / "ours.zarr", SPEC) as writer:
            writer.append({k: v[:25] for k, v in make_arrays().items()})
        path = tmp_path / "ours.zarr"
    for name in ("0.0.0.0", "c/1/0/0/0", "c/2/0/0/0", "3.0.0.0"):
        chunk = path / "data" / "img" / name
        if chunk.exists():
            if damage == "missing":
                chunk.unlink()
            else:
                chunk.write_bytes(chunk.read_bytes()[:-5])
    report = check_store(path, SPEC)
    assert not report.ok
    (found,) = (f.text for f in report.findings if f.severity == "error")
    count = 1 if damage == "cut short" else 2
    assert f"the store is truncated: {count} chunks of 'img' {damage}" in found


def test_stats_and_what_contradicts_them(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "s.zarr")
    arrays = make_arrays()
    against = Normalizer.fit({"action": arrays["action"] / [1, 100]})
    stats = store_stats(path, SPEC, against)
    np.testing.assert_allclose(stats["state"].mean, arrays["state"].mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"].max, arrays["action"].max(0))
    outside = stats["action"].out_of_range
    assert outside is not None
    assert outside[0] == 0
    assert outside[1] > 0.95
    assert stats["state"].out_of_range is None
    table = format_stats(stats).splitlines()
    assert len(table) == 1 + 4
    assert "out of range" in table[0]
    assert table[-1].split()[:2] == ["action", "y"]


def test_show_writes_a_sheet_and_videos(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "s.zarr")
    written = show_store(path, SPEC, out_dir=tmp_path / "out", episodes=(0, 2, 99), frames=4)
    assert [p.name for p in written] == ["img.png", "img_0.mp4", "img_2.mp4"]
    assert all(p.exists() for p in written)
    frames, fps = read_video(written[2])
    assert frames.shape == (18, 16, 16, 3)
    assert fps == 10
    with pytest.raises(UserError, match="nothing to show"):
        show_store(path, SPEC, out_dir=tmp_path / "none", episodes=(99,))
    assert not (tmp_path / "none").exists()


def test_import_makes_a_native_copy_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_foreign(tmp_path / "s.zarr")
    target = tmp_path / "ours.zarr"
    real, calls = StoreWriter.append, []

    def dies_at_the_third(self, episode, **info) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, episode, **info)

    monkeypatch.setattr(StoreWriter, "append", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        import_store(source, target, SPEC, progress=False)
    assert not target.exists()
    assert len(open_store(target.with_name(".ours.zarr.unfinished"))) == 2
    assert import_store(source, target, SPEC, progress=False).episodes == 3
    assert len(calls) == 4
    store = open_store(target)
    assert store.spec == SPEC
    start = 0
    for i, n in enumerate(LENGTHS):
        got = store.read(i, 0, n, ["img", "state", "action"])
        for name, values in make_arrays().items():
            np.testing.assert_array_equal(got[name], values[start : start + n])
        start += n
    assert import_store(source, target, SPEC, progress=False).episodes == 3


def test_import_keeps_what_meta_says_of_episodes(tmp_path: Path) -> None:
    arrays = make_arrays()
    with StoreWriter(tmp_path / "a.zarr", SPEC) as writer:
        for seed in (5, 6):
            writer.append({k: v[:20] for k, v in arrays.items()}, seed=seed, text=f"push {seed}")
    import_store(tmp_path / "a.zarr", tmp_path / "b.zarr", progress=False)
    store = open_store(tmp_path / "b.zarr")
    assert store.info("seed").tolist() == [5, 6]
    assert store.info("text").tolist() == ["push 5", "push 6"]


def test_import_refuses_another_source(tmp_path: Path) -> None:
    import_store(write_foreign(tmp_path / "one.zarr"), tmp_path / "ours.zarr", SPEC, progress=False)
    with pytest.raises(UserError, match=r"begun from another source \(one.zarr, 3 episodes\)"):
        import_store(
            write_foreign(tmp_path / "two.zarr"), tmp_path / "ours.zarr", SPEC, progress=False
        )
    with pytest.raises(UserError, match="There is no store at"):
        import_store(tmp_path / "none.zarr", tmp_path / "new.zarr", SPEC, progress=False)
    assert not (tmp_path / "new.zarr").exists()


def test_import_says_which_streams_stay_behind(tmp_path: Path) -> None:
    arrays = make_arrays()
    with StoreWriter(tmp_path / "a.zarr", SPEC) as writer:
        writer.append({k: v[:20] for k, v in arrays.items()})
    write_stream(tmp_path / "a.zarr", "depth", np.zeros((20, 4), np.float32), attrs={})
    account = import_store(tmp_path / "a.zarr", tmp_path / "b.zarr", progress=False)
    assert account.reasons("streams") == "1 that the spec does not name, such as depth"


@pytest.mark.parametrize(
    ("seconds", "severity", "text"),
    [
        (np.full(19, 0.1), "note", "time stamps agree with 10 Hz"),
        (np.full(19, 0.5), "error", "0.5 s apart, by the store's 10 Hz they should be 0.1 s"),
        (np.full(19, 0.02), "error", "0.02 s apart"),
        (np.array([0.1] * 9 + [2.5] + [0.1] * 9), "warning", "2 of 38 steps come after a gap"),
    ],
)
def test_check_compares_time_stamps_with_the_rate(
    seconds: np.ndarray, severity: str, text: str, tmp_path: Path
) -> None:
    spec = StreamSpec(cameras={"img": (4, 4)}, fps=10.0)
    frames = np.random.default_rng(0).integers(0, 255, (20, 4, 4, 3)).astype(np.uint8)
    with StoreWriter(tmp_path / "s.zarr", spec) as writer:
        writer.append({"img": frames})
        writer.append({"img": frames})
    stamps = np.rint(np.cumsum([0, *seconds, 1e4, *seconds]) * 1e6).astype(np.int64)
    write_stream(tmp_path / "s.zarr", "timestamp", stamps, attrs={})
    report = check_store(tmp_path / "s.zarr", windows=5)
    matches = [finding for finding in report.findings if text in finding.text]
    assert [finding.severity for finding in matches] == [severity]
