"""Foreign checkpoint files -> our checkpoint folders, and the full check of a folder."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from foreact.tokenizers.images import Preprocessing
from foreact.types import StreamSpec, UserError
from foreact.weights.format import Checkpoint, build, load_checkpoint, save_checkpoint
from foreact.weights.gpt2_reference import is_gpt2
from foreact.weights.kl_vae_reference import read_kl_vae
from foreact.weights.llamagen_reference import is_llamagen, read_llamagen
from foreact.weights.taming_reference import is_taming, read_taming
from foreact.weights.uva_reference import check_spec, read_uva_checkpoint
from foreact.weights.vavam_reference import read_checkpoint_content, read_vavam_checkpoint, require_spec, vavam_family
from foreact.weights.voc_reference import convert_voc
from foreact.weights.vqkd_reference import is_vqkd, read_vqkd

Kind = Literal["uva", "kl_vae", "mar", "vavim", "vavam", "vq", "taming", "vqkd", "voc"]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One written checkpoint folder and the account of its source."""

    path: Path
    hash: str
    report: str

    def __str__(self) -> str:
        return f"{self.report}\nwrote {self.path}  {self.hash}"


@dataclass(frozen=True, kw_only=True)
class OccupancyFacts:
    """What the file of a VOC's GPT does not say: see `foreact.weights.voc_reference.convert_voc`."""

    tokenizer: Path
    gamma: float = 0.8
    frames: int | None = None


def recognise(payload: Any, path: Path) -> Kind:
    """Which kind of foreign checkpoint a file's content is.

    Raises:
        UserError: none that is known.
    """
    if isinstance(payload, Mapping):
        if {"cfg", "state_dicts"} <= set(payload):
            return "uva"
        if family := vavam_family(payload):
            return family
        if is_llamagen(payload):
            return "vq"
        if is_taming(payload):
            return "taming"
        if is_vqkd(payload):
            return "vqkd"
        if is_gpt2(payload):
            return "voc"
        if _has(payload.get("model_ema"), "encoder_blocks."):
            return "mar"
        if _has(payload.get("model"), "decoder.up.") and _has(payload.get("model"), "quant_conv."):
            return "kl_vae"
    found = ", ".join(map(str, payload)) if isinstance(payload, Mapping) else type(payload).__name__
    raise UserError(
        f"{path} is none of the known checkpoints (UVA: entries cfg and state_dicts; VaViM and VaVAM: state_dict and "
        f"hyper_parameters; KL-VAE kl16, LlamaGen and BEiT v2's VQ-KD: entry model; taming's VQGAN, also of VOC: "
        f"encoder.down and quantize; a GPT-2 of VOC: transformer.h; MAR: entry model_ema); it holds: {found[:200]}."
    )


