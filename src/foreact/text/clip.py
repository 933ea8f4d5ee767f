"""The text tower of CLIP: a causal pre-norm transformer, read off at the end mark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from foreact.errors import UserError
from foreact.text.attention import Attention
from foreact.text.folders import (
    Layout,
    build_network,
    published,
    read_config,
    read_weights,
)
from foreact.text.frozen import FrozenEncoder, TextNetwork
from foreact.text.words import CLIP_VOCABULARY, clip_words

HEAD_SIZE = 64
"""Channels of an attention head, in every published CLIP."""
LAYOUT = Layout(
    single={
        "tokens.weight": "text_model.embeddings.token_embedding.weight",
        "positions.weight": "text_model.embeddings.position_embedding.weight",
        "norm.weight": "text_model.final_layer_norm.weight",
        "norm.bias": "text_model.final_layer_norm.bias",
        "projection.weight": "text_projection.weight",
    },
    blocks="text_model.encoder.layers.",
    in_block={
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.out": "self_attn.out_proj",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
    other=(
        "vision_model.",
        "visual_projection.",
        "logit_scale",
        "text_model.embeddings.position_ids",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Sizes of the tower; the defaults are those of ViT-B/32.

    Attributes:
        vocab: token ids; the last is the end mark.
        positions: longest sequence, marks included.
        width, hidden: channels of a token, and inside its MLP.
        layers: blocks.
        dim: features per text.
    """

    vocab: int = CLIP_VOCABULARY
    positions: int = 77
    width: int = 512
    hidden: int = 2048
    layers: int = 12
    dim: int = 512


class ClipBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with the quick form of GELU."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.width // HEAD_SIZE, causal=True)
        self.norm2 = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        x = x + self.attention(self.norm1(x))
        hidden = self.up(self.norm2(x))
        return x + self.down(hidden * torch.sigmoid(1.702 * hidden))


class ClipText(TextNetwork):
    """Token ids -> projected features, not normalised."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.end, self.longest, self.dim = config.vocab - 1, config.positions, config.dim
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.blocks = nn.ModuleList(ClipBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, config.dim, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (B, N) -> (B, dim), at the first end mark.

        No token sees a later one, so that whatever pads a text after its end mark changes nothing,
        masked or not.
        """
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        at = (ids == self.end).int().argmax(dim=1)
        return self.projection(self.norm(x[torch.arange(len(x)), at]))


def clip_from_state(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The text tower of a whole CLIP, in its published names.

    Args:
        state: the tensors of a CLIP in the names of Hugging Face's library; the picture tower may
            be among them or not.
        where: what holds them, for errors.

    Raises:
        UserError: a tensor of the text tower is missing, or there is one of no known part.
    """
    names = set(published(LAYOUT, state, where).values())
    return {name: tensor for name, tensor in state.items() if name in names}


def clip_network(state: Mapping[str, Tensor], where: str) -> ClipText:
    """The text tower of a state as `clip_from_state` takes it, float32.

    Raises:
        UserError: as there, or the shapes of the tensors are not those of a text tower.
    """
    names = published(LAYOUT, state, where)
    tensors = {ours: state[theirs] for ours, theirs in names.items()}

    def network() -> ClipText:
        vocab, width = tensors["tokens.weight"].shape
        config = ClipConfig(
            vocab=vocab,
            positions=len(tensors["positions.weight"]),
            width=width,
            hidden=len(tensors["blocks.0.up.weight"]),
            layers=sum(name.endswith(".up.weight") for name in names),
            dim=len(tensors["projection.weight"]),
        )
        return ClipText(config)

    return build_network(network, tensors, where)


def open_clip(folder: Path | None, *, device: torch.device) -> FrozenEncoder:
    """Open a CLIP as published, such as openai/clip-vit-base-patch32; the text tower is read.

    Args:
        folder: with model.safetensors or pytorch_model.bin, and with vocab.json and merges.txt or
            tokenizer.json.
        device: where it computes.

    Raises:
        UserError: no folder is given, or its files are missing, damaged or of another model.
    """
    if folder is None:
        raise UserError("The text encoder 'clip' needs the folder of its files: clip:FOLDER.")
    words = clip_words(folder)
    text_config = read_config(folder / "config.json", missing_ok=True).get("text_config") or {}
    if (activation := text_config.get("hidden_act", "quick_gelu")) != "quick_gelu":
        raise UserError(
            f"{folder} holds a CLIP with the activation '{activation}', this reader knows "
            "'quick_gelu'; take OpenAI's."
        )
    network = clip_network(read_weights(folder), str(folder))
    if (vocab := network.end + 1) != CLIP_VOCABULARY:
        raise UserError(
            f"The weights in {folder} know {vocab:,} token ids, those of CLIP {CLIP_VOCABULARY:,}; "
            "take the files of one model."
        )
    return FrozenEncoder("clip", network, words, device)
