"""Training arithmetic of UVA: average of the weights, learning rates, best-k checkpoints."""

from __future__ import annotations

import numpy as np
import torch
from parity.registry import Case, adapter
from torch import Tensor, nn

from foreact.train.checkpoint import BestTable
from foreact.train.ema import EMA, EMAConfig, averaged_parameters
from foreact.train.schedules import lr_factor


@adapter("uva", "ema_decay")
def ema_decay(case: Case) -> None:
    raw = case.config
    config = EMAConfig(
        update_after=raw["update_after_step"],
        inv_gamma=raw["inv_gamma"],
        power=raw["power"],
        min=raw["min_value"],
        max=raw["max_value"],
    )
    case.check(
        "decay", torch.tensor([config.decay(int(s)) for s in case.io["steps"]], dtype=torch.float64)
    )

    def snapshot(step: int, of: str) -> dict[str, Tensor]:
        prefix = f"step{step}/{of}/"
        return {k.removeprefix(prefix): v for k, v in case.io.items() if k.startswith(prefix)}

    def build() -> nn.Sequential:
        width, inputs = case.io["step0/model/0.weight"].shape
        net = nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width))
        net[0].bias.requires_grad_(False)
        return net

    steps = len({k.split("/")[0] for k in case.io if k.startswith("step") and "/" in k})
    model, shown = build(), build()
    shown.load_state_dict(snapshot(0, "ema"))
    ema = EMA(model, config)
    averaged = set(averaged_parameters(model))
    assert averaged == {"0.weight"}
    first, last = snapshot(0, "model"), snapshot(steps - 1, "model")
    # Where a recording holds the final tensors at every step, the averaged weights of the steps
    # before are unknown; what is copied and what is left alone can still be compared.
    aliased = steps > 1 and all(torch.equal(first[k], last[k]) for k in first)
    for step in range(steps):
        model.load_state_dict(snapshot(step, "model"))
        ema.update(model)
        ema.copy_to(shown, model)
        for name, value in shown.state_dict().items():
            if not (aliased and name in averaged):
                case.check(f"step{step}/ema/{name}", value)


@adapter("uva", "lr_schedule")
def lr_schedule(case: Case) -> None:
    for label, row in case.config.items():
        if label == "columns":
            continue
        name, lr, warmup, steps, last = row
        rates = [
            lr * lr_factor(name, last + 1 + i, warmup=warmup, steps=steps)
            for i in range(len(case.io[label]))
        ]
        case.check(label, np.array(rates))


@adapter("uva", "topk_checkpoints")
def topk_checkpoints(case: Case) -> None:
    table = BestTable(k=case.config["k"], mode=case.config["mode"])
    written: dict[int, str] = {}
    for row in case.meta["trace"]:
        assert table.offer(row["epoch"], row["value"]) == (row["returned"] is not None), row
        if row["returned"] is not None:
            written[row["epoch"]] = row["returned"]
        assert sorted(written[epoch] for epoch in table.steps) == sorted(row["on_disk"]), row
    case.check("values", np.array([row["value"] for row in case.meta["trace"]], dtype=np.float32))
