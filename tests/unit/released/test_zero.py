"""DeepSpeed ZeRO directories: what several ranks wrote is read back
as one; what is missing or mixed is said.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.zero_files import State, halved, write

from foreact.errors import UserError
from foreact.released.zero import is_zero_directory, read_zero_directory, read_zero_moments

WEIGHTS = "single_partition_of_fp32_groups"
GROUPS: list[State] = [
    {"a.weight": torch.arange(15.0).view(3, 5), "b.weight": torch.arange(7.0) - 3},
    {"c.weight": torch.linspace(-1, 1, 11).view(11, 1), "d.weight": torch.tensor(2.5)},
]


def check(got: dict[str, Any], expected: State) -> None:
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert got[name].shape == tensor.shape, name
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize(("stage", "padded"), [(1, True), (2, True), (2, False), (3, True)])
def test_ranks_come_together(tmp_path: Path, world: int, stage: int, padded: bool) -> None:
    frozen = {"frozen.weight": torch.arange(10.0).view(2, 5)}
    buffers = {"mask": torch.tensor([True, False])}
    path = write(
        tmp_path / "x.ckpt",
        GROUPS,
        world=world,
        stage=stage,
        padded=padded,
        frozen=frozen,
        buffers=buffers,
        shared={"tied.weight": "a.weight"},
        client={"global_step": 7, "hyper_parameters": {"a": 1}},
    )
    assert is_zero_directory(path)
    content = read_zero_directory(path)
    expected = GROUPS[0] | GROUPS[1]
    assert set(content) == {"state_dict", "global_step", "hyper_parameters"}
    check(
        content["state_dict"], expected | frozen | buffers | {"tied.weight": expected["a.weight"]}
    )
    moments = read_zero_moments(path)
    check(moments.first, halved(expected))
    check(moments.second, halved(halved(expected)))
    assert moments.step == 7
    assert moments.groups == [["a.weight", "b.weight"], ["c.weight", "d.weight"]]
    assert [g["lr"] for g in moments.settings] == [0.1, 0.05]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=6),
    world=st.integers(1, 7),
    stage=st.sampled_from([2, 3]),
)
def test_any_shapes_on_any_ranks(
    tmp_path_factory: Any, sizes: list[Any], world: int, stage: int
) -> None:
    rng = torch.Generator().manual_seed(0)
    group = {f"p{i}": torch.randn(shape, generator=rng) for i, shape in enumerate(sizes)}
    path = write(tmp_path_factory.mktemp("zero") / "x", [group], world=world, stage=stage)
    check(read_zero_directory(path)["state_dict"], group)


def test_tensors_of_one_rank_are_not_copied(tmp_path: Path) -> None:
    group = {"a": torch.ones(6), "b": torch.ones(6)}
    state = read_zero_directory(write(tmp_path / "x", [group], world=2))["state_dict"]
    assert all(t.untyped_storage().nbytes() == 24 for t in state.values())
    whole = read_zero_directory(write(tmp_path / "y", [group], world=1))["state_dict"]
    assert whole["a"].untyped_storage().data_ptr() == whole["b"].untyped_storage().data_ptr()


def remove(rank: int) -> Any:
    return lambda folder: (folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").unlink()


def edit(rank: int, **changes: Any) -> Any:
    def change(folder: Path) -> None:
        file = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        content = torch.load(file)
        content["optimizer_state_dict"] |= changes
        torch.save(content, file)

    return change


def cut(folder: Path) -> None:
    file = folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:-200])


def twice(folder: Path) -> None:
    file = folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    (folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(file.read_bytes())


def split(folder: Path) -> None:
    file = folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.rename(folder / "bf16_zero_pp_rank_1_mp_rank_01_optim_states.pt")


def no_model(folder: Path) -> None:
    (folder / "mp_rank_00_model_states.pt").unlink()


def no_shapes(folder: Path) -> None:
    file = folder / "mp_rank_00_model_states.pt"
    torch.save({k: v for k, v in torch.load(file).items() if k != "param_shapes"}, file)


def other_tag(folder: Path) -> None:
    (folder.parent / "latest").write_text("global_step9")


def path_as_tag(folder: Path) -> None:
    (folder.parent / "latest").write_text("../../elsewhere")


def empty(folder: Path) -> None:
    for file in folder.glob("*_optim_states.pt"):
        file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(1), r"lacks the optimiser files of ranks \[1\] of 3"),
        (remove(2), r"lacks the optimiser files of ranks \[2\] of 3"),
        (edit(0, partition_count=2), r"holds files of ranks \[2\], but was written by 2 ranks"),
        (edit(0, partition_count=4), r"lacks the optimiser files of ranks \[3\] of 4"),
        (
            edit(1, **{WEIGHTS: [torch.ones(8), torch.ones(1)]}),
            r"rank 1 holds 1 numbers of a group, not 4",
        ),
        (
            edit(1, **{WEIGHTS: [torch.ones(8)]}),
            r"has 2 groups of parameters, its ranks \[2, 1, 2\]",
        ),
        (edit(1, **{WEIGHTS: None}), r"holds no float32 weights"),
        (edit(0, partition_count=10**12), r"was written by 1000000000000 ranks, which cannot be"),
        (edit(0, partition_count="many"), r"holds an entry of an odd form \(invalid literal"),
        (edit(0, zero_stage=[2]), r"holds an entry of an odd form"),
        (edit(0, zero_stage=0), r"ZeRO stage 0; stages 1, 2 and 3 are known"),
        (cut, r"rank_1_mp_rank_00_optim_states\.pt is cut short"),
        (twice, r"holds rank 1 twice"),
        (split, r"split by tensor parallelism"),
        (no_model, r"There is no file .*mp_rank_00_model_states\.pt"),
        (no_shapes, r"does not tell the shapes"),
        (other_tag, r"names the folder 'global_step9', which is not there"),
        (path_as_tag, r"should name a folder beside it"),
        (empty, r"holds no files zero_pp_rank_\*"),
    ],
)
def test_what_is_missing_or_mixed_is_said(tmp_path: Path, change: Any, message: str) -> None:
    path = write(tmp_path / "x.ckpt", GROUPS, world=3)
    change(path / "checkpoint")
    with pytest.raises(UserError, match=message) as caught:
        read_zero_directory(path)
    assert "\n" not in str(caught.value)


def test_a_directory_without_moments_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ckpt", GROUPS, world=3)
    edit(1, base_optimizer_state=None)(path / "checkpoint")
    read_zero_directory(path)
    with pytest.raises(UserError, match="holds no state of the optimiser of rank 1"):
        read_zero_moments(path)


def test_deepspeeds_own_objects_are_read_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.ckpt", GROUPS, world=2)
    with monkeypatch.context() as patch:

        def kind(module: str, name: str, base: type = object) -> Any:
            made = type(name, (base,), {"__module__": module})
            parts = module.split(".")
            for n in range(1, len(parts)):
                patch.setitem(sys.modules, ".".join(parts[:n]), types.ModuleType(parts[n - 1]))
            patch.setitem(sys.modules, module, types.SimpleNamespace(**{name: made}))
            return made

        scaler = kind("deepspeed.runtime.fp16.loss_scaler", "LossScaler")()
        scaler.cur_scale = 1.0
        stage = kind("deepspeed.runtime.zero.config", "ZeroStageEnum", int)
        stage.__reduce_ex__ = lambda self, protocol: (stage, (int(self),))
        fragment = kind("deepspeed.utils.tensor_fragment", "fragment_address")()
        fragment.numel, fragment.start = 3, 0
        extra = {
            "zero_stage": stage(2),
            "loss_scaler": scaler,
            "param_slice_mappings": [{"a": fragment}],
        }
        for rank in range(2):
            edit(rank, **extra)(path / "checkpoint")
    check(read_zero_directory(path)["state_dict"], GROUPS[0] | GROUPS[1])
