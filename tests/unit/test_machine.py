"""What the machine decides: each answer is given by hand here,
since a test may run on any processor.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch

from foreact import machine
from foreact.errors import UserError
from foreact.machine import AnyPrecision, BFloat16, choose_precision, least_seconds
from foreact.train.config import TrainConfig

CPU = torch.device("cpu")


def answer(monkeypatch: pytest.MonkeyPatch, *, fast: bool, possible: bool = True) -> None:
    found = BFloat16(possible=possible, fast=fast, why="the card computes no bf16")
    monkeypatch.setattr(machine, "bfloat16", lambda device, work="batches": found)


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "fast", "chosen"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "fp32"),
        ("bf16", False, "bf16"),
        ("fp32", True, "fp32"),
    ],
)
def test_auto_is_what_is_fast_and_what_is_asked_for_stands(
    asked: AnyPrecision, fast: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, fast=fast)
    assert choose_precision(asked, CPU) == chosen


def test_what_the_device_cannot_do_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, fast=False, possible=False)
    assert choose_precision("auto", CPU) == "fp32"
    with pytest.raises(
        UserError,
        match=r"^bf16 was asked for, but the card computes no bf16; give precision fp32 or",
    ):
        TrainConfig(precision="bf16").with_precision(CPU)


def test_a_resumed_run_keeps_its_precision_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, fast=True)
    saved = TrainConfig(precision="fp32").to_json()
    assert TrainConfig().with_precision(CPU).precision == "bf16"
    assert TrainConfig().with_precision(CPU, saved).precision == "fp32"
    assert TrainConfig(precision="bf16").with_precision(CPU, saved).precision == "bf16"


def test_a_run_that_began_in_what_this_machine_cannot_do_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer(monkeypatch, fast=False, possible=False)
    saved = TrainConfig(precision="bf16").to_json()
    with pytest.raises(
        UserError, match=r"^The run began in bf16, but .+; go on with --train.precision fp32\.$"
    ):
        TrainConfig().with_precision(CPU, saved)
    assert TrainConfig(precision="fp32").with_precision(CPU, saved).precision == "fp32"


@pytest.mark.parametrize(("capability", "native"), [((9, 0), True), ((7, 5), False)])
def test_a_gpu_is_asked(
    capability: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine._of_gpu.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.no_grad())
    device = torch.device("cuda", 0)
    assert choose_precision("auto", device) == ("bf16" if native else "fp32")
    if not native:
        with pytest.raises(UserError, match=r"Card, compute capability 7\.5, computes no bf16"):
            choose_precision("bf16", device)
    machine._of_gpu.cache_clear()


def test_an_unknown_device_computes_in_float32() -> None:
    assert choose_precision("auto", torch.device("meta")) == "fp32"


@pytest.mark.parametrize("work", ["batches", "rows"])
def test_the_processor_at_hand_is_timed_and_the_threads_stay(work: machine.Work) -> None:
    machine._of_cpu.cache_clear()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with torch.inference_mode():  # a policy may be the first to ask
        found = machine.bfloat16(CPU, work)
    assert found.possible
    assert "x the speed of fp32" in found.why
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_autocast_computes_in_the_precision(precision: machine.Precision) -> None:
    with machine.autocast(CPU, precision):
        found = torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3))
    assert found.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


# --- timing ---------------------------------------------------------------------------------------


def test_the_least_time_of_each_counts_and_a_slow_call_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, calls = 0.0, {"fast": 0, "slow": 0, "disturbed": 0}
    takes = {
        "fast": [9.0, 1.0, 2.0, 1.5, 1.5, 3.0],
        "slow": [9.0, 7.0, 8.0, 9.0],
        "disturbed": [9.0, 80.0, 80.0, 1.3, 0.5, 1.2],
    }

    def call(name: str) -> None:
        nonlocal now
        now += takes[name][calls[name]]
        calls[name] += 1

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    found = least_seconds({name: lambda name=name: call(name) for name in takes})
    assert found == pytest.approx(
        {"fast": 1.0, "slow": 7.0, "disturbed": 0.5}
    )  # the first turn warms up
    assert calls == {"fast": 6, "slow": 4, "disturbed": 6}


def test_a_call_takes_the_place_of_another_only_if_it_wins_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [{"plain": 2.0, "other": 1.0}, {"plain": 1.2, "other": 1.0}]
    monkeypatch.setattr(machine, "least_seconds", lambda candidates, rounds: answers[0])
    assert machine.clearly_faster(print, print)
    monkeypatch.setattr(machine, "least_seconds", lambda candidates, rounds: answers.pop(0))
    assert not machine.clearly_faster(print, print)


# --- cores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu.max": "unreadable"}, math.inf),
        ({}, math.inf),
    ],
)
def test_a_containers_quota_is_read(files: dict[str, str], quota: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine._quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("bound", "quota", "count"), [(8, math.inf, 8), (8, 1.5, 2), (2, 16.0, 2), (4, 0.2, 1)]
)
def test_cores_are_those_bound_to_and_no_more_than_the_quota(
    bound: int, quota: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: range(bound), raising=False)
    monkeypatch.setattr(machine, "_quota", lambda: quota)
    assert machine.cores() == count


@pytest.mark.parametrize(
    ("device", "beside", "processes"),
    [("cpu", "1", 0), ("cuda", "1", 8), ("cuda", "4", 3), ("cuda", "16", 0)],
)
def test_loader_processes_leave_the_cpu_to_who_computes_there(
    device: str, beside: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
    assert machine.loader_processes(torch.device(device)) == processes
    assert TrainConfig().loader_processes(torch.device(device)) == processes
    assert TrainConfig(workers=5).loader_processes(torch.device(device)) == 5