def convert(
    src: Path,
    dst: Path,
    *,
    spec: StreamSpec | None = None,
    ema: bool = True,
    heads: tuple[int, ...] | None = None,
    grid: tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    occupancy: OccupancyFacts | None = None,
    dtype: torch.dtype | None = None,
) -> Converted:
    """Write a foreign checkpoint as our folder.

    Args:
        src: a UVA checkpoint, a VaViM or VaVAM checkpoint (file or DeepSpeed directory), or a tokenizer (KL-VAE
            kl16.ckpt, LlamaGen's vq_ds16_c2i.pt, a VQGAN of taming or VOC, BEiT v2's VQ-KD).
        dst: the folder to write; a UVA checkpoint embeds its tokenizer there.
        spec: what the numbers mean; checked against the file's sizes. UVA files do not tell units or names; for VaViM
            and VaVAM it is by default what the published models see and plan.
        ema: for UVA, take the averaged weights.
        heads: for UVA of a size without a published name, attention heads of encoder and decoder; for a GPT of VOC
            those it has, where they are not the published ones.
        grid: rows and columns of tokens in a frame; for VaViM and VaVAM where they are not the published 18 x 32, for
            LlamaGen's and taming's tokenizers that they will be used with.
        occupancy: for a GPT of VOC, what its file does not say.
        preprocessing: for a VQGAN of taming, how the frames of its training were prepared; by default as VOC's were.
        dtype: type to store floating-point tensors in; None keeps theirs.

    Raises:
        UserError: the file is damaged, unsafe, unknown, contradicts itself or `spec`; nothing is written then.
    """
    src, dst = Path(src), Path(dst)
    if (src / "config.json").is_file():
        raise UserError(f"{src} is a checkpoint of this project already; nothing is to be converted.")
    payload = read_checkpoint_content(src)
    kind = recognise(payload, src)
    if grid is not None and kind not in ("vavim", "vavam", "vq", "taming", "vqkd"):
        raise UserError(f"{src} is no VaViM, VaVAM or VQ tokenizer, whose grids may differ; convert it without.")
    if preprocessing is not None and kind not in ("taming", "vqkd"):
        raise UserError(f"{src} is no VQGAN of taming and no VQ-KD, whose preprocessing is to be chosen; convert it "
                        "without.")  # fmt: skip
    if occupancy is not None and kind != "voc":
        raise UserError(f"{src} is no GPT of VOC; convert it without tokenizer, gamma and frames.")
    if not ema and kind != "uva":
        raise UserError(
            f"{src} holds one set of weights, not raw and averaged ones as UVA's; convert it without --raw."
        )
    if kind == "mar":
        raise UserError(
            f"{src} is an image model (MAR) without actions: it cannot be converted, but a training can start from it."
        )
    if kind == "voc":
        if occupancy is None or (heads is not None and len(heads) != 1):
            raise UserError(
                f"{src} is the GPT of a VOC: name the checkpoint of its tokenizer with --tokenizer"
                f"{'' if heads is None else ', and one number of heads'}."
            )
        digest, report = convert_voc(
            src, dst, payload, tokenizer=occupancy.tokenizer, gamma=occupancy.gamma, frames=occupancy.frames,
            heads=None if heads is None else heads[0], spec=spec, dtype=dtype,
        )  # fmt: skip
        return Converted(path=dst, hash=digest, report=report)
    if kind == "uva":
        if heads is not None and len(heads) != 2:
            raise UserError(f"A UVA has heads in its encoder and in its decoder: give two numbers, found {heads}.")
        return _convert_uva(src, dst, payload, spec=spec, ema=ema, heads=heads, dtype=dtype)
    if kind in ("vavim", "vavam"):
        if heads is not None:
            raise UserError(f"{src} tells its attention heads itself; convert it without them.")
        return _convert_vavam(src, dst, payload, spec=spec, grid=grid, dtype=dtype)
    if spec is not None or heads is not None:
        raise UserError(f"{src} is a tokenizer, which has neither task nor heads; convert it without them.")
    config: Any
    if kind == "vq":
        tokenizer = read_llamagen(src, payload)
        config, stride = tokenizer.config, tokenizer.config.stride
        if grid is not None:
            config = dataclasses.replace(config, image_size=(grid[0] * stride, grid[1] * stride))
    elif kind == "taming":
        tokenizer = read_taming(src, payload, preprocessing=preprocessing, grid=grid)
        config = tokenizer.config
    elif kind == "vqkd":
        tokenizer = read_vqkd(src, payload, preprocessing=preprocessing or "legacy", grid=grid)
        config = tokenizer.config
    else:
        tokenizer = read_kl_vae(src, payload)
        config = tokenizer.config
    family = kind if kind in ("kl_vae", "vqkd") else "vq"
    card = {"source": src.name, "account": tokenizer.report.splitlines()}
    digest = save_checkpoint(dst, family=family, config=config, state=tokenizer.state, card=card, dtype=dtype)
    return Converted(path=dst, hash=digest, report=tokenizer.report)


