"""UVA reference checkpoints and MAR image weights -> our names and configs.

A UVA checkpoint holds the entries cfg, state_dicts and pickles.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from foreact.checkpoints.format import save_checkpoint
from foreact.checkpoints.partial import PartialLoad, load_partial
from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.families.codes.released import kl_vae as kl_vae_reference
from foreact.families.codes.released import kl_vae_names as reference_keys_kl_vae
from foreact.families.uva.model import UVA, UVAConfig
from foreact.families.uva.opening import TEXT_ENCODER
from foreact.families.uva.released import names as reference_keys_uva
from foreact.families.uva.released.config import (
    Entries,
    UVAFacts,
    facts_of,
    require_equal,
    uva_config,
)
from foreact.released.content import read_content
from foreact.released.layouts import Converted, Layout, Request, option, write_converted
from foreact.released.pickles import read_pickle_bytes, resolve_references
from foreact.released.wrappers import find_entry, find_state, plain_names, same_tensor
from foreact.text.export import export_clip
from foreact.tokenizers.kl_vae import KLVAEConfig
from foreact.types import StreamSpec

UVA_ANCHORS = ("vae_model.encoder.conv_in.weight",)
MAR_ANCHORS = ("encoder_blocks.0.norm1.weight",)
MAR_ENTRIES = ("model_ema", "model", "state_dict", "module")
"""Its average first, as the reference takes it."""

# Tensors that are no part of the model we build, and why.
LEFT_OUT = {
    "_dummy_variable": "an empty tensor that tells the policy's device",
}


@dataclass(frozen=True, kw_only=True)
class UVAReference:
    """A read UVA checkpoint.

    Attributes:
        uva, uva_state: config of the model and its tensors in our names.
        vae, vae_state: the same of its tokenizer.
        normalizer: scaling of actions and states, or None where the task uses none.
        facts: how the task used the model, as far as the file says.
        clip: tensors of the CLIP whose features of instructions the model reads; empty where it
            reads none.
        report: where every entry of the file went, in lines.
    """

    uva: UVAConfig
    uva_state: dict[str, Tensor]
    vae: KLVAEConfig
    vae_state: dict[str, Tensor]
    normalizer: Normalizer | None
    facts: UVAFacts
    clip: dict[str, Tensor]
    report: str


def read_uva_checkpoint(
    path: Path,
    *,
    ema: bool = True,
    heads: tuple[int, int] | None = None,
    cameras: Sequence[str] = (),
    payload: Any = None,
) -> UVAReference:
    """Read a UVA checkpoint in the reference's own format.

    Args:
        path: the file.
        ema: take the averaged weights (what the reference evaluates) rather than the raw ones.
        heads: attention heads of encoder and decoder, for a model size that has no published name.
        cameras: what to call the camera and the wrist camera; the file's own names where none are
            given.
        payload: the file's content, where it has been read already.

    Raises:
        UserError: the file is missing, unsafe or damaged; a tensor belongs to nothing we know;
            config and tensors contradict each other.
    """
    payload = read_content(path) if payload is None else payload
    if not isinstance(payload, Mapping) or not {"cfg", "state_dicts"} <= set(payload):
        raise UserError(f"{path} is no UVA checkpoint: it should hold cfg and state_dicts.")
    cfg = Entries(resolve_references(payload["cfg"]), str(path))
    name = "ema_model" if ema else "model"
    states = payload["state_dicts"]
    if not isinstance(states, Mapping) or not isinstance(states.get(name), Mapping):
        other, how = ("model", "with") if ema else ("ema_model", "without")
        raise UserError(
            f"{path} has no '{name}' weights; convert it {how} --raw if it has '{other}'."
        )
    parts, left_out = _split(states[name], path)

    vae_state = reference_keys_kl_vae.to_native(parts["vae_model."])
    pixels = int(cfg("model.policy.autoregressive_model_params.img_size"))
    vae = kl_vae_reference.config_of(vae_state, path, image_size=(pixels, pixels))
    ddconfig = "model.policy.vae_model_params.ddconfig"
    require_equal(
        {
            f"{ddconfig}.vae_embed_dim": (cfg(f"{ddconfig}.vae_embed_dim"), vae.latent_channels),
            f"{ddconfig}.ch_mult": (list(cfg(f"{ddconfig}.ch_mult")), list(vae.multipliers)),
        },
        str(path),
    )
    try:
        facts = facts_of(cfg)
        config = uva_config(
            parts["model."], cfg, heads=heads, cameras=cameras or list(facts.cameras)
        )
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} is no UVA checkpoint: its cfg or its tensors have an odd form ({error})."
        ) from None
    uva_state = reference_keys_uva.to_native(parts["model."], config)
    scalings = parts["normalizer."]
    pictures = tuple(f"params_dict.{camera}." for camera in ("image", *facts.cameras))
    for key in [k for k in scalings if k.startswith(pictures)]:
        left_out[f"normalizer.{key}"] = "pictures are never scaled by it"
        del scalings[key]
    normalizer = Normalizer.from_reference(scalings) if scalings else None
    unread = [f"state_dicts.{k}" for k in states if k != name] + [
        k for k in payload if k not in ("cfg", "state_dicts")
    ]
    report = [
        f"{path}: weights '{name}'",
        *(
            f"  {p.rstrip('.')}: {len(t)} tensors used"
            for p, t in parts.items()
            if p != "text_model."
        ),
    ]
    if parts["text_model."]:
        report.append(
            "  text_model: the frozen CLIP text encoder, kept where --text-vocabulary is given"
        )
    report += [f"  left out: {k} ({why})" for k, why in left_out.items()]
    report += [f"  not read: {k}" for k in unread if k != "pickles"]
    report += [f"  {k}: {v}" for k, v in _pickled(payload.get("pickles", {}), path).items()]
    return UVAReference(
        uva=config,
        uva_state=uva_state,
        vae=vae,
        vae_state=vae_state,
        normalizer=normalizer,
        facts=facts,
        clip=parts["text_model."],
        report="\n".join(report),
    )


def init_from_mar(model: UVA, path: Path) -> PartialLoad:
    """Start a UVA model from a MAR image checkpoint (its average, `model_ema`), as published.

    Args:
        model: changed in place.
        path: the file, or a folder of Hugging Face's.

    Returns:
        The account of every tensor; print it: a head of another depth than MAR's is skipped in it.

    Raises:
        UserError: the file is missing, unreadable, no MAR checkpoint, or nothing of it fits.
    """
    state = find_state(read_content(path), MAR_ANCHORS, path, entries=MAR_ENTRIES)
    if state is None:
        raise UserError(
            f"{path} should hold MAR weights under the key 'model_ema', found none; name such a "
            "file, or convert this one first and name the folder."
        )
    # Names are those of a model with the reference's heads; what our model lacks is accounted for
    # below.
    names = reference_keys_uva.reference_names(
        replace(model.config, head="diffusion", readout="conv_fc")
    )
    native = {reference: name for name, reference in names.items()}
    if model.config.head != "diffusion":
        native = {key: name for key, name in native.items() if not name.startswith("heads.")}
    renamed = {native.get(key, key): tensor for key, tensor in state.tensors.items()}
    return load_partial(model, renamed, source=str(path))


def check_spec(reference: UVAReference, spec: StreamSpec, path: Path) -> None:
    """Raise a `UserError` where a task's spec contradicts what the checkpoint was trained on."""
    trained = list(reference.facts.cameras.values())
    if list(spec.cameras.values())[: len(trained)] != trained:
        raise UserError(
            f"{path} was trained on the cameras {dict(reference.facts.cameras)}, the task has "
            f"{dict(spec.cameras)}; convert it with the spec of its own task."
        )
    dim = None if spec.action is None else spec.action.dim
    if dim != reference.uva.action_dim:
        raise UserError(
            f"{path} has {reference.uva.action_dim} action dims, the task has {dim}; convert it "
            "with the spec of its own task."
        )


