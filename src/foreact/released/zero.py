"""DeepSpeed ZeRO checkpoint directories, as Lightning writes them -> one fused file's content.

    run.ckpt/latest                                     names the folder, "checkpoint"
    run.ckpt/checkpoint/mp_rank_00_model_states.pt      half-precision weights, what Lightning added
    run.ckpt/checkpoint/[bf16_]zero_pp_rank_{r}_mp_rank_00_optim_states.pt   float32, of rank r

Stages 1 and 2 lay the parameters of a group end to end, fill up to a multiple of 2 x ranks numbers
and give each rank an equal part. Stage 3 splits every parameter by itself into equal parts, the
last one filled up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.files import listed, read_text
from foreact.progress import Progress
from foreact.released.pickles import read_torch_file

OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
# What DeepSpeed itself keeps in the file of the model; all else in it is Lightning's.
OWN_ENTRIES = {
    "module",
    "buffer_names",
    "optimizer",
    "param_shapes",
    "frozen_param_shapes",
    "frozen_param_fragments",
    "shared_params",
    "lr_scheduler",
    "data_sampler",
    "random_ltd",
    "sparse_tensor_module_names",
    "csr_tensor_module_names",
    "skipped_steps",
    "global_steps",
    "global_samples",
    "dp_world_size",
    "mp_world_size",
    "ds_config",
    "ds_version",
    "autotp_config",
}

MAX_RANKS = 100_000

Shapes = Mapping[str, Sequence[int]]


def is_zero_directory(path: Path) -> bool:
    """Whether a path can only be a DeepSpeed directory: a folder, not a checkpoint of ours."""
    return path.is_dir() and not (path / "config.json").is_file()


def read_zero_directory(path: Path) -> dict[str, Any]:
    """Content of a directory as fused: Lightning's entries, with `state_dict` in float32.

    Tensors stand on memory maps of the files; only those that lie across two ranks are copied.

    Raises:
        UserError: it is no such directory, a rank's file is missing or cut short, or its parts
            contradict each other.
    """
    with _refusing_odd_forms(path):
        read = _Directory(Path(path))
        state = _merged(read, [_flat_weights(read, rank) for rank in range(read.world)])
        state |= _frozen(read)
        module = read.model.get("module")
        for name in read.model.get("buffer_names") or ():
            if isinstance(module, Mapping) and isinstance(module.get(name), Tensor):
                state[name] = module[name]
        for name, source in dict(read.model.get("shared_params") or {}).items():
            if source in state:
                state[name] = state[source]
        client = {k: v for k, v in read.model.items() if k not in OWN_ENTRIES}
        return client | {"state_dict": state}


@dataclass(frozen=True, kw_only=True)
class ZeroMoments:
    """State of AdamW in a directory.

    Attributes:
        first, second: name -> running mean of the gradient and of its square, float32.
        step: steps done.
        groups: names of the parameters of each group, in order.
        settings: of each group (lr, weight_decay, betas, eps), as far as the file has them.
    """

    first: dict[str, Tensor]
    second: dict[str, Tensor]
    step: int
    groups: list[list[str]]
    settings: list[dict[str, Any]]


def read_zero_moments(path: Path) -> ZeroMoments:
    """The optimiser's state of a directory, under the names of its `state_dict`.

    Raises:
        UserError: as `read_zero_directory`, or the optimiser was not AdamW.
    """
    with _refusing_odd_forms(path):
        read = _Directory(Path(path))
        inner = [_base_state(read, rank) for rank in range(read.world)]
        states = [_group_states(read, rank, inner[rank]) for rank in range(read.world)]

        def moment(name: str) -> dict[str, Tensor]:
            return _merged(
                read,
                [
                    [_tensor(read, s.get(name), rank) for s in group]
                    for rank, group in enumerate(states)
                ],
            )

        param_groups = inner[0].get("param_groups") if isinstance(inner[0], Mapping) else None
        settings: list[Any] = [{} for _ in read.shapes]
        if isinstance(param_groups, list) and len(param_groups) == len(read.shapes):
            settings = param_groups
        return ZeroMoments(
            first=moment("exp_avg"),
            second=moment("exp_avg_sq"),
            step=_steps(read, states[0][0], settings[0]),
            groups=[list(g) for g in read.shapes],
            settings=[
                {k: g[k] for k in ("lr", "weight_decay", "betas", "eps") if k in g}
                for g in settings
            ],
        )


@contextmanager
def _refusing_odd_forms(path: Path) -> Iterator[None]:
    """Turn errors from entries that DeepSpeed would not write into one sentence."""
    try:
        yield
    except (
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        KeyError,
        RuntimeError,
        OverflowError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"The DeepSpeed checkpoint {path} holds an entry of an odd form ({reason})."
        ) from None


class _Directory:
    """The files of one directory, opened and checked against each other.

    Attributes:
        path: as given, for messages.
        model: content of the file of the model.
        optimizer: one optimiser state per rank.
        world: number of ranks.
        stage: of ZeRO.
        shapes: per group of the optimiser, name -> shape.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = _folder(path)
        files = self._optimizer_files()
        first = self._optimizer(files[min(files)])
        counts = first.get("partition_count", len(files))
        self.world = max(counts) if isinstance(counts, list | tuple) else int(counts)
        self.stage = int(first.get("zero_stage", 0))
        if not 1 <= self.world <= MAX_RANKS:
            raise self.error(f"was written by {self.world} ranks, which cannot be")
        if self.stage not in (1, 2, 3):
            raise self.error(f"was written by ZeRO stage {self.stage}; stages 1, 2 and 3 are known")
        if missing := sorted(set(range(self.world)) - set(files)):
            raise self.error(
                f"lacks the optimiser files of ranks {missing} of {self.world}; copy all of it"
            )
        if extra := sorted(set(files) - set(range(self.world))):
            raise self.error(
                f"holds files of ranks {extra}, but was written by {self.world} "
                "ranks; copy it afresh"
            )
        ranks = Progress(range(self.world), desc="ranks", disable=self.world < 8, leave=False)
        self.optimizer = [self._optimizer(files[r]) for r in ranks]
        self.model = self.model_of(0)
        shapes = self.model.get("param_shapes")
        groups = [shapes] if isinstance(shapes, Mapping) else shapes
        if not isinstance(groups, list) or not all(isinstance(g, Mapping) for g in groups):
            raise self.error("does not tell the shapes of its parameters (param_shapes)")
        self.shapes: list[Shapes] = groups

    def error(self, text: str) -> UserError:
        return UserError(f"The DeepSpeed checkpoint {self.path} {text}.")

    def model_of(self, rank: int) -> Mapping[str, Any]:
        """The model file of a rank; before stage 3 there is one for all."""
        name = (
            f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
            if self.stage == 3
            else "mp_rank_00_model_states.pt"
        )
        content = read_torch_file(self.folder / name)
        if not isinstance(content, Mapping):
            raise self.error(f"holds something else in {name}")
        return content

    def _optimizer_files(self) -> dict[int, Path]:
        files: dict[int, Path] = {}
        for file in listed(self.folder):
            if not (match := OPTIMIZER_FILE.fullmatch(file.name)):
                continue
            rank, split = int(match[1]), int(match[2])
            if split != 0:
                raise self.error(
                    "is split by tensor parallelism, which is not read here; fuse it with DeepSpeed"
                )
            if rank in files:
                raise self.error(
                    f"holds rank {rank} twice ({files[rank].name}, {file.name}); "
                    "keep those of one run"
                )
            files[rank] = file
        if not files:
            raise self.error(
                "holds no files zero_pp_rank_*_mp_rank_00_optim_states.pt; give the "
                "folder above them"
            )
        return files

    def _optimizer(self, file: Path) -> Mapping[str, Any]:
        content = read_torch_file(file)
        state = content.get("optimizer_state_dict") if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping):
            raise self.error(f"holds no optimizer_state_dict in {file.name}")
        return state