def _convert_uva(
    src: Path,
    dst: Path,
    payload: Any,
    *,
    spec: StreamSpec | None,
    ema: bool,
    heads: tuple[int, ...] | None,
    dtype: torch.dtype | None,
) -> Converted:
    cameras = list(spec.cameras) if spec is not None else ()
    pair = None if heads is None else (heads[0], heads[1])
    found = read_uva_checkpoint(src, ema=ema, heads=pair, cameras=cameras, payload=payload)
    if spec is not None:
        check_spec(found, spec, src)
    card = {"source": src.name, "facts": dataclasses.asdict(found.facts), "account": found.report.splitlines()}
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dst.parent, prefix=f".{dst.name}.tokenizer-") as scratch:
        tokenizer = Path(scratch) / "tokenizer"
        save_checkpoint(tokenizer, family="kl_vae", config=found.vae, state=found.vae_state, dtype=dtype)
        digest = save_checkpoint(
            dst,
            family="uva",
            config=found.uva,
            state=found.uva_state,
            spec=spec,
            stats=found.normalizer,
            tokenizer=tokenizer,
            card=card,
            dtype=dtype,
        )
    return Converted(path=dst, hash=digest, report=found.report)


def _convert_vavam(
    src: Path,
    dst: Path,
    payload: Any,
    *,
    spec: StreamSpec | None,
    grid: tuple[int, int] | None,
    dtype: torch.dtype | None,
) -> Converted:
    camera = "front" if spec is None else next(iter(spec.cameras))
    found = read_vavam_checkpoint(src, grid=grid, camera=camera, payload=payload)
    if spec is None:
        spec = found.spec()
    else:
        require_spec(found, spec, src)
    card = {"source": src.name, "facts": found.facts, "account": found.report.splitlines()}
    digest = save_checkpoint(
        dst, family=found.family, config=found.config, state=found.state, spec=spec, card=card, dtype=dtype
    )
    return Converted(path=dst, hash=digest, report=found.report)


def verify(path: Path) -> str:
    """Read all of a checkpoint folder, build its module, and say in lines what it holds.

    Raises:
        UserError: anything is missing, damaged, inconsistent or not finite.
    """
    checkpoint = load_checkpoint(path)
    lines = _verified(checkpoint)
    if checkpoint.tokenizer is None:
        return "\n".join(lines)
    if checkpoint.tokenizer_path is None:
        lines.append(f"tokenizer  {checkpoint.tokenizer.family} {checkpoint.tokenizer.hash}, kept elsewhere")
        return "\n".join(lines)
    tokenizer = load_checkpoint(checkpoint.tokenizer_path)
    if tokenizer.hash != checkpoint.tokenizer.hash:
        raise UserError(
            f"{path} embeds the tokenizer {tokenizer.hash} but was trained on {checkpoint.tokenizer.hash}; "
            "restore it from its source."
        )
    lines += ["tokenizer  embedded", *("  " + line for line in _verified(tokenizer))]
    return "\n".join(lines)


def _verified(checkpoint: Checkpoint) -> list[str]:
    state = checkpoint.state
    broken = [k for k, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise UserError(
            f"{checkpoint.path} holds NaN or infinite values in {', '.join(broken[:3])}; train or convert it anew."
        )
    build(checkpoint)
    dtypes = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in state.values()}))
    nbytes = sum(t.nbytes for t in state.values())
    lines = [
        f"path       {checkpoint.path}",
        f"family     {checkpoint.family}",
        f"tensors    {len(state)} ({checkpoint.parameters:,} values, {dtypes}, {nbytes / 1e6:.1f} MB)",
        f"hash       {checkpoint.hash}",
    ]
    if checkpoint.spec is not None:
        cameras = ", ".join(f"{k} {h}x{w}" for k, (h, w) in checkpoint.spec.cameras.items())
        action = checkpoint.spec.action
        names = ", ".join(action.names) if action else "none"
        lines.append(f"spec       {cameras}; {checkpoint.spec.fps:g} fps; actions: {names}")
    if checkpoint.stats is not None:
        lines.append(f"stats      {', '.join(sorted(checkpoint.stats.streams))}")
    return lines


def _has(state: Any, prefix: str) -> bool:
    return isinstance(state, Mapping) and any(
        str(k).startswith(prefix) and isinstance(v, Tensor) for k, v in state.items()
    )
