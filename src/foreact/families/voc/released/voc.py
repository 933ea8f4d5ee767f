"""GPTs of VOC: the authors' files and Hugging Face state dicts as checkpoints, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foreact.checkpoints.configs import config_from_json
from foreact.checkpoints.format import build, load_checkpoint
from foreact.checkpoints.shipped import resolve
from foreact.errors import UserError
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.model import VOC
from foreact.families.voc.released.gpt2 import is_gpt2, occupancy_state, read_gpt2, write_gpt2
from foreact.released.layouts import Converted, Layout, Request, option, write_converted
from foreact.types import Codes

DINO = "vqkd"
"""Family whose codes are published with 2 frames a stack, 4 attention heads, tokens first."""


@dataclass(frozen=True, kw_only=True)
class GPTOptions:
    tokenizer: str | None = option(
        "checkpoint of the tokenizer whose codes it models; it must be named"
    )
    gamma: float | None = option("discount it was trained for; default 0.8")
    frames: int | None = option("frames of a stack; default 3, over VQ-KD codes 2, as published")
    heads: tuple[int, ...] | None = option(
        "attention heads; default as config.json says, else 8, over VQ-KD codes 4, as published"
    )


def _convert(request: Request, options: GPTOptions) -> Converted:
    """Write a GPT as a VOC checkpoint, with the tokenizer whose codes it models.

    The file holds the GPT alone: the target network starts as its copy, and the reward head
    untrained.
    """
    src, heads = request.src, options.heads
    if options.tokenizer is None or (heads is not None and len(heads) != 1):
        raise UserError(
            f"{src} is the GPT of a VOC: name the checkpoint of its tokenizer with --tokenizer"
            f"{'' if heads is None else ', and one number of heads'}."
        )
    tokenizer = resolve(options.tokenizer)
    codes = load_checkpoint(tokenizer)
    module = build(codes)
    if not isinstance(module, Codes):
        raise UserError(
            f"{tokenizer} holds a '{codes.family}', which has no codebook; name a vq, "
            "a vqkd or a musik."
        )
    dino = codes.family == DINO
    reference = read_gpt2(
        src,
        request.payload,
        heads=None if heads is None else heads[0],
        usual_heads=4 if dino else 8,
    )
    gpt = reference.config
    if gpt.vocab != module.vocab:
        raise UserError(
            f"{src} models {gpt.vocab} codes, the tokenizer {tokenizer} makes {module.vocab}; "
            "name the one it was trained on."
        )
    config = VOCConfig(
        width=gpt.width,
        heads=gpt.heads,
        layers=gpt.layers,
        positions=gpt.positions,
        vocab=gpt.vocab,
        code_dim=module.codebook.shape[1],
        grid=module.grid,
        frames=options.frames or (2 if dino else 3),
        gammas=(0.8 if options.gamma is None else options.gamma,),
        feature_order="tokens_first" if dino else "channels_first",
    )
    return write_converted(
        request,
        family="voc",
        config=config,
        spec=request.spec,
        tokenizer=tokenizer,
        state=occupancy_state(reference, config, codebook=module.codebook.detach()),
        report=f"{reference.report}\nnot in the file: reward head (untrained), "
        "target network (a copy)",
    )


LAYOUTS = (
    Layout(
        name="voc",
        title="a GPT of VOC",
        files=".pth, .safetensors, folder of save_pretrained",
        mark="a GPT-2 with transformer.h and wpe",
        recognise=is_gpt2,
        convert=_convert,
        options=GPTOptions,
        has_spec=True,
    ),
)


def write(path: Path, out: Path) -> str:
    """Write the GPT of a VOC as a folder for Hugging Face's `GPT2LMHeadModel.from_pretrained`.

    Raises:
        UserError: it is conditioned on gammas or actions, which a GPT-2 is not, or the disk
            refuses.
    """
    checkpoint = load_checkpoint(path)
    config = config_from_json(VOCConfig, checkpoint.config)
    model = build(checkpoint)
    assert isinstance(model, VOC)
    write_gpt2(out, config.gpt, model.gpt.state_dict())
    return f"wrote {out}, a folder for GPT2LMHeadModel.from_pretrained"