def _split(
    state: Mapping[str, Any], path: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Tensors by prefix, without it, and the names of those left out with the reason."""
    parts: dict[str, dict[str, Tensor]] = {
        "model.": {},
        "vae_model.": {},
        "normalizer.": {},
        "text_model.": {},
    }
    left_out: dict[str, str] = {}
    unknown: list[str] = []
    names = plain_names(map(str, state), UVA_ANCHORS)
    for full, tensor in state.items():
        key = names[str(full)]
        prefix = next((p for p in parts if key.startswith(p)), None)
        reason = next((why for p, why in LEFT_OUT.items() if key.startswith(p)), None)
        if prefix is not None and isinstance(tensor, Tensor):
            twin = parts[prefix].setdefault(key.removeprefix(prefix), tensor)
            if not same_tensor(twin, tensor):
                raise UserError(f"{path} contradicts itself: its two copies of {key} differ.")
        elif reason is not None:
            left_out[key] = reason
        else:
            unknown.append(key)
    if unknown:
        raise UserError(
            f"{path} holds {len(unknown)} entries of no known part: {', '.join(unknown[:5])}."
        )
    return parts, left_out


def _pickled(entries: Any, path: Path) -> dict[str, Any]:
    """The values of the checkpoint's pickled entries, by name."""
    if not isinstance(entries, Mapping):
        raise UserError(f"{path} is no UVA checkpoint: its entry pickles should hold named bytes.")
    # _output_dir is the author's folder; it means nothing elsewhere.
    return {
        k: read_pickle_bytes(v, f"{path}, pickles.{k}")
        for k, v in entries.items()
        if isinstance(v, bytes) and k != "_output_dir"
    }


@dataclass(frozen=True, kw_only=True)
class UVAFileOptions:
    raw: bool | None = option("take the raw weights, not their average")
    heads: tuple[int, ...] | None = option(
        "of no published size: attention heads of encoder and decoder"
    )
    text_vocabulary: Path | None = option(
        "of a model that is told what to do: folder with CLIP's vocab.json and merges.txt (or "
        "tokenizer.json), which the file does not hold; new instructions can then be read"
    )


def _convert(request: Request, options: UVAFileOptions) -> Converted:
    heads, spec = options.heads, request.spec
    if heads is not None and len(heads) != 2:
        raise UserError(
            f"A UVA has heads in its encoder and in its decoder: give two numbers, found {heads}."
        )
    cameras = list(spec.cameras) if spec is not None else ()
    pair = None if heads is None else (heads[0], heads[1])
    reference = read_uva_checkpoint(
        request.src, ema=not options.raw, heads=pair, cameras=cameras, payload=request.payload
    )
    if spec is not None:
        check_spec(reference, spec, request.src)
    vocabulary = options.text_vocabulary
    if vocabulary is not None and not reference.clip:
        raise UserError(
            f"{request.src} holds no text encoder, so --text-vocabulary has no effect; leave it "
            "out."
        )
    request.dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=request.dst.parent, prefix=f".{request.dst.name}.tokenizer-"
    ) as scratch:
        tokenizer = Path(scratch) / "tokenizer"
        save_checkpoint(
            tokenizer,
            family="kl_vae",
            config=reference.vae,
            state=reference.vae_state,
            dtype=request.dtype,
        )
        if vocabulary is not None:
            export_clip(reference.clip, vocabulary, Path(scratch) / "clip", str(request.src))
        converted = write_converted(
            request,
            family="uva",
            config=reference.uva,
            state=reference.uva_state,
            report=reference.report,
            facts=asdict(reference.facts),
            spec=spec,
            stats=reference.normalizer,
            tokenizer=tokenizer,
        )
        if vocabulary is not None:
            os.rename(Path(scratch) / "clip", request.dst / TEXT_ENCODER)
        return converted


def _refuse_mar(request: Request, options: Any) -> Converted:
    raise UserError(
        f"{request.src} is an image model (MAR) without actions, which is not converted: training "
        f"starts from it by `foreact train uva --size base --stage video --init {request.src}`."
    )


def _is_mar(payload: Any) -> bool:
    return find_entry(payload, MAR_ANCHORS, entries=MAR_ENTRIES) is not None


LAYOUTS = (
    Layout(
        name="uva",
        title="a UVA checkpoint",
        files=".ckpt",
        mark="entries cfg and state_dicts",
        recognise=lambda payload: (
            isinstance(payload, Mapping) and {"cfg", "state_dicts"} <= set(payload)
        ),
        convert=_convert,
        options=UVAFileOptions,
        has_spec=True,
    ),
    Layout(
        name="mar",
        title="an image model (MAR)",
        files=".pth, .safetensors",
        mark="encoder_blocks, under model_ema or alone",
        recognise=_is_mar,
        convert=_refuse_mar,
        has_spec=True,
    ),
)
