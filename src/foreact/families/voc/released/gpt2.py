"""GPT-2 weights under Hugging Face's names, as VOC is published, to ours and back."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from foreact.checkpoints.configs import read_json
from foreact.checkpoints.format import difference
from foreact.errors import UserError
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.model import VOC
from foreact.nn.gpt2 import GPT2, GPT2Config
from foreact.released import wrappers
from foreact.released.content import hub_config, hub_config_file, read_content
from foreact.released.wrappers import find_entry, find_state

ANCHORS = ("wpe.weight", "h.0.attn.c_attn.weight")
OWNERS = {*wrappers.OWNERS, "transformer"}
PREFIX = "transformer."
HEAD = "lm_head.weight"

_PLAIN = {"wte.weight": "token_embedding.weight", "wpe.weight": "position_embedding.weight"}
_PLAIN |= {f"ln_f.{kind}": f"norm.{kind}" for kind in ("weight", "bias")}
_LAYERS = {
    "ln_1": "norm1",
    "attn.c_attn": "qkv",
    "attn.c_proj": "out",
    "ln_2": "norm2",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}
_PLAIN_BACK = {ours: theirs for theirs, ours in _PLAIN.items()}
_LAYERS_BACK = {ours: theirs for theirs, ours in _LAYERS.items()}
_THEIRS = re.compile(rf"h\.(\d+)\.({'|'.join(map(re.escape, _LAYERS))})\.(weight|bias)")
_OURS = re.compile(rf"blocks\.(\d+)\.({'|'.join(_LAYERS.values())})\.(weight|bias)")
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")

# What our network does without being told; a file whose config says otherwise holds another one.
_FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
}


@dataclass(frozen=True, kw_only=True)
class GPT2Reference:
    """A read GPT-2.

    Attributes:
        config: sizes; those that shapes tell come from the shapes.
        state: name -> tensor, in our names.
        report: what was used and what was left, in lines.
    """

    config: GPT2Config
    state: dict[str, Tensor]
    report: str


def is_gpt2(payload: Any) -> bool:
    """Whether a file holds the state dict of a GPT-2, whatever wraps its names."""
    return find_entry(payload, ANCHORS, owners=OWNERS) is not None


def read_gpt2(
    path: Path, payload: Any = None, *, heads: int | None = None, usual_heads: int | None = None
) -> GPT2Reference:
    """Read a GPT-2.

    Args:
        path: a torch file or safetensors file with a state dict, or a folder of `save_pretrained`.
        payload: the file's content, where it has been read already.
        heads: attention heads, which a state dict does not tell; the config.json of the folder
            does, where there is one.
        usual_heads: those where nothing tells them.

    Raises:
        UserError: it is missing, damaged, something else, not all of a GPT-2, or `heads` is missing
            or wrong.
    """
    path = Path(path)
    told = _heads_of(path)
    if None not in (heads, told) and heads != told:
        raise UserError(
            f"{path} has {told} attention heads, {heads} were asked for; leave them out."
        )
    held = find_state(
        read_content(path) if payload is None else payload, ANCHORS, path, owners=OWNERS
    )
    if held is None:
        raise UserError(
            f"{path} should hold the state dict of a GPT-2 "
            "(transformer.h.0.attn.c_attn.weight, ...)."
        )
    reference_state = held.tensors
    heads = heads or told or usual_heads
    if heads is None:
        raise UserError(
            f"{path} does not tell its attention heads; give them (published VOC: 8, "
            "with DINO codes 4)."
        )
    try:
        state = to_native(reference_state)
        config = config_of(state, heads=heads)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    masks = sum(bool(_MASKS.fullmatch(str(k).removeprefix(PREFIX))) for k in reference_state)
    total = len(reference_state)
    report = f"gpt2: {total - masks} of {total} tensors used, {len(state)} in our names"
    report = "\n".join([report, *held.notes])
    if masks:
        report += f"\nleft out: {masks} attention masks, which follow from the sizes"
    return GPT2Reference(config=config, state=state, report=report)


def _heads_of(path: Path) -> int | None:
    """Attention heads that a config.json of Hugging Face's tells, in a folder or beside a file."""
    hf_config = hub_config(path, "GPT-2")
    if other := next((k for k, v in _FIXED.items() if hf_config.get(k, v) != v), None):
        raise UserError(
            f"{path} holds no plain GPT-2: its config has {other} = {hf_config[other]!r}; give one "
            f"with {other} = {_FIXED[other]!r}."
        )
    heads = hf_config.get("n_head")
    if heads is not None and not (type(heads) is int and heads > 0):
        raise UserError(
            f"{hub_config_file(path)} should describe a GPT-2 with n_head >= 1, found "
            f"n_head = {heads!r}; restore it from its source."
        )
    return heads


def config_of(state: Mapping[str, Tensor], *, heads: int) -> GPT2Config:
    """Sizes of a GPT-2 from its tensors, in our names; dropout, which they do not tell, is 0.

    Raises:
        UserError: tensors are missing, left over or contradict each other, named.
    """
    for name in ("token_embedding.weight", "position_embedding.weight"):
        if name not in state or state[name].ndim != 2:
            raise UserError(
                f"The GPT-2 lacks what we call {name}; restore the file from its source."
            )
    vocab, width = state["token_embedding.weight"].shape
    layers = len({m[1] for k in state if (m := _OURS.fullmatch(k))})
    config = GPT2Config(
        vocab=vocab,
        positions=state["position_embedding.weight"].shape[0],
        width=width,
        heads=heads,
        layers=layers,
    )
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in GPT2(config).state_dict().items()}
    if problem := difference(expected, {name: tuple(t.shape) for name, t in state.items()}):
        raise UserError(f"The GPT-2 is not whole: {problem}; restore the file from its source.")
    return config


