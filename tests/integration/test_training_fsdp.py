"""Weights divided among processes (FSDP2) train as whole ones do, and checkpoints move between all
of these.

`main` is one process of several runs, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support import training_toy as toy
from support.processes import Together
from support.training_toy import log_of
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.nn import functional

from foreact.errors import UserError
from foreact.families.driving.vavam import ExpertConfig, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViMConfig
from foreact.train import EMA, TrainResult, train
from foreact.train.checkpoint import capture
from foreact.train.optim import build_optimizer
from foreact.train.parallel import World
from foreact.types import Batch, LossOut

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.skipif(
        torch.__version__ < "2.9", reason="refused there: see test_parallel.py"
    ),  # gloo's mean
]
VOCAB, WIDTH, LENGTH = 11, 8, 5


class Sides:
    """Side results of blocks, as a cache of keys and values is."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.side = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 3 * WIDTH + 1)  # 25 rows: no even share for two processes
        self.down = nn.Linear(3 * WIDTH + 1, WIDTH)

    def forward(self, x: Tensor, sides: Sides) -> Tensor:
        side = self.side(self.norm(x))
        sides.tensors.append(side)
        return x + self.down(torch.tanh(self.up(self.norm(x)) + side.mean()))


class TiedLM(nn.Module):
    """A token model with every trait that dividing might break.

    The embedding is the readout too, one block is frozen, groups have rates of their own, a buffer
    is no state, and of the last block only a side result is used, so that some of its parameters
    never have a gradient.
    """

    used_parameters: ClassVar[str] = "same"
    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.blocks[0].requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("places", torch.linspace(-1, 1, LENGTH)[:, None], persistent=False)

    def forward(self, batch: Batch, *, rng: torch.Generator) -> LossOut:
        tokens = batch.tokens["front"].flatten(1)
        x = self.embedding(tokens[:, :-1]) + self.places
        sides = Sides()
        for block in self.blocks:
            x = block(x, sides)
        logits = functional.linear(
            torch.stack(sides.tensors).sum(0) * self.scale, self.embedding.weight
        )
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        return LossOut(loss, {"nats": loss.detach()})

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        matrices = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        return [
            {"params": matrices, "lr": lr / 4, "weight_decay": weight_decay},
            {"params": others, "lr": lr, "weight_decay": 0.0},
        ]


def tied_lm() -> TiedLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return TiedLM()


