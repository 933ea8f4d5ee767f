"""Checkpoint folders of safetensors and JSON, written atomically, read strictly, without pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from foreact.checkpoints.configs import config_from_json, config_to_json, greatest_number, read_json
from foreact.checkpoints.shipped import names, shipped
from foreact.checkpoints.tensors import read_tensors, storable
from foreact.checkpoints.text import TextTable
from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError, in_short
from foreact.plugs import known_family
from foreact.types import StreamSpec

__all__ = [
    "Checkpoint",
    "TokenizerRef",
    "assemble",
    "build",
    "config_from_json",
    "config_to_json",
    "content_hash",
    "family_of",
    "load_checkpoint",
    "load_tokenizer",
    "save_checkpoint",
]

T = TypeVar("T")
FORMAT = 1
MOST_OF_ANYTHING = 2**20
"""Layers, channels, ... up to which a config is believed without as many stored values."""


@dataclass(frozen=True, kw_only=True)
class TokenizerRef:
    """Which tokenizer a model was trained on: its family and the content hash of its checkpoint."""

    family: str
    hash: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint folder holds, read and checked.

    Attributes:
        path: the folder.
        family: name of a `foreact.plugs.Family`.
        config: config of the module, complete, as JSON values.
        state: name -> tensor on the CPU, in the stored dtype.
        spec: what the numbers mean, or None for a tokenizer.
        stats: normaliser of actions and states, or None.
        tokenizer: the tokenizer it belongs to, or None.
        tokenizer_path: folder of the embedded tokenizer, or None.
        text: instructions that it was trained on, with their features, or None.
        card: provenance, free JSON.
        hash: content hash of `family`, `config` and `state`, as "sha256:...".
    """

    path: Path
    family: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    spec: StreamSpec | None
    stats: Normalizer | None
    tokenizer: TokenizerRef | None
    tokenizer_path: Path | None
    text: TextTable | None
    card: dict[str, Any]
    hash: str

    @property
    def parameters(self) -> int:
        """Number of stored elements."""
        return sum(t.numel() for t in self.state.values())