def to_native(reference_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's tensors, with or without the prefix "transformer.", in our names.

    Their matrices are stored (inputs, outputs), ours (outputs, inputs). The readout is the token
    embedding under a second name; old files hold attention masks as well, which are left out.

    Raises:
        UserError: a tensor of no known part, or a readout that is not the token embedding.
    """
    state: dict[str, Tensor] = {}
    unknown: list[str] = []
    for full, tensor in reference_state.items():
        name = str(full).removeprefix(PREFIX)
        if name in _PLAIN:
            state[_PLAIN[name]] = tensor
        elif m := _THEIRS.fullmatch(name):
            turned = tensor.t().contiguous() if tensor.ndim == 2 else tensor
            state[f"blocks.{m[1]}.{_LAYERS[m[2]]}.{m[3]}"] = turned
        elif name != HEAD and not _MASKS.fullmatch(name):
            unknown.append(str(full))
    if unknown:
        raise UserError(
            f"The GPT-2 holds {len(unknown)} tensors of no known part: {', '.join(unknown[:5])}."
        )
    if HEAD in reference_state:
        embedding = state.setdefault("token_embedding.weight", reference_state[HEAD])
        if not torch.equal(embedding, reference_state[HEAD]):
            raise UserError(
                f"The GPT-2 has a readout ({HEAD}) of its own; only one tied to its "
                "embedding can be read."
            )
    return state


def reference_key(name: str) -> str:
    """Hugging Face's name of our tensor `name`.

    Raises:
        UserError: a plain GPT-2 has no such tensor.
    """
    if name in _PLAIN_BACK:
        return PREFIX + _PLAIN_BACK[name]
    if m := _OURS.fullmatch(name):
        return f"{PREFIX}h.{m[1]}.{_LAYERS_BACK[m[2]]}.{m[3]}"
    raise UserError(
        f"A plain GPT-2 has no place for {name}; only models without conditions can be written."
    )


def to_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_native`: what `GPT2LMHeadModel.state_dict()` has, tied readout included.

    Raises:
        UserError: a tensor that a plain GPT-2 does not have, such as an occupancy model's embedding
            of actions.
    """
    reference_state = {
        reference_key(name): t.t().contiguous() if t.ndim == 2 and _OURS.fullmatch(name) else t
        for name, t in state.items()
    }
    reference_state[HEAD] = state["token_embedding.weight"]
    return reference_state


def write_gpt2(path: Path, config: GPT2Config, state: Mapping[str, Tensor]) -> None:
    """Write a GPT-2, in our names, as a folder for `GPT2LMHeadModel.from_pretrained`.

    One at `path` is replaced, and stays whole until the new one is.

    Raises:
        UserError: the state is not that of a plain GPT-2, `path` holds something else, or the disk
            refuses. Nothing is left half-written.
    """
    path = Path(path)
    if path.exists() and not _is_replaceable(path):
        raise UserError(
            f"{path} exists and is no model folder of a GPT-2; choose another path or remove it."
        )
    tensors = {
        name: t.detach().cpu().contiguous()
        for name, t in to_reference(state).items()
        if name != HEAD
    }
    hf_config = {
        **_FIXED,
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab,
        "n_positions": config.positions,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_layer": config.layers,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    temporary, retired = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    try:
        for leftover in (temporary, retired):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(
            json.dumps(hf_config, indent=1) + "\n", encoding="utf-8"
        )
        if path.exists():
            os.rename(path, retired)
        os.rename(temporary, path)
        shutil.rmtree(retired, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} could not be written ({error}); free some space or check the rights."
        ) from None
    finally:
        if not path.exists() and retired.exists():
            os.rename(retired, path)
        shutil.rmtree(temporary, ignore_errors=True)


def _is_replaceable(path: Path) -> bool:
    """Whether it is an empty folder, or one of files alone with the config of a GPT-2.

    The folder of a run has a config.json too.
    """
    if not path.is_dir():
        return False
    inside = list(path.iterdir())
    if not inside:
        return True
    if not all(p.is_file() for p in inside) or not (path / "config.json").is_file():
        return False
    hf_config = read_json(path / "config.json")
    return isinstance(hf_config, Mapping) and hf_config.get("model_type") == "gpt2"


def occupancy_state(
    reference: GPT2Reference, config: VOCConfig, *, codebook: Tensor | None = None
) -> dict[str, Tensor]:
    """State of a `VOC` whose model and target network are both a read GPT-2.

    Published training saves neither the reward head, which is drawn here (always the same) and to
    be trained, nor the target network, which is one moving average behind the model.

    Args:
        reference: the GPT-2.
        config: of the occupancy model; its sizes must be those of the GPT-2.
        codebook: (V, c), rows of the tokenizer's codebook; zeros if left out.

    Raises:
        UserError: the sizes differ, or the config asks for conditions that the GPT-2 does not have.
    """
    gpt = config.gpt
    for name in ("vocab", "positions", "width", "heads", "layers"):
        if getattr(gpt, name) != getattr(reference.config, name):
            raise UserError(
                f"The GPT-2 has {name} {getattr(reference.config, name)}, the occupancy model's "
                f"config says {getattr(gpt, name)}; give the sizes of the file."
            )
    if config.condition:
        raise UserError(
            "A plain GPT-2 knows neither actions nor several gammas; give one gamma and no actions."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = VOC(config)
    for net in (model.gpt, model.target):
        net.load_state_dict(reference.state, strict=True)
    if codebook is not None:
        model.set_codebook(codebook)
    return model.state_dict()
