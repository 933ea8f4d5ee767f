"""VaViM and VaVAM files: read, converted, written back; what
contradicts itself or is unsafe is refused.
"""

from __future__ import annotations

import dataclasses
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.zero_files import write as write_zero
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from foreact.checkpoints.format import build, load_checkpoint, save_checkpoint
from foreact.checkpoints.verify import verify
from foreact.cli import run
from foreact.errors import UserError
from foreact.families.driving.released.read import read_vavam_checkpoint
from foreact.families.driving.released.training_state import first_epoch, read_training_state
from foreact.families.driving.released.write import write_vavam_checkpoint
from foreact.families.driving.vavam import ExpertConfig, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.released.convert import convert
from foreact.released.pickles import read_torch_file
from foreact.train.optim import build_optimizer
from foreact.types import ActionSpec, StreamSpec

GRID = (2, 3)
VIDEO = VaViMConfig(
    width=32,
    heads=2,
    layers=2,
    mlp_ratio=2,
    vocab=21,
    frames=3,
    grid=GRID,
    base_width=16,
    init_std=0.03,
)
EXPERT = ExpertConfig(
    width=8, mlp_ratio=3, horizon=4, commands=5, base_width=4, base_attention=16, max_period=100.0
)
ACTION = VaVAMConfig(vavim=VIDEO, expert=EXPERT, action_scale=50.0, sigma=0.01)


def folder(path: Path, config: VaViMConfig | VaVAMConfig, **facts: Any) -> Path:
    """A checkpoint of ours with random weights."""
    torch.manual_seed(0)
    family, module = (
        ("vavam", VaVAM(config)) if isinstance(config, VaVAMConfig) else ("vavim", VaViM(config))
    )
    state = {k: torch.randn_like(v) for k, v in module.state_dict().items()}
    save_checkpoint(path, family=family, config=config, state=state, card={"facts": facts})
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each family in the reference's layout."""
    root = tmp_path_factory.mktemp("files")
    for name, config in {"vavim": VIDEO, "vavam": ACTION}.items():
        write_vavam_checkpoint(folder(root / name, config), root / f"{name}.ckpt")
    return {name: root / f"{name}.ckpt" for name in ("vavim", "vavam")}