def driver(*, train_vavim: bool = True) -> VaVAM:
    video = VaViMConfig(
        width=16, heads=2, layers=2, vocab=VOCAB, frames=2, grid=(1, 3), base_width=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = VaVAM(
            VaVAMConfig(
                vavim=video, expert=ExpertConfig(width=8, horizon=2), train_vavim=train_vavim
            )
        )
        for p in model.parameters():
            nn.init.normal_(p, std=0.3)  # muP starts queries and readout at zero
    return model


def expert() -> VaVAM:
    """The driver with its video model frozen: every parameter that learns is used."""
    return driver(train_vavim=False)


def token_batches(start: int, rank: int, world: int) -> Iterator[Batch]:
    micro = start + rank
    while True:
        rng = torch.Generator().manual_seed(micro)
        yield Batch(
            tokens={"front": torch.randint(VOCAB, (3, 2, 1, 3), generator=rng)},
            plans=torch.randn(3, 2, 2, 2, generator=rng),
            commands=torch.randint(3, (3, 2), generator=rng),
        )
        micro += world


class Norms:
    """Runs the model on a batch of its own, reaching into it as
    generation does, and measures the averaged weights.
    """

    name = "norms"
    every: int | None = 2

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        loss = model(next(token_batches(99, 0, 1)), rng=torch.Generator().manual_seed(0)).loss
        if not isinstance(model, TiedLM):
            return {"loss": float(loss)}
        inner = model.blocks[1](model.embedding(torch.arange(VOCAB)), Sides())
        return {"loss": float(loss), "inner": float(inner.norm()), "scale": float(model.scale)}


MODELS = {"tied": tied_lm, "driver": driver, "expert": expert, "toy": toy.toy_model}


def run(run_dir: Path, model: str = "tied", **changes: Any) -> TrainResult:
    if "start_from" in changes:
        changes["start_from"] = Path(changes["start_from"])
    settings = toy.config(**{"clip_grad": 0.05, "save_every": 100, "keep_at": (2,), **changes})
    return train(
        MODELS[model](),
        token_batches,
        settings,
        run_dir,
        evaluators=[Norms()],
        export=toy.toy_export,
        device="cpu",
    )


def state_of(checkpoint: Path, model: str = "tied") -> dict[str, Tensor]:
    """Every tensor of a checkpoint: model, optimiser, average, exported weights."""
    module, settings = MODELS[model](), toy.config()
    optimizer = build_optimizer(
        module, lr=settings.lr, weight_decay=settings.weight_decay, betas=settings.betas
    )
    base = [group["base_lr"] for group in optimizer.param_groups]
    state = capture(module, optimizer, EMA(module, settings.ema))
    state_dict_loader.load(state, checkpoint_id=checkpoint, no_dist=True)
    assert [group["base_lr"] for group in state["optimizer"]["param_groups"]] == base
    exported = torch.load(checkpoint / "weights" / "weights.pt")
    flat = {f"model.{k}": v for k, v in state["model"].items()} | {
        f"ema.{k}": v for k, v in state["ema"].items()
    }
    flat |= {f"exported.{k}": v for k, v in exported.items()}
    for name, moments in state["optimizer"]["state"].items():
        flat |= {f"optimizer.{name}.{k}": v for k, v in moments.items()}
    return flat


def assert_close(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(got) == set(expected)
    assert len(got) > 40
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


def step(number: int) -> str:
    return f"checkpoints/step-{number:08d}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs of this file, those of two processes done by one start of them."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "one", steps=6, accumulate=4)
    for name in ("parts", "whole"):
        run(folder / name, steps=2, accumulate=2)
    together: list[tuple[str, str, dict[str, Any]]] = [
        ("fsdp", "tied", {"steps": 6, "accumulate": 2, "parallel": "fsdp"}),
        ("ddp", "tied", {"steps": 6, "accumulate": 2, "parallel": "ddp"}),
        ("ddp", "tied", {"steps": 8, "accumulate": 2, "parallel": "fsdp"}),
        ("parts", "tied", {"steps": 4, "parallel": "fsdp"}),
        ("parts", "tied", {"steps": 6, "parallel": "fsdp"}),
        ("whole", "tied", {"steps": 6, "parallel": "fsdp"}),
        ("started", "tied", {"steps": 2, "parallel": "fsdp", "start_from": f"{folder}/one"}),
        ("driver", "driver", {"steps": 3, "parallel": "fsdp"}),
        ("expert-fsdp", "expert", {"steps": 3, "parallel": "fsdp"}),
        ("expert-ddp", "expert", {"steps": 3, "parallel": "ddp"}),
        (
            "bf16-fsdp",
            "driver",
            {"steps": 4, "accumulate": 2, "parallel": "fsdp", "precision": "bf16"},
        ),
        (
            "bf16-ddp",
            "driver",
            {"steps": 4, "accumulate": 2, "parallel": "ddp", "precision": "bf16"},
        ),
        ("refused", "toy", {"steps": 1, "parallel": "fsdp"}),
    ]
    both = Together(main, folder, together)
    both.finish()
    (folder / "output.txt").write_text(both.output)
    return folder


def test_divided_equals_whole_equals_one_process(runs: Path) -> None:
    expected = state_of(runs / "one" / step(6))
    before = tied_lm().state_dict()
    assert not torch.equal(expected["model.blocks.1.side.weight"], before["blocks.1.side.weight"])
    assert torch.equal(expected["model.blocks.0.up.weight"], before["blocks.0.up.weight"])
    assert not expected["optimizer.blocks.2.up.weight.step"]  # never a gradient
    assert max(entry["grad_norm"] for entry in log_of(runs / "one") if "grad_norm" in entry) > 0.05
    for how in ("fsdp", "ddp"):
        assert_close(state_of(runs / how / step(6)), expected)
        for a, b in zip(log_of(runs / how), log_of(runs / "one"), strict=False):
            assert a == pytest.approx(b, rel=1e-4)
        assert (runs / how / step(2)).is_dir()


def test_checkpoints_move_between_divided_and_whole_and_other_numbers_of_processes(
    runs: Path,
) -> None:
    for name in ("fsdp", "one"):
        run(runs / name, steps=8, accumulate=4)
    expected = state_of(runs / "one" / step(8))
    for how in ("fsdp", "ddp"):
        assert_close(state_of(runs / how / step(8)), expected)


def test_divided_run_resumes_bitwise(runs: Path) -> None:
    parts, whole = (state_of(runs / name / step(6)) for name in ("parts", "whole"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_divided_run_starts_from_a_whole_one(runs: Path, tmp_path: Path) -> None:
    run(tmp_path, steps=2, accumulate=2, start_from=runs / "one" / step(6))
    one = state_of(tmp_path / step(2))
    assert_close(state_of(runs / "started" / step(2)), one)
    assert one["optimizer.scale.step"] == 8


def test_video_action_model_of_which_both_halves_learn(runs: Path, tmp_path: Path) -> None:
    run(tmp_path, "driver", steps=3, accumulate=2)
    assert_close(
        state_of(runs / "driver" / step(3), "driver"), state_of(tmp_path / step(3), "driver")
    )


def test_frozen_half_stays_and_is_kept_out_of_optimiser_and_average(
    runs: Path, tmp_path: Path
) -> None:
    run(tmp_path, "expert", steps=3, accumulate=2)
    expected, before = state_of(tmp_path / step(3), "expert"), expert().state_dict()
    assert not any(
        "vavim" in name for name in expected if not name.startswith(("model.", "exported."))
    )
    for how in ("fsdp", "ddp"):
        state = state_of(runs / f"expert-{how}" / step(3), "expert")
        assert_close(state, expected)
        assert all(
            torch.equal(state[f"model.{k}"], v) for k, v in before.items() if k.startswith("vavim.")
        )


def test_divided_run_in_bfloat16_follows_the_whole_one(runs: Path) -> None:
    fsdp, ddp = (
        [e["flow"] for e in log_of(runs / f"bf16-{how}") if "flow" in e] for how in ("fsdp", "ddp")
    )
    assert len(ddp) == 4
    assert fsdp == pytest.approx(ddp, rel=1e-3)
    state = state_of(runs / "bf16-fsdp" / step(4), "driver")
    assert all(t.dtype == torch.float32 for t in state.values())


def test_whole_state_is_in_memory_of_its_own() -> None:
    model = tied_lm()
    state = World().full_state(model)
    assert set(state) == set(model.state_dict())
    state["scale"].zero_()
    assert model.scale.item() == 1.0
    assert World(rank=1, size=2).full_state(model) == {}


def test_model_with_parts_that_vary_is_refused_when_divided(runs: Path) -> None:
    output = (runs / "output.txt").read_text()
    assert (
        "refused: parallel fsdp needs a model that uses the same parameters in every "
        "forward, and Toy"
    ) in output


def main(folder: Path, runs: list[tuple[str, str, dict[str, Any]]]) -> None:
    torch.distributed.init_process_group("gloo")
    for name, model, changes in runs:
        try:
            run(folder / name, model, **changes)
        except UserError as error:
            print(f"{name}: {error}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