def _folder(path: Path) -> Path:
    latest = path / "latest"
    tag = read_text(latest).strip() if latest.is_file() else "checkpoint"
    if not tag or Path(tag).name != tag:
        raise UserError(f"The file {latest} should name a folder beside it, found '{tag[:80]}'.")
    if latest.is_file() and not (path / tag).is_dir():
        raise UserError(
            f"The file {latest} names the folder '{tag}', which is not there; copy "
            "all of the checkpoint."
        )
    return path / tag if (path / tag).is_dir() else path


def _flat_weights(read: _Directory, rank: int) -> list[Tensor]:
    name = "fp32_flat_groups" if read.stage == 3 else "single_partition_of_fp32_groups"
    groups = read.optimizer[rank].get(name)
    if not isinstance(groups, list | tuple):
        raise read.error(f"holds no float32 weights ({name}) of rank {rank}")
    return [_tensor(read, g, rank) for g in groups]


def _base_state(read: _Directory, rank: int) -> Any:
    # Stages 1 and 2 keep the inner optimiser's state beside the weights; stage 3 wraps it again.
    return read.optimizer[rank].get(
        "optimizer_state_dict" if read.stage == 3 else "base_optimizer_state"
    )


def _group_states(read: _Directory, rank: int, inner: Any) -> list[Mapping[str, Any]]:
    """State of the flat parameter of each group, in the order of the groups."""
    states = inner.get("state") if isinstance(inner, Mapping) else inner
    if isinstance(states, Mapping):
        states = [states[i] for i in sorted(states)]
    if (
        not isinstance(states, list)
        or not states
        or not all(isinstance(s, Mapping) for s in states)
    ):
        raise read.error(f"holds no state of the optimiser of rank {rank}")
    return states