def save_checkpoint(
    path: Path,
    *,
    family: str,
    config: Any,
    state: Mapping[str, Tensor],
    spec: StreamSpec | None = None,
    stats: Normalizer | None = None,
    tokenizer: Path | TokenizerRef | None = None,
    text: TextTable | None = None,
    card: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write a checkpoint folder; an older checkpoint at `path` stays whole until the new one is.

    Args:
        path: the folder to write. It may hold an older checkpoint, nothing else.
        family: name of a `foreact.plugs.Family`.
        config: the family's config dataclass.
        state: name -> tensor, on any device.
        spec, stats: meaning and normaliser of what goes in and out.
        tokenizer: a checkpoint folder to embed, or a reference to one that is kept elsewhere.
        text: instructions that the model was trained on, with their features.
        card: provenance (recipe, command, steps, time, hardware, scores), JSON values.
        dtype: type to store floating-point tensors in (float16 and bfloat16 halve the file); None
            keeps theirs.

    Returns:
        The content hash, "sha256:...".

    Raises:
        UserError: the config is of another family, `path` holds something else, the tokenizer is no
            checkpoint, or the disk refuses. Nothing is left half-written.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise UserError(
            f"'{path}' does not name a new folder; give the checkpoint a name, such "
            f"as {path / 'weights'}."
        )
    needed = known_family(family, "The new checkpoint").get("config")
    if not isinstance(config, needed):
        raise UserError(
            f"A '{family}' checkpoint needs a {needed.__name__}, found a {type(config).__name__}."
        )
    if path.exists() and not _is_replaceable(path):
        raise UserError(f"{path} exists and is no checkpoint; choose another path or remove it.")
    embedded = load_checkpoint(tokenizer) if isinstance(tokenizer, Path) else None
    reference = tokenizer if isinstance(tokenizer, TokenizerRef) else None
    if embedded is not None:
        reference = TokenizerRef(family=embedded.family, hash=embedded.hash)
    raw = config_to_json(config)
    stored = storable(state, dtype)

    files: dict[str, Any] = {"config.json": {"family": family, "format": FORMAT, "config": raw}}
    if spec is not None:
        files["spec.json"] = spec.to_json()
    if stats is not None:
        files["stats.json"] = stats.to_json()
    if reference is not None:
        files["tokenizer.json"] = dataclasses.asdict(reference)
    if card is not None:
        files["card.json"] = dict(card)
    texts = {
        name: json.dumps(value, indent=1, allow_nan=False) + "\n" for name, value in files.items()
    }

    temporary = path.with_name(f".{path.name}.tmp")
    retired = path.with_name(f".{path.name}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and retired.exists():  # an earlier save died between its two renames
            os.replace(retired, path)
        for leftover in (temporary, retired):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        save_file(stored, temporary / "model.safetensors")
        for name, content in texts.items():
            (temporary / name).write_text(content, encoding="utf-8")
        if text is not None:
            text.save(temporary)
        if embedded is not None:
            _copy_checkpoint(embedded.path, temporary / "tokenizer")
        _sync(temporary)
        if path.exists():
            os.rename(path, retired)
        os.rename(temporary, path)
        shutil.rmtree(retired, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The checkpoint {path} could not be written ({in_short(error)}); free some space "
            "or check the rights."
        ) from None
    finally:
        if not path.exists() and retired.exists():
            os.rename(retired, path)
        shutil.rmtree(temporary, ignore_errors=True)
    return _hash(family, raw, stored)


def load_checkpoint(
    path: Path, *, of: str | Sequence[str] | None = None, who: str = "this"
) -> Checkpoint:
    """Read a checkpoint folder and check all of it.

    Args:
        path: the folder.
        of: the family that it must be of, or several; None: any.
        who: takes such weights, for the error, such as "--init".

    Raises:
        UserError: it is missing, incomplete, truncated, of an unknown or another family or of a
            newer format, or a JSON file has an unknown, missing or ill-typed entry.
    """
    path = Path(path)
    if not path.is_dir() or not (path / "config.json").is_file():
        retired = path.with_name(f".{path.name}.old")
        hint = "give the folder that holds config.json"
        if retired.exists():
            hint = f"an older one is whole at {retired}: rename it"
        raise UserError(f"There is no checkpoint at {path}; {hint}.")
    family, raw = _read_config(path)
    allowed = (of,) if isinstance(of, str) else of
    if allowed is not None and family not in allowed:
        raise UserError(
            f"{path} holds weights of the family '{family}'; {who} takes those of "
            f"{' or '.join(allowed)}."
        )
    state = read_tensors(path / "model.safetensors")

    spec = _read_part(path / "spec.json", StreamSpec.from_json)
    stats = _read_part(path / "stats.json", Normalizer.from_json)
    reference = _read_part(path / "tokenizer.json", lambda raw: config_from_json(TokenizerRef, raw))
    card = _read_part(path / "card.json", dict)
    embedded = path / "tokenizer"
    return Checkpoint(
        path=path,
        family=family,
        config=raw,
        state=state,
        spec=spec,
        stats=stats,
        tokenizer=reference,
        tokenizer_path=embedded if embedded.is_dir() else None,
        text=TextTable.load(path),
        card=card or {},
        hash=_hash(family, raw, state),
    )


def build(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> nn.Module:
    """The module of a checkpoint, in evaluation mode, float32.

    Where the tensors of `checkpoint.state` are float32 and on `device`, the module shares their
    memory, so that loading costs the weights once.

    Raises:
        UserError: a tensor is missing, left over or of another shape, named.
    """
    cls = known_family(checkpoint.family, str(checkpoint.path)).get("config")
    file = checkpoint.path / "config.json"
    config = config_from_json(cls, checkpoint.config, where=f"{file}: config", complete=True)
    try:
        module = assemble(checkpoint.family, config, checkpoint.state)
    except UserError as error:
        raise UserError(
            f"The weights of {checkpoint.path} do not fit their config: {error}; restore them "
            "from their source."
        ) from None
    return module.to(device).eval()


def assemble(family: str, config: Any, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a module from given tensors, copying only those that are stored in another dtype.

    Args:
        family: name of a `foreact.plugs.Family`.
        config: the family's config dataclass.
        state: name -> tensor; the module's parameters become these.

    Raises:
        UserError: a tensor is missing, left over or of another shape, named.
    """
    size = sum(tensor.numel() for tensor in state.values())
    if (greatest := greatest_number(config_to_json(config))) > max(MOST_OF_ANYTHING, size):
        raise UserError(f"its config says {greatest:,} somewhere, for {size:,} stored values")
    try:
        with torch.device("meta"):
            module = known_family(family, "The model").get("module")(config)
    except UserError:
        raise
    except Exception as error:  # torch raises anything over sizes that cannot be
        raise UserError(f"its config builds no network ({in_short(error)})") from error
    expected = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    if problem := difference(expected, {k: tuple(v.shape) for k, v in state.items()}):
        raise UserError(problem)
    values: dict[str, Tensor] = {k: state[k].to(v.dtype) for k, v in module.state_dict().items()}
    made: dict[int, nn.Parameter] = {}  # one per parameter, so that one with two names stays one
    for name, p in module.named_parameters(remove_duplicate=False):
        values[name] = made.setdefault(
            id(p), nn.Parameter(values[name], requires_grad=p.requires_grad)
        )
    module.load_state_dict(values, strict=True, assign=True)
    assert not any(t.is_meta for t in [*module.parameters(), *module.buffers()]), (
        "a tensor outside the state"
    )
    return module


def load_tokenizer(
    checkpoint: Checkpoint, override: Path | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """The tokenizer a model was trained on.

    Args:
        checkpoint: the model's.
        override: a checkpoint folder to take instead of the embedded one; it must be the same
            tokenizer. Where neither is given, a shipped checkpoint of that hash serves.
        device: where to put it.

    Raises:
        UserError: none is at hand, or its content hash differs from the one the model names.
    """
    required = checkpoint.tokenizer
    if required is None:
        raise UserError(
            f"The checkpoint {checkpoint.path} names no tokenizer; it cannot read or draw pictures."
        )
    source = override or checkpoint.tokenizer_path or _shipped_with(required.hash)
    if source is None:
        raise UserError(
            f"The checkpoint {checkpoint.path} needs the {required.family} tokenizer "
            f"{required.hash} and does not embed it; give the tokenizer's checkpoint."
        )
    loaded = load_checkpoint(source)
    if loaded.hash != required.hash:
        raise UserError(
            f"The checkpoint {checkpoint.path} was trained on the {required.family} tokenizer "
            f"{required.hash}, {source} holds the {loaded.family} tokenizer {loaded.hash}; give "
            "the one it was trained on."
        )
    return build(loaded, device)


def _shipped_with(digest: str) -> Path | None:
    return next(
        (shipped(name) for name in names() if load_checkpoint(shipped(name)).hash == digest), None
    )


def content_hash(path: Path) -> str:
    """Hash of a checkpoint's family, config and tensors, as "sha256:...".

    Of each tensor, its name, dtype, shape and bytes count.

    It depends neither on the order in the file nor on spec, statistics or card.
    """
    return load_checkpoint(path).hash


def family_of(path: Path) -> str:
    """Family of a checkpoint folder, without reading its weights."""
    return _read_config(path)[0]


def difference(expected: Mapping[str, Any], found: Mapping[str, Any], *, show: int = 3) -> str:
    """What keeps two {name: shape} from being equal, in words; empty if they are."""
    groups = {
        "missing": sorted(set(expected) - set(found)),
        "left over": sorted(set(found) - set(expected)),
        "of another shape": [
            f"{k} {found[k]} for {expected[k]}"
            for k in sorted(set(expected) & set(found))
            if expected[k] != found[k]
        ],
    }
    return "; ".join(
        f"{len(names)} {label} ({', '.join(names[:show])}{', ...' if len(names) > show else ''})"
        for label, names in groups.items()
        if names
    )


def _is_replaceable(path: Path) -> bool:
    """Whether a folder may be replaced: it is empty or has a checkpoint's config.

    The config of a run has the same file name, but other entries.
    """
    file = path / "config.json"
    if not file.is_file():
        return path.is_dir() and not any(path.iterdir())
    raw = read_json(file)
    return isinstance(raw, dict) and {"family", "format"} <= raw.keys()


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    file = path / "config.json"
    raw = read_json(file)
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
        raise UserError(
            f"{file} should hold family, format and config; it is not a checkpoint of this project."
        )
    if not 1 <= raw["format"] <= FORMAT:
        raise UserError(
            f"{file} has checkpoint format {raw['format']}, this version reads up to {FORMAT}; "
            "update foreact."
        )
    if set(raw) != {"family", "format", "config"}:
        raise UserError(
            f"{file} should hold exactly family, format and config, found {', '.join(sorted(raw))}."
        )
    cls = known_family(raw["family"], str(path)).get("config")
    config_from_json(cls, raw["config"], where=f"{file}: config", complete=True)
    return raw["family"], raw["config"]


def _read_part(file: Path, parse: Callable[[Any], T]) -> T | None:
    if not file.exists():
        return None
    raw = read_json(file)
    try:
        return parse(raw)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{file} does not hold what it should ({type(error).__name__}: {error}); restore it "
            "from its source."
        ) from None


def _hash(family: str, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps([family, config], sort_keys=True).encode())
    for name in sorted(state):
        t = state[name].contiguous()
        digest.update(json.dumps([name, str(t.dtype), list(t.shape)]).encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data if t.numel() else b"")
    return "sha256:" + digest.hexdigest()


def _copy_checkpoint(source: Path, target: Path) -> None:
    # Only the files of the format: whatever else lies in the folder stays there.
    target.mkdir()
    for name in (
        "model.safetensors",
        "config.json",
        "spec.json",
        "stats.json",
        "tokenizer.json",
        "card.json",
    ):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _sync(folder: Path) -> None:
    for file in [p for p in folder.rglob("*") if p.is_file()]:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
