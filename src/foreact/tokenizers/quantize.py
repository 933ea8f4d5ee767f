"""Vector quantisation (arXiv 1711.00937): nearest codebook row, and the losses to train it.

With `normalized` codes the search is by angle (arXiv 2110.04627, section 3.2): latents and rows are
first brought to length 1, as in LlamaGen (arXiv 2406.06525). Otherwise it is by Euclidean distance,
as in taming's VQGAN (arXiv 2012.09841).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

ENTROPY_TEMPERATURE = 0.01  # of LlamaGen's entropy term
ENTROPY_FLOOR = 1e-5  # added to a mean probability before its logarithm, likewise
SEARCH_ELEMENTS = 2**26  # distances held at once: 256 MB


@dataclass(frozen=True)
class Quantized:
    """Quantised latents with what a loss needs.

    Attributes:
        values: float32 (N, c, h, w), rows of the codebook; the gradient passes straight through to
            the latents.
        codes: int64 (N, h, w).
        codebook: () mean squared distance that moves the rows towards the latents.
        commitment: () the same distance, moving the latents towards their rows.
    """

    values: Tensor
    codes: Tensor
    codebook: Tensor
    commitment: Tensor


class Quantizer(nn.Module):
    """A codebook and its nearest-row search, in float32 even under autocast.

    Args:
        codes: number of rows, V.
        dim: length of a row, c.
        normalized: bring latents and rows to length 1 first.
    """

    def __init__(self, codes: int, dim: int, *, normalized: bool) -> None:
        super().__init__()
        self.normalized = normalized
        self.weight = nn.Parameter(torch.empty(codes, dim).uniform_(-1.0 / codes, 1.0 / codes))
        if normalized:
            self.weight.data = normalize(self.weight.data, dim=1)

    @property
    def rows(self) -> Tensor:
        """float32 (V, c), of length 1 where normalised."""
        weight = self.weight.float()
        return normalize(weight, dim=1) if self.normalized else weight

    def forward(self, z: Tensor) -> Quantized:
        """Quantise latents (N, c, h, w) for training."""
        z = self._prepared(z)
        codes = self._search(z)
        values = self.lookup(codes)
        return Quantized(
            values=z + (values - z).detach(),  # straight-through: the gradient skips the search
            codes=codes,
            codebook=(values - z.detach()).square().mean(),
            commitment=(values.detach() - z).square().mean(),
        )

    def encode(self, z: Tensor) -> Tensor:
        """Latents (N, c, h, w) -> int64 (N, h, w), nearest row; the first one on ties."""
        return self._search(self._prepared(z))

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 (N, h, w) in 0..V-1 -> float32 (N, c, h, w)."""
        return self.rows[codes].permute(0, 3, 1, 2)

    def entropy(self, z: Tensor) -> Tensor:
        """LlamaGen's entropy loss: low for confident codes that are all used equally.

        With p_i = softmax(-|z_i - e|^2 / 0.01) over the rows e, and p their mean over all positions
        i: mean_i H(p_i) - H(p), where H(p) = -sum p log(p + 1e-5). It holds a probability per
        position and row, twice.

        Args:
            z: latents (N, c, h, w).

        Returns:
            () in nats, about -log V at best.
        """
        with torch.autocast(z.device.type, enabled=False):
            flat, rows = _flat(self._prepared(z)), self.rows
            distances = (
                flat.square().sum(1, keepdim=True) + rows.square().sum(1) - 2.0 * flat @ rows.T
            )
            log_p = (-distances / ENTROPY_TEMPERATURE).log_softmax(dim=1)
            p = log_p.exp()
            mean = p.mean(dim=0)  # (V,) how often each row is used
            return (mean * (mean + ENTROPY_FLOOR).log()).sum() - (p * log_p).sum(dim=1).mean()

    def _prepared(self, z: Tensor) -> Tensor:
        z = z.float()
        return normalize(z, dim=1) if self.normalized else z

    @torch.no_grad()
    def _search(self, z: Tensor) -> Tensor:
        rows = self.rows
        squares = rows.square().sum(dim=1)
        with torch.autocast(z.device.type, enabled=False):
            # |z|^2 is the same for every row and left out.
            nearest = [
                torch.argmin(squares - 2.0 * part @ rows.T, dim=1)
                for part in _flat(z).split(max(1, SEARCH_ELEMENTS // len(rows)))
            ]
        return torch.cat(nearest).view(len(z), *z.shape[2:])


def _flat(z: Tensor) -> Tensor:
    """(N, c, h, w) -> (N h w, c)."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def codebook_use(codes: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """How much of a codebook is used.

    Args:
        codes: int64 in 0..vocab-1, any shape, at least one.
        vocab: size of the codebook, V.

    Returns:
        () share of the V codes that occur, and () perplexity exp(H) of their frequencies, 1..V.
    """
    counts = torch.bincount(codes.flatten(), minlength=vocab).double()
    frequencies = counts / counts.sum()
    return (counts > 0).double().mean(), torch.special.entr(frequencies).sum().exp()
