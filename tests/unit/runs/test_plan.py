"""The plan of a training, against counts by hand and against what autograd really keeps."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from foreact.errors import UserError
from foreact.families.driving.vavam import ExpertConfig, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.machine import Precision
from foreact.runs.plan import plan
from foreact.train import EMAConfig, TrainConfig

VIDEO = VaViMConfig(width=64, heads=2, layers=3, vocab=50, frames=2, grid=(4, 8), base_width=32)
TOKENS = 2 * 4 * 8
NO_AVERAGE = EMAConfig(enabled=False)


def video() -> VaViM:
    with torch.device("meta"):
        return VaViM(VIDEO)


def numbers() -> tuple[int, int]:
    """Parameters of a block, and of everything."""
    block = 12 * 64 * 64
    return block, 3 * block + (50 + 32 + 2) * 64


def test_arithmetic_and_amounts_by_hand() -> None:
    _, n = numbers()
    found = plan(
        video(),
        TrainConfig(steps=10, warmup=0, batch_size=2, accumulate=3),
        tokens_per_sample=TOKENS,
        processes=4,
        tflops=0.5,
    )
    assert (found.trained, found.frozen) == (n, 0)
    assert (found.samples_per_step, found.tokens_per_step, found.tokens) == (
        24,
        24 * TOKENS,
        240 * TOKENS,
    )
    assert found.flops_per_step == 24 * TOKENS * (6 * n + 12 * 3 * 64 * TOKENS)
    assert found.hours == pytest.approx(10 * found.flops_per_step / (4 * 0.5e12) / 3600)
    assert f"{n:,} trained, 0 frozen" in str(found)
    assert "TFLOP/s" in str(found)
    assert "TFLOP/s" not in str(dataclasses.replace(found, tflops=None))


def test_memory_of_one_process_of_many_that_hold_all_or_a_share() -> None:
    block, n = numbers()
    one = plan(video(), TrainConfig(), tokens_per_sample=TOKENS, processes=1).memory
    assert {k: one[k] for k in ("weights", "gradients", "moments", "average", "bf16 copies")} == {
        "weights": 4 * n,
        "gradients": 4 * n,
        "moments": 8 * n,
        "average": 4 * n,
        "bf16 copies": 2 * n,
    }
    whole = plan(
        video(), TrainConfig(precision="fp32"), tokens_per_sample=TOKENS, processes=4
    ).memory
    assert set(one) - set(whole) == {"bf16 copies"}
    assert all(whole[part] == one[part] for part in ("weights", "gradients", "moments", "average"))
    assert whole["activations"] == 2 * one["activations"]
    config = TrainConfig(parallel="fsdp", ema=NO_AVERAGE)
    share = plan(video(), config, tokens_per_sample=TOKENS, processes=4).memory
    assert (share["weights"], share["gradients"], share["moments"], share["average"]) == (
        n,
        n,
        2 * n,
        0,
    )
    assert share["gathered"] == 2 * 2 * block + 4 * (n - 3 * block)
    config = dataclasses.replace(config, accumulate=2)
    assert plan(video(), config, tokens_per_sample=TOKENS, processes=4).memory["gradients"] == 4 * n


def test_frozen_part_costs_a_third_and_keeps_no_activations() -> None:
    with torch.device("meta"):
        model = VaVAM(VaVAMConfig(vavim=VIDEO, expert=ExpertConfig(width=16)))
    lengths = {"vavim": TOKENS, "expert": 12}
    found = plan(model, TrainConfig(batch_size=1), tokens_per_sample=lengths, processes=1)
    _, n = numbers()
    expert = sum(p.numel() for p in model.expert.parameters())
    assert (found.trained, found.frozen) == (expert, n)
    seen = TOKENS + 12
    assert found.flops_per_step == TOKENS * (2 * n + 4 * 3 * 64 * seen) + 12 * (
        6 * expert + 12 * 3 * 16 * seen
    )
    alone = plan(model.expert, TrainConfig(batch_size=1), tokens_per_sample=12, processes=1)
    assert found.memory["activations"] == alone.memory["activations"] > 0
    with pytest.raises(UserError, match=r"'expert\.encoder.*' lies outside the parts \['vavim'\]"):
        plan(model, TrainConfig(), tokens_per_sample={"vavim": TOKENS}, processes=1)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_are_near_what_autograd_keeps(precision: Precision) -> None:
    torch.manual_seed(0)
    model = VaViM(dataclasses.replace(VIDEO, layers=6))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.randint(50, (4, 2, 4, 8))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        model.token_losses(tokens).mean()
    config = TrainConfig(batch_size=4, precision=precision)
    memory = plan(model, config, tokens_per_sample=TOKENS, processes=1, vocab=50).memory
    expected = memory["activations"] + memory.get("bf16 copies", 0)
    assert sum(s.nbytes() for s in kept.values()) == pytest.approx(expected, rel=0.15)


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(UserError, match=r"positive number of processes and speed, found 0"):
        plan(video(), TrainConfig(), tokens_per_sample=TOKENS, processes=0)
    with pytest.raises(UserError, match=r"found 1 and 0\.0"):
        plan(video(), TrainConfig(), tokens_per_sample=TOKENS, processes=1, tflops=0.0)
