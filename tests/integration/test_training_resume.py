"""A resumed, interrupted or killed run equals an undisturbed
one; refusals leave everything as it was.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support import training_toy as toy
from support.processes import Forked
from support.training_toy import Interrupting, log_of, state_of
from torch import nn

from foreact.errors import UserError
from foreact.train import TrainConfig, train
from foreact.train.logs import read_log
from foreact.types import Batch, LossOut

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def assert_bitwise(one: Path, other: Path) -> None:
    a, b = state_of(one), state_of(other)
    assert set(a) == set(b)
    assert len(a) > 30
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_steps_and_resume_equal_four_steps_bitwise(
    tmp_path: Path, precision: str, accumulate: int
) -> None:
    options: dict[str, Any] = {"precision": precision, "accumulate": accumulate}
    whole = toy.run(tmp_path / "whole", steps=4, **options)
    first = toy.run(tmp_path / "parts", steps=2, **options)
    assert (first.step, first.finished) == (2, True)
    second = toy.run(tmp_path / "parts", steps=4, **options)
    assert second.step == whole.step == 4
    assert_bitwise(whole.checkpoint, second.checkpoint)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")
    assert second.weights is not None
    assert whole.weights is not None
    exported = torch.load(second.weights / "weights.pt")
    assert all(
        torch.equal(v, exported[k]) for k, v in torch.load(whole.weights / "weights.pt").items()
    )
    assert torch.equal(exported["body.weight"], state_of(second.checkpoint)["ema.body.weight"])
    assert not torch.equal(
        exported["body.weight"], state_of(second.checkpoint)["model.body.weight"]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_the_step_and_goes_on_bitwise(tmp_path: Path, number: int) -> None:
    # The interruption falls inside a window of the log, whose averages must survive it.
    options: dict[str, Any] = {"steps": 6, "log_every": 3, "save_every": 100, "schedule": "cosine"}
    whole = toy.run(tmp_path / "whole", **options)
    handler = signal.getsignal(number)
    stopped = train(
        toy.toy_model(),
        Interrupting(3, number),
        toy.config(**options),
        tmp_path / "parts",
        export=toy.toy_export,
        device="cpu",
    )
    assert signal.getsignal(number) is handler
    assert (stopped.step, stopped.interrupted, stopped.finished) == (4, True, False)
    assert stopped.checkpoint.name == "step-00000004"
    rest = toy.run(tmp_path / "parts", **options)
    assert (rest.step, rest.interrupted) == (6, False)
    assert_bitwise(whole.checkpoint, rest.checkpoint)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")


def test_ctrl_c_of_a_terminal_reaches_loader_processes_too_and_breaks_nothing(
    tmp_path: Path,
) -> None:
    # An interpreter of its own, not a fork: the interrupt has to find loader processes as a
    #     terminal's does.
    child = subprocess.Popen(
        [sys.executable, toy.__file__, str(tmp_path), json.dumps({"steps": 10_000})],
        env={**os.environ, "TOY_SLEEP": "0.01", "TOY_LOADER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while child.poll() is None and not log_of(tmp_path):
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    output, errors = child.communicate(timeout=100)
    assert child.returncode == 0, errors
    assert "Traceback" not in errors
    result = json.loads(output)
    assert result["interrupted"]
    step = result["step"] + 2
    assert_bitwise(
        toy.run(tmp_path, steps=step).checkpoint,
        toy.run(tmp_path.with_name("whole"), steps=step).checkpoint,
    )


def test_second_ctrl_c_ends_at_once_and_loses_no_checkpoint(tmp_path: Path) -> None:
    def twice(start: int, rank: int, world: int) -> Iterator[Batch]:
        for micro, batch in enumerate(toy.toy_batches(start, rank, world), start=start):
            if micro == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with pytest.raises(KeyboardInterrupt):
        train(toy.toy_model(), twice, toy.config(steps=6), tmp_path, device="cpu")
    assert toy.run(tmp_path, steps=6).step == 6


def test_time_limit_stops_cleanly(tmp_path: Path) -> None:
    stopped = toy.run(tmp_path, steps=1000, max_minutes=1e-6)
    assert (stopped.step, stopped.finished, stopped.interrupted) == (1, False, False)
    assert stopped.checkpoint.is_dir()


def test_killed_at_any_moment_reaches_the_weights_of_an_undisturbed_run(tmp_path: Path) -> None:
    options = {"steps": 30, "save_every": 1, "keep": 1, "schedule": "cosine"}
    whole = toy.run(tmp_path / "whole", **options)
    chance = random.Random(0)
    words = (tmp_path / "killed", json.dumps(options))
    log = tmp_path / "killed" / "log.jsonl"
    kills = 0
    for _ in range(3):
        before = log.stat().st_size if log.exists() else 0
        child = Forked(toy.main, *words, env={"TOY_SLEEP": "0.02"})
        while child.poll() is None and (not log.exists() or log.stat().st_size <= before):
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.15))
        child.kill()
        assert child.poll() in (0, -signal.SIGKILL), child.errors
        kills += child.poll() == -signal.SIGKILL
    assert kills >= 2
    last = Forked(toy.main, *words)
    assert last.wait() == 0, last.errors
    assert json.loads(last.output)["step"] == 30
    assert_bitwise(whole.checkpoint, tmp_path / "killed" / "checkpoints" / "step-00000030")
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "killed")
    assert [p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step-00000030"]


def files_below(folder: Path) -> list[tuple[str, int]]:
    """What is in a folder: every path and its size."""
    return sorted((str(path), path.lstat().st_size) for path in folder.rglob("*"))


def train_until_killed(run_dir: Path, operation: int) -> bool:
    """In a child process do one more step and save it, but die at the given file operation; whether
    it died.

    Operations are counted that find other files than the one before: a kill at others leaves the
    same folder.
    """
    pid = os.fork()
    if pid == 0:
        seen = 0
        found: list[tuple[str, int]] = []

        def die_at_operation(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen, found
            if event in (
                "open",
                "os.rename",
                "os.mkdir",
                "os.remove",
                "os.rmdir",
                "shutil.rmtree",
            ) and any(
                isinstance(a, str | os.PathLike) and "checkpoints" in os.fspath(a) for a in args
            ):
                before, found = found, files_below(run_dir / "checkpoints")
                seen += found != before
                if seen == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die_at_operation)
        try:
            os.close(2)
            toy.run(run_dir, steps=3, save_every=1, keep=1)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_file_operation_of_a_save_a_whole_checkpoint_remains(
    tmp_path: Path,
) -> None:
    whole = toy.run(tmp_path / "whole", steps=3, save_every=1, keep=1)
    toy.run(tmp_path / "start", steps=2, save_every=1, keep=1)
    operation = 0
    died = True
    while died:
        operation += 1
        run_dir = tmp_path / f"killed-{operation}"
        shutil.copytree(tmp_path / "start", run_dir)
        died = train_until_killed(run_dir, operation)
        rest = toy.run(run_dir, steps=3, save_every=1, keep=1, resume="must")
        assert_bitwise(whole.checkpoint, rest.checkpoint)
        assert [p.name for p in (run_dir / "checkpoints").iterdir()] == ["step-00000003"]
        shutil.rmtree(run_dir)
    assert operation > 10


@pytest.mark.parametrize("moment", ["tensors", "export", "train.json", "rename"])
def test_full_disk_leaves_the_earlier_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    toy.run(tmp_path, steps=2)
    before = state_of(tmp_path / "checkpoints" / "step-00000002")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    target = {
        "tensors": "foreact.train.checkpoint.state_dict_saver.save",
        "train.json": "foreact.train.checkpoint.write_record",
        "rename": "foreact.train.checkpoint.sync_tree",
        "export": None,
    }[moment]
    with monkeypatch.context() as patched:
        if target is None:
            patched.setattr(toy, "toy_export", full)
        else:
            patched.setattr(target, full)
        with pytest.raises(
            UserError, match=r"No space left on device.*earlier checkpoints are whole"
        ):
            toy.run(tmp_path, steps=4)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    after = state_of(tmp_path / "checkpoints" / "step-00000002")
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert toy.run(tmp_path, steps=4).step == 4


@pytest.mark.parametrize(("width", "limit"), [(8, 2048), (8, 15_000), (5000, 100_000)])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_unfinished(
    tmp_path: Path, width: int, limit: int
) -> None:
    # Torch says OSError for small tensors and RuntimeError ("unexpected pos") for large ones.
    toy.run(tmp_path, steps=2, model=toy.Toy(width))
    with largest_file(limit), pytest.raises(UserError) as refusal:
        toy.run(tmp_path, steps=4, model=toy.Toy(width))
    assert "(File too large); earlier checkpoints are whole: make room" in str(refusal.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert toy.run(tmp_path, steps=4, model=toy.Toy(width)).step == 4


def test_a_full_disk_under_tensorboard_is_one_sentence_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    with largest_file(1000), pytest.raises(UserError, match=r"failed \(.*\); make room"):
        toy.run(tmp_path, steps=40, save_every=100, tensorboard=True)
    assert "Traceback" not in capfd.readouterr().err


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond so many bytes of a file fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_the_run_is_is_written_when_nothing_refuses_it_any_more(tmp_path: Path) -> None:
    def start(run_dir: Path, **changes: Any) -> None:
        config = toy.config(**changes)
        note = run_dir / "note.txt"

        def begin() -> None:
            note.write_text(str(config.steps))

        train(toy.toy_model(), toy.toy_batches, config, run_dir, device="cpu", begin=begin)

    with pytest.raises(UserError, match=r"belongs to no evaluator"):
        start(tmp_path / "new", best_metric="judge/score")
    assert not (tmp_path / "new").exists()
    start(tmp_path / "run", steps=2)
    before = files_below(tmp_path / "run")
    with pytest.raises(UserError, match=r"has --train.batch-size 3, now it is 4"):
        start(tmp_path / "run", steps=4, batch_size=4)
    assert files_below(tmp_path / "run") == before
    start(tmp_path / "run", steps=4)
    assert (tmp_path / "run" / "note.txt").read_text() == "4"


def test_more_steps_after_an_annealed_schedule_are_said_and_planned_ones_are_exact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annealed: dict[str, Any] = {"schedule": "cosine", "warmup": 0, "save_every": 100}
    whole = toy.run(tmp_path / "whole", steps=5, **annealed)
    toy.run(tmp_path / "annealed", steps=3, **annealed)
    assert "learning rate" not in capsys.readouterr().err
    toy.run(tmp_path / "annealed", steps=5, **annealed)
    said = capsys.readouterr().err
    assert "cosine over 3 steps, it had come to 0.0025 by step 3; over 5 steps it goes on" in said
    assert "at 0.00345 and ends at 0.000955" in said
    toy.run(tmp_path / "planned", steps=3, schedule_steps=5, **annealed)
    planned = toy.run(tmp_path / "planned", steps=5, schedule_steps=5, **annealed)
    assert "learning rate" not in capsys.readouterr().err
    assert_bitwise(planned.checkpoint, whole.checkpoint)


def test_more_steps_after_an_annealed_schedule_take_nothing_back(tmp_path: Path) -> None:
    """Within the warm-up every schedule has the same rates; a checkpoint of then is not gone to."""
    annealed: dict[str, Any] = {"schedule": "cosine", "warmup": 3, "keep_at": (2,)}
    toy.run(tmp_path, steps=6, **annealed)
    toy.run(tmp_path, steps=8, **annealed)
    entries = [entry["step"] for entry in read_log(tmp_path / "log.jsonl") if "lr" in entry]
    assert entries == list(range(1, 9))
    assert (tmp_path / "checkpoints" / "step-00000002").is_dir()


def test_more_steps_after_a_drop_go_on_from_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dropped: dict[str, Any] = {"schedule": "wsd", "drop": 3, "floor": 0.0, "save_every": 100}
    toy.run(tmp_path / "parts", steps=7, **dropped)
    more = toy.run(tmp_path / "parts", steps=9, **dropped)
    assert "resumed at step 4" in (said := capsys.readouterr().err)
    assert "steps 5 to 7, in which the learning rate dropped, are trained again" in said
    whole = toy.run(tmp_path / "whole", steps=9, **dropped)
    assert_bitwise(whole.checkpoint, more.checkpoint)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")


def test_resume_refuses_changed_mathematics_and_allows_the_rest(tmp_path: Path) -> None:
    toy.run(tmp_path, steps=2)
    with pytest.raises(UserError, match=r"has --train.lr 0.01, now it is 0.02"):
        toy.run(tmp_path, steps=4, lr=0.02)
    with pytest.raises(UserError, match=r"1 micro-batches per step"):
        toy.run(tmp_path, steps=4, accumulate=2)
    with pytest.raises(UserError, match=r"has done 2 steps, but --train.steps is 1"):
        toy.run(tmp_path, steps=1)
    with pytest.raises(
        UserError, match=r"is of another model: 'body\.bias' has shape \(8,\) there and \(5,\) here"
    ):
        toy.run(tmp_path, steps=4, model=toy.Toy(width=5))
    with pytest.raises(UserError, match=r"already holds a run at step 2"):
        toy.run(tmp_path, steps=4, resume="never")
    assert toy.run(tmp_path, steps=4, save_every=3, keep=1, log_every=2, resume="must").step == 4


def test_resume_must_demands_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint to resume"):
        toy.run(tmp_path, resume="must")


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    toy.run(tmp_path, steps=4)
    (newest,) = (tmp_path / "checkpoints" / "step-00000004").glob("*.distcp")
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(UserError, match=r"step-00000004 cannot be read"):
        toy.run(tmp_path, steps=6)


def test_one_run_per_folder(tmp_path: Path) -> None:
    child = Forked(toy.main, tmp_path, json.dumps({"steps": 10_000}), env={"TOY_SLEEP": "0.05"})
    try:
        while not (tmp_path / "log.jsonl").exists():
            assert child.poll() is None
            time.sleep(0.02)
        begun: list[str] = []
        with pytest.raises(UserError, match=r"Another training is running"):
            train(
                toy.toy_model(),
                toy.toy_batches,
                toy.config(),
                tmp_path,
                device="cpu",
                begin=lambda: begun.append("again"),
            )
        assert not begun
    finally:
        child.kill()
    assert toy.run(tmp_path, steps=2).finished


def test_data_that_end_are_reported(tmp_path: Path) -> None:
    def short(start: int, rank: int, world: int) -> Iterator[Batch]:
        yield from [
            batch for batch, _ in zip(toy.toy_batches(start, rank, world), range(3), strict=False)
        ]

    with pytest.raises(UserError, match=r"data ended at micro-batch 3"):
        train(toy.toy_model(), short, toy.config(steps=6), tmp_path, device="cpu")


class Spiked(nn.Module):
    """A toy whose loss is not finite at the given micro-batches."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.inner, self.bad, self.calls = toy.toy_model(), bad, -1

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        self.calls += 1
        out = self.inner(batch, rng=rng)
        return LossOut(out.loss * float("nan"), out.logs) if self.calls in self.bad else out

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        return self.inner.param_groups(lr, weight_decay)


