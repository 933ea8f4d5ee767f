"""`foreact data import` copies recordings of any format that opens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.d4rl_worlds import write_shards
from support.manipulation_files import SIZE, stamps, write_libero, write_robomimic

from foreact.cli import main
from foreact.data.formats.d4rl import TOKENS, open_d4rl
from foreact.data.formats.replay_buffer import import_store
from foreact.data.formats.robomimic import open_robomimic
from foreact.data.stores.opening import open_episodes
from foreact.data.stores.store import open_store
from foreact.errors import UserError
from foreact.tasks import find_task
from foreact.types import StreamSpec


def small(task: str) -> StreamSpec:
    """A task's spec with pictures of the size of the miniatures."""
    spec = find_task(task).spec
    return dataclasses.replace(spec, cameras=dict.fromkeys(spec.cameras, (SIZE, SIZE)))


def test_robomimic_files_become_stores(tmp_path: Path) -> None:
    spec = small("tool-hang")
    source = open_robomimic(write_robomimic(tmp_path / "a.hdf5", compression="gzip"), spec)
    account = import_store(source.path, tmp_path / "ours.zarr", spec, progress=False)
    assert (account.episodes, account.reasons("streams")) == (
        3,
        "1 that the spec does not name, such as object",
    )
    ours = open_store(tmp_path / "ours.zarr", spec)
    assert ours.lengths.tolist() == source.lengths.tolist()
    for stream in source.streams:
        np.testing.assert_array_equal(ours.all_rows(stream), source.all_rows(stream))
    assert ours.names == ["demo_0", "demo_1", "demo_2"]
    np.testing.assert_array_equal(ours.info("initial_state"), source.info("initial_state"))
    assert ours.attrs["origin"]["env_args"]["a.hdf5"]["env_name"] == "ToolHang"


def test_libero_folders_become_stores_with_instructions(tmp_path: Path) -> None:
    spec, folder = small("libero10"), write_libero(tmp_path / "libero_10", mode="absolute")
    import_store(folder, tmp_path / "ours.zarr", spec, progress=False)
    ours = open_store(tmp_path / "ours.zarr", spec)
    assert ours.instructions == ["turn on the stove", "put the mug on the plate"]
    shown = ours.read(3, 0, 2, ["agentview_rgb"])["agentview_rgb"]
    assert stamps(shown) == [(3, 1, 0), (3, 2, 0)]
    assert ours.attrs["origin"]["pairing"] == "seen"


def test_a_copy_goes_on_as_it_was_begun_only(tmp_path: Path) -> None:
    spec, folder = small("libero10"), write_libero(tmp_path / "libero_10", mode="absolute")
    out, upright = tmp_path / "ours.zarr", {"libero": {"flip": "vertical"}}
    import_store(folder, out, spec, options=upright, progress=False)
    with pytest.raises(UserError, match=r"begun from .*libero_10 as read in another way"):
        import_store(folder, out, spec, options={"libero": {"flip": "turn"}}, progress=False)
    # What is chosen for this call comes before what a task says.
    account = import_store(
        folder,
        out,
        spec,
        options={"libero": {"flip": "turn"}},
        chosen={"flip": "vertical"},
        progress=False,
    )
    assert account.episodes == 4


def test_shards_are_copied_as_by_their_own_verb(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "cheetah_run")
    import_store(folder, tmp_path / "ours.zarr", progress=False)
    np.testing.assert_array_equal(
        open_store(tmp_path / "ours.zarr").all_rows(TOKENS), open_d4rl(folder).all_rows(TOKENS)
    )


def test_the_command_line_takes_a_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", mode="delta", masks={"train": ["demo_2", "demo_0"]})
    main(f"data import --src {path} --out {tmp_path}/ours.zarr --mask train".split())
    assert "2 episodes" in capsys.readouterr().out
    assert open_episodes(tmp_path / "ours.zarr").names == ["demo_0", "demo_2"]


def test_a_mask_is_refused_where_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    libero = write_libero(tmp_path / "libero_10")
    import_store(libero, tmp_path / "ours.zarr", progress=False)
    for source, sentence in (
        (libero, "are opened without an option 'mask'"),
        (tmp_path / "ours.zarr", "no recording of a format with an option 'mask'; leave it out."),
    ):
        with pytest.raises(SystemExit):
            main(f"data import --src {source} --out {tmp_path}/new.zarr --mask train".split())
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "new.zarr").exists()