def _steps(read: _Directory, state: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    step = state.get("step", settings.get("step"))  # fused optimisers count per group
    if step is None:
        raise read.error("does not tell how many steps its optimiser has done")
    return int(step)


def _tensor(read: _Directory, value: Any, rank: int) -> Tensor:
    if not isinstance(value, Tensor):
        raise read.error(f"holds something else than numbers in the partition of rank {rank}")
    return value.reshape(-1)


def _merged(read: _Directory, flat: list[list[Tensor]]) -> dict[str, Tensor]:
    """[rank][group] flat partitions -> name -> tensor."""
    if read.stage == 3:
        whole = [torch.cat(groups) if len(groups) > 1 else groups[0] for groups in flat]
        return _join_parameters(
            read, whole, {k: v for group in read.shapes for k, v in group.items()}
        )
    if any(len(groups) != len(read.shapes) for groups in flat):
        raise read.error(
            f"has {len(read.shapes)} groups of parameters, its ranks {[len(g) for g in flat]}"
        )
    state: dict[str, Tensor] = {}
    for index, shapes in enumerate(read.shapes):
        state |= _join_group(read, [groups[index] for groups in flat], shapes)
    return state


def _join_group(read: _Directory, parts: list[Tensor], shapes: Shapes) -> dict[str, Tensor]:
    total = sum(math.prod(s) for s in shapes.values())
    size = 2 * math.ceil(total / (2 * read.world))
    for rank, part in enumerate(parts):
        unpadded = min(size, max(0, total - rank * size))  # some versions save without the filling
        if part.numel() not in (size, unpadded):
            raise read.error(
                f"is cut short or mixed: rank {rank} holds {part.numel()} numbers of "
                f"a group, not {size}"
            )
    state: dict[str, Tensor] = {}
    start = 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        pieces = [
            part[max(0, start - rank * size) : max(0, stop - rank * size)]
            for rank, part in enumerate(parts)
            if rank * size < stop and start < (rank + 1) * size
        ]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces or [parts[0][:0]])
        state[name] = whole.view(tuple(shape))
        start = stop
    return state


def _join_parameters(read: _Directory, parts: list[Tensor], shapes: Shapes) -> dict[str, Tensor]:
    each = {name: math.ceil(math.prod(shape) / read.world) for name, shape in shapes.items()}
    for rank, part in enumerate(parts):
        if part.numel() != sum(each.values()):
            expected = sum(each.values())
            raise read.error(
                f"is cut short or mixed: rank {rank} holds {part.numel()} numbers, not {expected}"
            )
    state: dict[str, Tensor] = {}
    start = 0
    for name, shape in shapes.items():
        pieces = [part[start : start + each[name]] for part in parts]
        state[name] = torch.cat(pieces)[: math.prod(shape)].view(tuple(shape))
        start += each[name]
    return state


def _frozen(read: _Directory) -> dict[str, Tensor]:
    shapes = read.model.get("frozen_param_shapes") or {}
    if not shapes:
        return {}
    ranks = range(read.world) if read.stage == 3 else range(1)
    models = [read.model if r == 0 else read.model_of(r) for r in ranks]
    fragments = [m.get("frozen_param_fragments") or {} for m in models]
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        count = math.prod(shape)
        pieces = [_tensor(read, f.get(name), rank) for rank, f in enumerate(fragments)]
        if sum(p.numel() for p in pieces) < count:
            raise read.error(f"is cut short: its frozen parameter {name} is not whole")
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        state[name] = whole[:count].view(tuple(shape))
    return state
