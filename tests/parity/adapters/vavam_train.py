"""Training arithmetic of VaViM and VaVAM: the learning rate."""

from __future__ import annotations

import numpy as np
from parity.registry import Case, adapter

from foreact.train.schedules import lr_factor


@adapter("vavam", "wsd_schedule")
def wsd_schedule(case: Case) -> None:
    for schedule in case.meta["schedules"]:
        raw, name = schedule["config"], schedule["name"]
        first = raw.get("num_iter", 0)

        def rates(base: list[float], step: int, raw: dict[str, int] = raw) -> list[float]:
            factor = lr_factor(
                "wsd",
                step,
                warmup=raw["warmup_iter"],
                steps=raw["end_iter"],
                drop=raw["drop_iter"],
                floor=0.1,
            )
            return [lr * factor for lr in base]

        def check(got: list[float], expected: list[float], label: str, name: str = name) -> None:
            np.testing.assert_allclose(
                got,
                expected,
                rtol=case.meta["tolerance"]["rtol"],
                atol=0,
                err_msg=f"{name}: {label}",
            )

        base = schedule["base_lrs"]
        check(rates(base, first), schedule["lr_right_after_construction"], "start")
        for step, expected in zip(schedule["steps"], schedule["lrs"], strict=True):
            check(rates(base, step), expected, f"step {step}")
        resume = schedule["resume"]
        if raw.get("is_finetuning", False):
            # A run of its own that starts from a checkpoint at step `first`: its steps, hence its
            # schedule, begin at 0.
            base = resume["new_base_lrs"]
            factor = lr_factor(
                "wsd",
                1,
                warmup=raw["warmup_iter"],
                steps=raw["end_iter"] - first,
                drop=raw["drop_iter"],
                floor=0.1,
            )
            after = [lr * factor for lr in base]
        else:
            after = rates(base, resume["state_num_iter"] + 1)
        check(after, resume["lr_after_load_state_dict_and_one_step"], "resumed")
