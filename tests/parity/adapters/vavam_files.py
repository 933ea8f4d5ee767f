"""VaViM and VaVAM files as the reference's training stack wrote them."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from parity.adapters.vavam_model import vavam_config, video_config
from parity.registry import Case, adapter
from torch import Tensor

from foreact.checkpoints.format import build, load_checkpoint
from foreact.families.driving.released.names import expert_names, vavim_names
from foreact.families.driving.released.read import read_vavam_checkpoint, vavam_family
from foreact.families.driving.released.training_state import (
    TrainingState,
    first_epoch,
    read_training_state,
)
from foreact.families.driving.vavam import VaVAMConfig
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.released.convert import convert
from foreact.released.pickles import read_torch_file
from foreact.train.optim import build_optimizer
from foreact.train.schedules import lr_factor


def check_state(case: Case, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert {k: list(v.shape) for k, v in state.items()} == case.meta["state_dict_keys"]
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def check_conversion(
    case: Case, file: Path, config: Any, names: dict[str, str], expected: dict[str, Tensor]
) -> None:
    """Read, written as our folder and built: config and every tensor are those of the case."""
    video = config.vavim if isinstance(config, VaVAMConfig) else config
    reference = read_vavam_checkpoint(file, grid=video.grid)
    assert reference.config == config
    with tempfile.TemporaryDirectory() as scratch:
        convert(file, Path(scratch) / "ours", grid=video.grid)
        checkpoint = load_checkpoint(Path(scratch) / "ours")
    assert checkpoint.family == reference.family
    state = build(checkpoint).state_dict()
    assert set(state) == set(names)
    for ours, theirs in names.items():
        assert torch.equal(state[ours], expected[theirs]), ours


@adapter("vavam", "weights_gpt")
def weights_gpt(case: Case) -> None:
    file = case.folder / "model.ckpt"
    payload = read_torch_file(file)
    assert vavam_family(payload) == "vavim"
    assert sorted(payload) == case.meta["checkpoint_top_level_keys"]
    assert sorted(payload["hyper_parameters"]) == case.meta["hyper_parameters_keys"]
    check_state(case, payload["state_dict"], case.weights)
    network = {k: v for k, v in payload["hyper_parameters"]["network"].items() if k != "_target_"}
    assert network == case.config["network"]
    for name in case.meta["tied"]:
        assert (
            payload["state_dict"][name].data_ptr()
            == payload["state_dict"][case.meta["tied"][0]].data_ptr()
        )
    config = video_config(case.config["network"], case.config["mup_base_width"])
    assert config.width / config.base_width == case.config["width_mult"]
    names = {k: f"network.{v}" for k, v in vavim_names(config.layers, tied=config.tied).items()}
    check_conversion(case, file, config, names, case.weights)


@adapter("vavam", "weights_vam")
def weights_vam(case: Case) -> None:
    file = case.folder / "model.ckpt"
    payload = read_torch_file(file)
    assert vavam_family(payload) == "vavam"
    check_state(case, payload["state_dict"], case.weights)
    assert payload["hyper_parameters"]["vam_conf"] == case.config["vam_conf"]
    config = vavam_config(case.config)
    video: VaViMConfig = config.vavim
    names = {
        f"vavim.{k}": f"vam.gpt.{v}" for k, v in vavim_names(video.layers, tied=video.tied).items()
    }
    names |= {
        f"expert.{k}": f"vam.action_expert.{v}" for k, v in expert_names(video.layers).items()
    }
    check_conversion(case, file, config, names, case.weights)


@adapter("vavam", "lightning_training_checkpoint")
def lightning_training_checkpoint(case: Case) -> None:
    files = sorted(case.folder.glob("*.ckpt"))
    assert len(files) == 1
    file, wanted = files[0], case.meta["checkpoint_structure"]
    payload = read_torch_file(file)
    assert vavam_family(payload) == "vavim"
    assert {k: list(v.shape) for k, v in payload["state_dict"].items()} == case.meta[
        "state_dict_keys"
    ]
    raw = case.config["network"]
    config = video_config(raw, case.config["mup_base_width"])
    state = read_training_state(file, grid=config.grid)
    assert state.reference.config == config

    names = vavim_names(config.layers, tied=config.tied)
    for ours, theirs in names.items():
        case.check(f"final.network.{theirs}", state.reference.state[ours])
    steps = len(case.io["loss_per_step"])
    assert state.step == state.global_step == wanted["global_step"] == steps
    assert state.epoch == wanted["epoch"]
    assert state.schedule == wanted["lr_schedulers"][0]
    if not wanted["OpenDVTokensDataModule"][
        "num_workers"
    ]:  # with workers each of them keeps a state of its own
        order = first_epoch(state.loader_seeds[0], case.meta["n_windows"])
        drawn = case.io["window_idx_per_step"].flatten()[: len(order)]
        assert torch.equal(order[: len(drawn)], drawn)

    check_optimizer(case, state, config, wanted)


def check_optimizer(
    case: Case, state: TrainingState, config: VaViMConfig, wanted: dict[str, Any]
) -> None:
    """Our optimiser over our model has the file's groups, rates and
    shapes, and so can go on from its moments.
    """
    model = VaViM(config)
    conf = case.config["optimizer_conf"]
    optimizer = build_optimizer(
        model, lr=conf["lr"], weight_decay=conf["weight_decay"], betas=tuple(conf["betas"])
    )
    names = {id(p): name for name, p in model.named_parameters()}
    groups = wanted["optimizer_states[0].param_groups"]
    for ours, (theirs, settings), group in zip(
        optimizer.param_groups, state.groups, groups, strict=True
    ):
        assert [names[id(p)] for p in ours["params"]] == theirs
        assert len(theirs) == len(group["params"])
        assert settings == {
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "betas": tuple(group["betas"]),
            "eps": group["eps"],
        }
        assert ours["weight_decay"] == group["weight_decay"]
    schedule = wanted["lr_schedulers"][0]
    factor = lr_factor(
        "wsd",
        schedule["num_iter"],
        warmup=schedule["warmup_iter"],
        steps=schedule["end_iter"],
        drop=schedule["drop_iter"],
    )
    for ours, start, group in zip(
        optimizer.param_groups, schedule["start_lr"], groups, strict=True
    ):
        assert math.isclose(ours["lr"], start, rel_tol=1e-12)
        assert math.isclose(ours["lr"] * factor, group["lr"], rel_tol=1e-12)  # of the next step
    for name, parameter in model.named_parameters():
        assert state.first[name].shape == state.second[name].shape == parameter.shape
        assert (state.second[name] >= 0).all()
    # A token that no window held has had no gradient but through the readout, which every step has.
    assert all(state.second[name].any() for name in state.second)