def changed(file: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The file with a change, its configs as plain dicts."""
    content = read_torch_file(file)
    change(content)
    torch.save(content, path)
    return path


def globals_of(file: Path) -> set[str]:
    with zipfile.ZipFile(file) as archive:
        body = archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl")))
    return {
        str(argument) for code, argument, _ in pickletools.genops(body) if code.name == "GLOBAL"
    }


def test_a_compiled_twin_counts_once(tmp_path: Path, files: dict[str, Path]) -> None:
    """A trainer that compiles its network has it under two names."""

    def twins(content: dict[str, Any]) -> None:
        for name, tensor in list(content["state_dict"].items()):
            compiled = f"net._orig_mod.{name.removeprefix('network.')}"
            content["state_dict"][compiled] = tensor.clone()

    plain = read_vavam_checkpoint(files["vavim"], grid=GRID)
    file = changed(files["vavim"], tmp_path / "twins.ckpt", twins)
    found = read_vavam_checkpoint(file, grid=GRID)
    assert found.config == plain.config
    assert all(torch.equal(found.state[k], v) for k, v in plain.state.items())
    assert "tensors stored under two names, equal" in found.report


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        VIDEO,
        replace(VIDEO, tied=False, output_scale=2.0, attention_scale=1.5),
        VaViMConfig(width=16, heads=4, layers=1, vocab=5, frames=2, base_width=8, camera="front"),
        ACTION,
        replace(ACTION, time="stratified", vavim=replace(VIDEO, tied=False)),
        replace(
            ACTION,
            vavim=replace(VIDEO, attention_scale=1.5),
            expert=replace(
                EXPERT, attention_scale=1.5, output_scale=2.0, action_dim=3, base_attention=8
            ),
        ),
    ],
)
def test_round_trip(tmp_path: Path, config: VaViMConfig | VaVAMConfig) -> None:
    source = folder(tmp_path / "ours", config, epoch=1, global_step=77)
    said = write_vavam_checkpoint(source, tmp_path / "theirs.ckpt")
    assert "theirs.ckpt" in said
    video = config.vavim if isinstance(config, VaVAMConfig) else config
    grid = None if video.grid == (18, 32) else video.grid
    # action_dim 3 is no task of the default spec
    spec = (
        spec_of(config)
        if isinstance(config, VaVAMConfig) and config.expert.action_dim != 2
        else None
    )
    result = convert(tmp_path / "theirs.ckpt", tmp_path / "again", grid=grid, spec=spec)
    first, again = load_checkpoint(source), load_checkpoint(tmp_path / "again")
    expected = {k: v for k, v in first.config.items() if k != "attention_scale"}
    assert {k: v for k, v in again.config.items() if k != "attention_scale"} == expected
    assert set(first.state) == set(again.state)
    assert all(torch.equal(first.state[k], again.state[k]) for k in first.state)
    assert result.hash == first.hash == again.hash
    assert str(result) == f"{result.report}\nwrote {tmp_path / 'again'}  {first.hash}"
    assert again.card["facts"]["global_step"] == 77
    assert result.hash in verify(tmp_path / "again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "ours", "theirs.ckpt"]


def spec_of(config: VaVAMConfig) -> StreamSpec:
    names = tuple(f"a{i}" for i in range(config.expert.action_dim))
    units = ("m",) * len(names)
    action = ActionSpec(names=names, units=units, frame="ego", mode="relative", rate_hz=2.0)
    return StreamSpec(cameras={"front": (32, 48)}, fps=2.0, action=action)


def test_what_the_file_says_of_acting_is_kept_in_metres(tmp_path: Path) -> None:
    source = folder(tmp_path / "ours", dataclasses.replace(ACTION, context=2, steps=7, clip=25.0))
    write_vavam_checkpoint(source, tmp_path / "x.pt")
    content = read_torch_file(tmp_path / "x.pt")
    conf = content["hyper_parameters"]["vam_conf"]
    assert (
        conf["finetuning_timesteps"],
        conf["num_inference_steps"],
        conf["final_action_clip_value"],
    ) == (2, 7, 0.5)
    mask = content["state_dict"]["vam.attn_mask"]
    assert mask.shape == (2 * 6 + 2 * 4,) * 2
    assert mask[:12, :12].equal(torch.ones(12, 12).tril().bool())
    assert not mask[:12, 12:].any()
    assert mask[12].tolist() == [True] * 6 + [False] * 6 + [True] * 4 + [False] * 4
    config = read_vavam_checkpoint(tmp_path / "x.pt", grid=GRID).config
    assert isinstance(config, VaVAMConfig)
    assert (config.context, config.steps, config.clip) == (2, 7, 25.0)


def test_files_name_the_classes_that_the_reference_expects(files: dict[str, Path]) -> None:
    for file in files.values():
        assert {
            "omegaconf.dictconfig DictConfig",
            "omegaconf.nodes AnyNode",
            "omegaconf.base Metadata",
            "omegaconf.base ContainerMetadata",
            "mup.infshape InfShape",
            "mup.infshape InfDim",
            "typing Any",
        } <= globals_of(file)
        with pytest.raises(Exception, match="weights_only"):
            torch.load(file, weights_only=True)
    content = read_torch_file(files["vavam"])
    assert content["gpt_mup_base_shapes"]["transformer.h.1.mlp.c_proj.weight"] == (16, 32)
    assert content["action_mup_base_shapess"]["transformer.h.0.attn.c_attn.weight"] == (48, 4)
    state = content["state_dict"]
    twin = state["vam.joint_model.gpt.transformer.wie.weight"]
    assert state["vam.gpt.lm_head.weight"].data_ptr() == twin.data_ptr()


def test_command_line_both_ways(
    tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back.ckpt"
    run(["weights", "convert", str(files["vavim"]), "--out", str(ours), "--grid", "2", "3"])
    assert "tied, the same as transformer.wie.weight" in capsys.readouterr().out
    run(["weights", "convert", str(ours), "--out", str(back), "--to", "reference"])
    assert "in the reference's names" in capsys.readouterr().out
    first, second = (read_torch_file(f)["state_dict"] for f in (files["vavim"], back))
    assert all(torch.equal(first[k], second[k]) for k in first)
    with pytest.raises(UserError, match="takes the folder and --out alone"):
        run(["weights", "convert", str(ours), "--out", str(back), "--to", "reference", "--half"])


# --- reading --------------------------------------------------------------------------------------


def wrap(prefix: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        content["state_dict"] = {prefix + k: v for k, v in content["state_dict"].items()}

    return change


def only(*parts: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        content["state_dict"] = {
            k: v for k, v in content["state_dict"].items() if k.startswith(parts)
        }

    return change


def apart(content: dict[str, Any]) -> None:
    content["state_dict"] = {k: v.clone() for k, v in content["state_dict"].items()}


def spelled(content: dict[str, Any]) -> None:
    content["action_mup_base_shapes"] = content.pop("action_mup_base_shapess")


def as_fused(content: dict[str, Any]) -> None:
    content |= {
        "ds_version": "0.15",
        "param_shapes": [{"a": (1, 2)}],
        "ds_config": {"train_batch_size": 3},
    }


def own_video_scale(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["vam_conf"]["gpt_config"]["attn_scale"] = 3.0


def without_tied_head(content: dict[str, Any]) -> None:
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if "lm_head" not in k}


@pytest.mark.parametrize(
    "change",
    [
        wrap("module."),
        wrap("_forward_module."),
        wrap("_forward_module.module."),
        only("vam.joint_model."),
        apart,
        only("vam.gpt.", "vam.action_expert."),
        spelled,
        as_fused,
        own_video_scale,
        without_tied_head,
    ],
)
def test_other_spellings_of_the_same_file(
    tmp_path: Path, files: dict[str, Path], change: Any
) -> None:
    expected = read_vavam_checkpoint(files["vavam"], grid=GRID)
    got = read_vavam_checkpoint(changed(files["vavam"], tmp_path / "x.pt", change), grid=GRID)
    assert got.config == expected.config
    assert set(got.state) == set(expected.state)
    assert all(torch.equal(got.state[k], expected.state[k]) for k in got.state)


def test_the_experts_attention_scale_is_the_videos_too(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["vam_conf"]["action_config"]["attn_scale"] = 1.5

    got = read_vavam_checkpoint(changed(files["vavam"], tmp_path / "x.pt", change), grid=GRID)
    assert isinstance(got.config, VaVAMConfig)
    assert got.config.vavim.attention_scale == got.config.expert.attention_scale == 1.5
    assert "attention_scale of the video: 1.5" in got.report


def test_report_accounts_for_every_entry(tmp_path: Path, files: dict[str, Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        as_fused(content)
        del content["gpt_mup_base_shapes"]

    report = read_vavam_checkpoint(
        changed(files["vavam"], tmp_path / "x.pt", change), grid=GRID
    ).report
    for part in (
        "vavam, 25 tensors",
        "26 tensors stored under two names",
        "left out: vam.attn_mask",
        "left out: lm_head.weight",
        "no gpt_mup_base_shapes in the file: muP base width 256 taken, as published",
        "muP base width 4, attention 16",
        "not read: ds_config",
        "not read: git_sha",
    ):
        assert part in report, part
    assert "not read: action_mup" not in report


def test_deepspeed_directory_equals_its_file(tmp_path: Path, files: dict[str, Path]) -> None:
    content = read_torch_file(files["vavim"])
    state = {k: v for k, v in content.pop("state_dict").items() if k != "network.lm_head.weight"}
    matrices = {k: v for k, v in state.items() if ".h." in k}
    others = {k: v for k, v in state.items() if ".h." not in k}
    path = write_zero(
        tmp_path / "x.ckpt",
        [matrices, others],
        world=3,
        client=content,
        prefix="_forward_module.",
        shared={"network.lm_head.weight": "network.transformer.wie.weight"},
    )
    expected = convert(files["vavim"], tmp_path / "a", grid=GRID)
    assert convert(path, tmp_path / "b", grid=GRID).hash == expected.hash
    training = read_training_state(path, grid=GRID)
    assert training.step == 7
    names = read_vavam_checkpoint(files["vavim"], grid=GRID).state
    assert set(training.first) == set(names)
    for name, value in names.items():
        assert torch.equal(training.first[name], value / 2)
        assert torch.equal(training.second[name], value / 4)
    assert training.groups[1][0] == [
        "token_embedding.weight",
        "position_embedding.weight",
        "frame_embedding.weight",
    ]


def test_published_grid_and_spec(tmp_path: Path, files: dict[str, Path]) -> None:
    config = VaVAMConfig(
        vavim=VaViMConfig(width=16, heads=1, layers=1, vocab=5, frames=2),
        expert=ExpertConfig(width=4),
    )
    write_vavam_checkpoint(folder(tmp_path / "ours", config), tmp_path / "x.ckpt")
    convert(tmp_path / "x.ckpt", tmp_path / "y")
    checkpoint = load_checkpoint(tmp_path / "y")
    assert checkpoint.config["vavim"]["grid"] == [18, 32]
    assert checkpoint.spec is not None
    assert checkpoint.spec.cameras == {"front": (288, 512)}
    assert checkpoint.spec.action is not None
    assert (checkpoint.spec.fps, checkpoint.spec.action.units, checkpoint.spec.action.mode) == (
        2,
        ("m",) * 2,
        "relative",
    )
    with pytest.raises(
        UserError,
        match="6 tokens per frame, whose rows and columns it does not tell; give the grid",
    ):
        convert(files["vavim"], tmp_path / "z")
    with pytest.raises(UserError, match="6 tokens per frame, which is not the grid 4 x 4 given"):
        convert(files["vavim"], tmp_path / "z", grid=(4, 4))
    assert not (tmp_path / "z").exists()


def test_own_spec_names_the_camera_and_is_compared(tmp_path: Path, files: dict[str, Path]) -> None:
    spec = replace(spec_of(ACTION), cameras={"bonnet": (40, 60)})
    convert(files["vavam"], tmp_path / "a", grid=GRID, spec=spec)
    checkpoint = load_checkpoint(tmp_path / "a")
    assert checkpoint.config["vavim"]["camera"] == "bonnet"
    assert checkpoint.spec == spec
    with pytest.raises(UserError, match="do not divide into squares"):
        convert(
            files["vavam"],
            tmp_path / "b",
            grid=GRID,
            spec=replace(spec, cameras={"front": (40, 40)}),
        )
    with pytest.raises(
        UserError, match="plans 2 numbers per waypoint, the task has no action dims"
    ):
        convert(files["vavam"], tmp_path / "b", grid=GRID, spec=replace(spec, action=None))
    with pytest.raises(UserError, match="which knows grid; convert it without --heads"):
        convert(files["vavam"], tmp_path / "b", grid=GRID, heads=(2, 2))
    with pytest.raises(UserError, match="which knows grid; convert it without --raw"):
        convert(files["vavam"], tmp_path / "b", grid=GRID, raw=True)
    with pytest.raises(UserError, match="a checkpoint of this project already"):
        convert(tmp_path / "a", tmp_path / "b")


# --- refusing -------------------------------------------------------------------------------------


def say(part: str, entry: str, value: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["vam_conf"][part][entry] = value

    return change


def put(name: str, value: Tensor | None) -> Any:
    def change(content: dict[str, Any]) -> None:
        content["state_dict"].pop(name, None)
        if value is not None:
            content["state_dict"][name] = value

    return change


def untie(content: dict[str, Any]) -> None:
    for prefix in ("vam.gpt.", "vam.joint_model.gpt."):
        content["state_dict"][f"{prefix}lm_head.weight"] = torch.ones(21, 32)


def drop_block(content: dict[str, Any]) -> None:
    name = "action_expert.transformer.h.1.mlp.c_fc.weight"
    for prefix in ("vam.", "vam.joint_model."):
        del content["state_dict"][prefix + name]


def drop_conf(content: dict[str, Any]) -> None:
    del content["hyper_parameters"]


def other_base(content: dict[str, Any]) -> None:
    content["gpt_mup_base_shapes"] |= {"transformer.h.0.mlp.c_fc.weight": (64, 16)}


def no_shapes(content: dict[str, Any]) -> None:
    content["gpt_mup_base_shapes"] = dict.fromkeys(content["gpt_mup_base_shapes"], 3)


def odd_flow(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["flow_sampling"] = "gaussian"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (say("gpt_config", "nb_layers", 3), r"gpt_config\.nb_layers = 3, its tensors have 2"),
        (
            say("gpt_config", "embedding_dim", 48),
            r"gpt_config\.embedding_dim = 48, its tensors have 32",
        ),
        (
            say("gpt_config", "dim_heads", 10),
            r"gpt_config\.dim_heads = 10, its tensors have width 32",
        ),
        (
            say("gpt_config", "dim_heads", None),
            r"lacks hyper_parameters\.vam_conf\.gpt_config\.dim_heads",
        ),
        (say("gpt_config", "nb_timesteps", 8), r"nb_timesteps = 8, its tensors have 3"),
        (
            say("gpt_config", "nb_tokens_per_timestep", 8),
            r"nb_tokens_per_timestep = 8, its tensors have 6",
        ),
        (say("gpt_config", "vocabulary_size", 20), r"vocabulary_size = 20, its tensors have 21"),
        (say("gpt_config", "mlp_dim_mult", 4), r"mlp_dim_mult = 4, its tensors have 2"),
        (say("gpt_config", "init_std", "wide"), r"odd form"),
        (
            say("action_config", "action_horizon", 6),
            r"action_config\.action_horizon = 6, its tensors have 4",
        ),
        (
            say("action_config", "number_high_level_command", 3),
            r"number_high_level_command = 3, its tensors have 5",
        ),
        (say("action_config", "attention_dim", 16), r"attention_dim = 16, its tensors have 32"),
        (
            say("action_config", "dim_heads", 8),
            r"action_config\.dim_heads = 8, its tensors have 16",
        ),
        (
            put("vam.gpt.transformer.wte.weight", torch.zeros(3, 32)),
            r"two copies of gpt\.transformer\.wte",
        ),
        (put("surprise.weight", torch.ones(2)), r"1 entries of no known part: surprise\.weight"),
        (
            put("vam.surprise.weight", torch.ones(2)),
            r"1 entries of no known part: vam\.surprise\.weight",
        ),
        (
            put("vam.gpt.vam.gpt.transformer.wie.weight", torch.ones(2)),
            r"left over \(vam\.gpt\.transformer\.wie",
        ),
        (
            put("vam.gpt.transformer.h.0.attn.bias", torch.ones(2)),
            r"1 left over \(transformer\.h\.0\.attn\.bias\)",
        ),
        (untie, r"output_tied is true, but lm_head\.weight is no wie"),
        (drop_block, r"1 missing \(transformer\.h\.1\.mlp\.c_fc\.weight\)"),
        (drop_conf, r"lacks hyper_parameters\.vam_conf"),
        (other_base, r"gpt_mup_base_shapes are not those of base width 16: 1 of another shape"),
        (no_shapes, r"odd form"),
        (odd_flow, r"unknown flow_sampling 'gaussian'"),
    ],
)
def test_contradictions_write_nothing(
    tmp_path: Path, files: dict[str, Path], change: Any, message: str
) -> None:
    file = changed(files["vavam"], tmp_path / "x.ckpt", change)
    with pytest.raises(UserError, match=message) as caught:
        convert(file, tmp_path / "out" / "y", grid=GRID)
    assert "x.ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class Runs:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


def test_a_forbidden_global_is_refused_by_name(tmp_path: Path, files: dict[str, Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        content["callbacks"] = Runs()

    file = changed(files["vavim"], tmp_path / "x.ckpt", change)
    with pytest.raises(
        UserError, match=r"x\.ckpt asks for 'posix\.system', which is not on the list"
    ):
        convert(file, tmp_path / "y", grid=GRID)
    assert not (tmp_path / "y").exists()


def test_what_the_reference_cannot_express_is_not_written(tmp_path: Path) -> None:
    apart = replace(ACTION, vavim=replace(VIDEO, attention_scale=2.0))
    with pytest.raises(UserError, match="attention by 2 in the video and by 1 in the expert"):
        write_vavam_checkpoint(folder(tmp_path / "a", apart), tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="draws times 'logit_normal'"):
        write_vavam_checkpoint(
            folder(tmp_path / "b", replace(ACTION, time="logit_normal")), tmp_path / "x.ckpt"
        )
    with pytest.raises(UserError, match="is a folder; name the file"):
        write_vavam_checkpoint(folder(tmp_path / "c", VIDEO), tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_vavam_checkpoint(tmp_path / "c", tmp_path / "file" / "x.ckpt")
    assert not list(tmp_path.glob("*.ckpt")) + list(tmp_path.glob(".*"))


# --- training state -------------------------------------------------------------------------------


def take_steps(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int) -> None:
    """Steps on random gradients."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in module.parameters():
            p.grad = torch.randn(p.shape, generator=rng) if p.requires_grad else None
        optimizer.step()


@pytest.mark.parametrize("config", [VIDEO, ACTION, replace(ACTION, train_vavim=True)])
def test_training_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, config: VaViMConfig | VaVAMConfig
) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        module = VaVAM(config) if isinstance(config, VaVAMConfig) else VaViM(config)
        return module, build_optimizer(module, lr=0.1, weight_decay=0.1, betas=(0.9, 0.95))

    module, optimizer = make()
    take_steps(module, optimizer, seed=0, steps=3)
    family = "vavam" if isinstance(config, VaVAMConfig) else "vavim"
    save_checkpoint(tmp_path / "ours", family=family, config=config, state=module.state_dict())
    write_vavam_checkpoint(tmp_path / "ours", tmp_path / "weights.ckpt")
    loader = {
        "_sampler_iter_state": {
            "sampler_iter_state": {"generator": torch.Generator().manual_seed(5).get_state()}
        }
    }
    extra = {
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"num_iter": 3}],
        "global_step": 3,
        "loops": {"fit_loop": {"state_dict": {"combined_loader": [loader]}}},
    }
    file = changed(
        tmp_path / "weights.ckpt", tmp_path / "x.ckpt", lambda content: content.update(extra)
    )
    state = read_training_state(file, grid=GRID)
    assert (state.step, state.global_step, state.epoch, state.schedule) == (
        3,
        3,
        0,
        {"num_iter": 3},
    )
    assert state.loader_seeds == (5,)
    assert sorted(first_epoch(5, 9).tolist()) == list(range(9))
    assert [settings["lr"] for _, settings in state.groups] == [
        g["lr"] for g in optimizer.param_groups
    ]

    resumed, other = make()
    take_steps(resumed, other, seed=3, steps=1)  # whatever it held is replaced
    set_model_state_dict(resumed, {**state.reference.state})
    held = get_optimizer_state_dict(resumed, other)
    started: dict[str, Any] = {**held, "state": state.optimizer_state()}
    set_optimizer_state_dict(resumed, other, started)
    take_steps(module, optimizer, seed=4, steps=2)
    take_steps(resumed, other, seed=4, steps=2)
    for name, value in module.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def no_state(content: dict[str, Any]) -> None:
    del content["optimizer_states"]


