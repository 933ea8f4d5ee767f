"""Nearest rows of a memory by dot product: exact, or through FAISS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreact.errors import UserError


class ExactSearch:
    """Compares every query with every row, in blocks, so that memory use is set by `block` and not
    by the data.

    Args:
        memory: float (M, D).
        block: rows of memory, and of queries, that are compared at once.
    """

    def __init__(self, memory: Tensor, *, block: int = 8192) -> None:
        self.memory, self.block = memory, block

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(N, D) -> similarities (N, k), descending, and rows, int64 (N, k); 1 <= k <= M."""
        parts = [self._nearest(part, k) for part in queries.split(self.block)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        best = queries.new_empty(len(queries), 0)
        rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for start in range(0, len(self.memory), self.block):
            similarity = queries @ self.memory[start : start + self.block].T
            here = torch.arange(
                start, start + similarity.shape[1], device=queries.device
            ).expand_as(similarity)
            best, rows = torch.cat([best, similarity], dim=1), torch.cat([rows, here], dim=1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            rows = rows.gather(1, order)
        return best, rows


class FaissSearch:
    """Looks into the nearest tenth of sqrt(M) cells (FAISS, inverted file): fast, and now and then
    misses a neighbour.

    The cells are those that the reference evaluation gives to ScaNN.

    Raises:
        UserError: FAISS is not installed.
    """

    def __init__(self, memory: Tensor) -> None:
        try:
            import faiss
        except ImportError as error:
            raise UserError(
                "The search 'faiss' needs FAISS; install it with pip install faiss-cpu, or use "
                "the search 'exact'."
            ) from error
        width = memory.shape[1]
        cells = max(1, round(len(memory) ** 0.5))
        index: Any = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.min_points_per_centroid = (
            1  # sqrt(M) rows per cell are what was asked for, no reason to warn
        )
        rows = memory.float().cpu().contiguous().numpy()
        index.train(rows)
        index.add(rows)
        index.nprobe = max(1, cells // 10)
        self._index, self._cells = index, cells

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `ExactSearch`; where the cells hold fewer than k rows, all cells are searched."""
        rows = queries.float().cpu().contiguous().numpy()
        similarity, found = self._index.search(rows, k)
        short = (found < 0).any(1)
        if short.any():
            few, self._index.nprobe = self._index.nprobe, self._cells
            similarity[short], found[short] = self._index.search(rows[short], k)
            self._index.nprobe = few
        return torch.from_numpy(similarity).to(queries.device), torch.from_numpy(found).to(
            queries.device
        )
