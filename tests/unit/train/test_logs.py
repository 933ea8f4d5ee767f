"""The log file across resumes and kills, averages over a
window, and the watch on waiting for data.
"""

from __future__ import annotations

import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from foreact.errors import UserError
from foreact.train import TrainConfig
from foreact.train.logs import Averages, Clock, Logs, ProgressLine, read_log


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"tensorboard": False, **changes})


def write(run_dir: Path, step: int, steps: range, **changes: Any) -> None:
    logs = Logs(run_dir, step, config(**changes))
    for s in steps:
        logs.write(s, {"loss": 1.0 / s})
    logs.close()


def test_entries_beyond_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 8))
    write(tmp_path, 3, range(4, 6))
    assert read_log(tmp_path / "log.jsonl") == [{"step": s, "loss": 1.0 / s} for s in range(1, 6)]


def test_a_torn_last_line_is_dropped_and_a_torn_earlier_one_is_reported(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4))
    path = tmp_path / "log.jsonl"
    lines = path.read_text()
    path.write_text(lines + '{"step": 4, "lo')
    write(tmp_path, 4, range(5, 6))
    assert [e["step"] for e in read_log(path)] == [1, 2, 3, 5]
    path.write_text('{"step": 4, "lo\n' + lines)
    with pytest.raises(UserError, match=r"Line 1 of .*log\.jsonl is not JSON"):
        Logs(tmp_path, 4, config())


def test_what_is_not_finite_stays_valid_json(tmp_path: Path) -> None:
    logs = Logs(tmp_path, 0, config())
    logs.write(1, {"loss": float("nan"), "lr": 0.5})
    logs.close()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {
        "step": 1,
        "loss": None,
        "lr": 0.5,
    }


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_sentence_and_closing_adds_nothing(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    logs = Logs(tmp_path, 0, config())
    logs._file.close()
    logs._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    with pytest.raises(UserError, match=r"Writing .*log\.jsonl failed \(No space left on device\)"):
        logs.write(1, {"loss": 1.0})
    logs.close()


def test_tensorboard_curves_are_written_where_installed(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, 0, range(1, 4), tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (s, pytest.approx(1.0 / s)) for s in range(1, 4)
    ]


def test_wandb_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed"):
        Logs(tmp_path, 0, config(wandb="project"))


def test_wandb_run_is_continued_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append((step, values))

        def finish(self) -> None:
            calls.append("finished")

    def init(**options: Any) -> Run:
        calls.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for step in (1, 2):
        write(tmp_path, step - 1, range(step, step + 1), wandb="project")
    first, one, end, second, two, _ = calls
    assert (first["project"], first["resume"], first["config"]["wandb"]) == (
        "project",
        "allow",
        "project",
    )
    assert first["id"] == second["id"]
    assert (one, end, two) == ((1, {"loss": 1.0}), "finished", (2, {"loss": 0.5}))


def test_averages_merge_over_processes_with_different_names_and_survive_json() -> None:
    a, b = Averages(), Averages()
    a.add({"loss": 1.0, "video": 1.0})
    a.add({"loss": 3.0})
    b.add({"loss": 8.0, "action": 8.0})
    restored = Averages(json.loads(json.dumps(a.sums)))
    assert restored.means() == {"loss": 2.0, "video": 1.0}
    assert Averages.merge([restored.sums, b.sums]).means() == {
        "loss": 4.0,
        "video": 1.0,
        "action": 8.0,
    }


class FakeTime:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_clock_gives_rate_and_share_without_what_is_left_out() -> None:
    now = FakeTime()
    clock = Clock(now)
    now.seconds = 5.0
    clock.add(samples=6, waited=0.5)
    clock.leave_out(3.0)
    assert clock.read() == {"samples_per_s": 3.0, "data_wait": 0.25}
    now.seconds = 6.0
    clock.add(samples=7, waited=0.0)
    assert clock.read() == {"samples_per_s": 7.0, "data_wait": 0.0}


@pytest.mark.parametrize(("waited", "expected"), [(0.9, 0), (1.2, 1)])
def test_waiting_for_data_is_warned_of_once_and_not_for_the_start(
    waited: float, expected: int
) -> None:
    now = FakeTime()
    clock = Clock(now)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for share in [9.0, *[waited] * 5]:
            now.seconds += 10.0
            clock.add(samples=1, waited=share)
            clock.read()
    assert len(caught) == expected
    if expected:
        assert "waits for data 12% of the time" in str(caught[0].message)


def test_without_a_terminal_progress_is_one_line_per_entry(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"loss": 0.25, "samples_per_s": 12.0, "data_wait": 0.03}
    for shown in (True, False):
        bar = ProgressLine(start=0, total=10, shown=shown)
        bar.advance()
        bar.show(5, values)
        bar.say("hello")
        bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 5/10  loss 0.2500  12.0 samples/s  data wait 3%")
    assert lines[1] == "hello"