def one_group(content: dict[str, Any]) -> None:
    groups = content["optimizer_states"][0]["param_groups"]
    content["optimizer_states"][0]["param_groups"] = [
        {**groups[0], "params": [i for g in groups for i in g["params"]]}
    ]


def other_shape(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.ones(3)


def other_step(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["state"][0]["step"] = torch.tensor(9.0)


def lost_moment(content: dict[str, Any]) -> None:
    del content["optimizer_states"][0]["state"][2]["exp_avg_sq"]


def fewer(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["param_groups"][0]["params"].pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_state, "weights but no state of an optimiser"),
        (one_group, r"groups its parameters \[11\], muP groups them \[8, 3\]"),
        (other_shape, r"moments that are not those of its parameters: 1 of another shape"),
        (other_step, r"different numbers of steps \[2, 9\]"),
        (lost_moment, r"no whole state of AdamW \(KeyError"),
        (fewer, r"trained 10 parameters"),
    ],
)
def test_broken_training_states(
    tmp_path: Path, files: dict[str, Path], change: Any, message: str
) -> None:
    module = VaViM(VIDEO)
    optimizer = build_optimizer(module, lr=0.1, weight_decay=0.1, betas=(0.9, 0.95))
    take_steps(module, optimizer, seed=0, steps=2)

    def add(content: dict[str, Any]) -> None:
        content["optimizer_states"] = [optimizer.state_dict()]
        change(content)

    with pytest.raises(UserError, match=message):
        read_training_state(changed(files["vavim"], tmp_path / "x.ckpt", add), grid=GRID)