def test_non_finite_steps_are_left_out_and_counted(tmp_path: Path) -> None:
    model = Spiked({1, 2, 4})
    result = train(
        model, toy.toy_batches, toy.config(steps=6, max_skipped=3), tmp_path, device="cpu"
    )
    assert result.skipped == 3
    assert all(torch.isfinite(p).all() for p in model.parameters())
    log = read_log(tmp_path / "log.jsonl")
    assert [entry["skipped"] for entry in log] == [0, 1, 2, 2, 3, 3]
    assert [entry["step"] for entry in log if "loss" not in entry] == [2, 3, 5]


def test_many_non_finite_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    model = Spiked({2, 3, 4})
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row \(last: step 5\)"):
        train(model, toy.toy_batches, toy.config(steps=9, max_skipped=3), tmp_path, device="cpu")


def test_clipping_bounds_the_first_update(tmp_path: Path) -> None:
    one = toy.run(tmp_path / "off", steps=1, clip_grad=None, warmup=0)
    two = toy.run(tmp_path / "on", steps=1, clip_grad=1e-3, warmup=0)
    norms = [
        torch.cat([v.flatten() for k, v in state_of(r.checkpoint).items() if k.endswith("exp_avg")])
        .norm()
        .item()
        / 0.1
        for r in (one, two)
    ]
    (entry,) = read_log(tmp_path / "off" / "log.jsonl")
    assert norms[0] == pytest.approx(entry["grad_norm"], rel=1e-4)
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_prepare_runs_on_the_device_without_gradients_with_the_micro_batch_generator(
    tmp_path: Path,
) -> None:
    seen = []

    def prepare(batch: Batch, rng: torch.Generator) -> Batch:
        seen.append((torch.is_grad_enabled(), rng.initial_seed()))
        assert batch.actions is not None
        return Batch(actions=batch.actions * 2)

    config: TrainConfig = toy.config(steps=2, save_every=1)
    train(toy.toy_model(), toy.toy_batches, config, tmp_path / "a", prepare=prepare, device="cpu")
    assert [enabled for enabled, _ in seen] == [False, False]
    assert seen[0][1] != seen[1][1]
    train(toy.toy_model(), toy.toy_batches, config, tmp_path / "b", prepare=prepare, device="cpu")
    assert seen[:2] == seen[2:]
    plain = toy.run(tmp_path / "c", steps=2)
    assert not torch.equal(
        state_of(plain.checkpoint)["model.body.weight"],
        state_of(tmp_path / "a" / "checkpoints" / "step-00000002")["model.body.weight"],
    )
