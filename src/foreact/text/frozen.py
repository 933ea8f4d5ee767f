"""A network and its vocabulary as one encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from foreact.errors import UserError, on_one_line
from foreact.text.words import Words


class TextNetwork(nn.Module):
    """Token ids int64 (B, N), marks included -> features float32 (B, dim).

    Attributes:
        dim: features per text.
        longest: most tokens of a text, marks included.
    """

    dim: int
    longest: int


class FrozenEncoder:
    """A `foreact.types.TextEncoder` of fixed weights.

    The features of a text are bit for bit the same whatever texts are encoded beside it.

    Args:
        name: of the kind of encoder.
        network: without training.
        words: its vocabulary.
        device: where it computes.

    Attributes:
        name: as given.
        hash: "sha256:..." of the tensors and the vocabulary, so that it does not depend on the
            kind of file that holds them.
        dim: numbers per text.
    """

    def __init__(self, name: str, network: TextNetwork, words: Words, device: torch.device) -> None:
        self.name, self.words, self.device = name, words, device
        self.hash = _hash(name, network, words)
        self._network = network.to(device).eval().requires_grad_(False)
        self.dim = self._network.dim

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Features float32 (n, dim), one row per text.

        Raises:
            UserError: a text is empty, or longer than the network reads; none is cut off.
        """
        rows = [self._network(self._ids(text))[0].cpu().numpy() for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    def _ids(self, text: str) -> Tensor:
        """int64 (1, N)."""
        if not text.strip():
            raise UserError(
                "An instruction is empty; every episode should say in words what is to be done."
            )
        ids, most = self.words.ids(text), self._network.longest
        if len(ids) > most:
            start = on_one_line(text[:40])
            raise UserError(
                f"The text encoder '{self.name}' reads up to {most} word pieces, and the "
                f"instruction that begins with '{start}' has {len(ids)}; shorten it."
            )
        return torch.tensor([ids], device=self.device)


def _hash(name: str, network: TextNetwork, words: Words) -> str:
    digest = hashlib.sha256(json.dumps([name, words.digest]).encode())
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(json.dumps([key, list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().numpy().data)
    return "sha256:" + digest.hexdigest()