# --- memory ---------------------------------------------------------------------------------------


def test_a_built_module_shares_memory_with_its_checkpoint_and_keeps_what_is_frozen(
    tmp_path: Path,
) -> None:
    checkpoint = load_checkpoint(folder(tmp_path / "m", ACTION))
    module = build(checkpoint)
    for name, parameter in module.named_parameters():
        assert parameter.data_ptr() == checkpoint.state[name].data_ptr()
        assert parameter.requires_grad == name.startswith("expert.")


MEASURE = """
import sys
from pathlib import Path
from foreact.released.convert import convert
from foreact.checkpoints.format import build, load_checkpoint
from foreact.families.driving.released.read import read_vavam_checkpoint

LOADS = {
    "a released file": lambda path: read_vavam_checkpoint(path / "x.ckpt").build(),
    "our folder": lambda path: build(load_checkpoint(path / "ours")),
    "a conversion": lambda path: convert(path / "x.ckpt", path / "new"),
}

def memory(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))

for label, load in LOADS.items():
    load(Path(sys.argv[1]) / "tiny")  # what is imported late is no part of it
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS:")
    loaded = load(Path(sys.argv[1]) / "full")
    touched = sum(float(p.detach().sum()) for p in getattr(loaded, "parameters", list)())
    print(f"{label}: {memory('VmHWM:') - before}")
    del loaded
"""


def check_memory(path: Path, config: VaViMConfig) -> None:
    """Peak of resident memory, memory-mapped pages of files included, over that before loading."""
    tiny = VaViMConfig(width=16, heads=1, layers=1, vocab=5)
    for name, sizes in {"tiny": tiny, "full": config}.items():
        state = VaViM(sizes).state_dict()
        save_checkpoint(path / name / "ours", family="vavim", config=sizes, state=state)
        write_vavam_checkpoint(path / name / "ours", path / name / "x.ckpt")
        del state
    size = (path / "full" / "x.ckpt").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    measured = dict(line.split(": ") for line in done.stdout.splitlines())
    assert len(measured) == 3
    for label, extra in measured.items():
        assert 0.9 * size < int(extra) < 1.3 * size, (
            f"{label} of {size / 1e6:.0f} MB takes {int(extra) / 1e6:.0f} MB"
        )


def test_loading_costs_little_more_than_the_weights(tmp_path: Path) -> None:
    check_memory(tmp_path, VaViMConfig(layers=2))  # size S but for its depth: 107 MB


@pytest.mark.slow
def test_loading_size_s_costs_little_more_than_the_weights(tmp_path: Path) -> None:
    check_memory(tmp_path, VaViMConfig())
