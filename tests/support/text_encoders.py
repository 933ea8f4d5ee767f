"""Text encoders with small random weights in files as published, and one without any network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

BERT_PIECES = ("open", "door", "##s", "!")
"""Ids 104 to 107."""


def clip_letters() -> list[str]:
    """A letter for every byte, in CLIP's order: those that can be read come first."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(c) for c in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def clip_merges() -> list[str]:
    """Merges of "open" and "door", whose results are the ids 512 to 517, and of bytes above 127."""
    high = clip_letters()[94:]
    others = (f"{a} {b}{end}" for end in ("", "</w>") for a in high for b in high)
    words = ["o p", "op e", "ope n</w>", "d o", "o r</w>", "do or</w>"]
    return [*words, *islice(others, 49_408 - 514 - len(words))]


def clip_vocabulary() -> dict[str, int]:
    letters = clip_letters()
    merged = [merge.replace(" ", "") for merge in clip_merges()]
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *merged]
    return {e: i for i, e in enumerate([*entries, "<|startoftext|>", "<|endoftext|>"])}


def bert_vocabulary() -> list[str]:
    entries = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries += BERT_PIECES
    return [*entries, *(f"[unused{i}]" for i in range(99, 30_522 + 99 - len(entries)))]


def write_clip_vocabulary(folder: Path, *, one_file: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocab = clip_vocabulary()
    if one_file:
        model = {"type": "BPE", "vocab": vocab, "merges": clip_merges()}
        (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    else:
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(clip_merges()) + "\n")


def clip_state(*, width: int = 128, layers: int = 2, dim: int = 24) -> dict[str, Tensor]:
    """A CLIP in published names: its text tower, and a few tensors of the rest."""
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "text_model.embeddings.token_embedding.weight": (49_408, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_projection.weight": (dim, width),
    }
    norms = ["text_model.final_layer_norm"]
    for i in range(layers):
        block = f"text_model.encoder.layers.{i}"
        norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
        linear = {f"self_attn.{p}_proj": (width, width) for p in ("q", "k", "v", "out")}
        linear |= {"mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width)}
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    state = _drawn(shapes, norms, width, rng)
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.class_embedding"] = torch.ones(8)
    state["visual_projection.weight"] = torch.ones(dim, 8)
    state["logit_scale"] = torch.tensor(2.7)
    return state


def write_clip(folder: Path, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Write a folder that `clip:FOLDER` opens; returns its tensors."""
    write_clip_vocabulary(folder)
    state = clip_state() if state is None else state
    save_file(state, folder / "model.safetensors")
    return state


def minilm_state(*, width: int = 64, layers: int = 2) -> dict[str, Tensor]:
    """A BERT in published names."""
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "embeddings.word_embeddings.weight": (30_522, width),
        "embeddings.position_embeddings.weight": (40, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(layers):
        block = f"encoder.layer.{i}"
        norms += [f"{block}.attention.output.LayerNorm", f"{block}.output.LayerNorm"]
        linear = {f"attention.self.{p}": (width, width) for p in ("query", "key", "value")}
        linear |= {
            "attention.output.dense": (width, width),
            "intermediate.dense": (2 * width, width),
            "output.dense": (width, 2 * width),
        }
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    return _drawn(shapes, norms, width, rng)


def write_minilm(folder: Path, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Write a folder that `minilm:FOLDER` opens; returns its tensors."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(bert_vocabulary()) + "\n")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    state = minilm_state() if state is None else state
    save_file(state, folder / "model.safetensors")
    return state


class LengthEncoder:
    """Features that tell the text: its length, and the codes of its first two letters.

    Attributes:
        asked: all texts that it has encoded, in order.
    """

    name, dim = "length", 3

    def __init__(self, version: str = "1") -> None:
        self.hash = f"sha256:{version * 64}"
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[len(t), ord(t[0]), ord(t[1])] for t in texts], np.float32)


def open_length(folder: Path | None, *, device: torch.device) -> LengthEncoder:
    return LengthEncoder()


def _drawn(
    shapes: dict[str, tuple[int, ...]], norms: Sequence[str], width: int, rng: torch.Generator
) -> dict[str, Tensor]:
    state = {name: 0.2 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    for norm in norms:
        state[f"{norm}.weight"] = 1 + 0.2 * torch.randn(width, generator=rng)
        state[f"{norm}.bias"] = 0.2 * torch.randn(width, generator=rng)
    return state
