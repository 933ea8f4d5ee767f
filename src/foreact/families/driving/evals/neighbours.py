"""Nearest rows of a memory by dot product: exact, or through FAISS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreact.errors import UserError


class ExactSearch:
    """Compares every query with every row, block by block, so that memory use stays bounded.

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
        # The k best so far, (N, <= k), compete with each block.
        best = queries.new_empty(len(queries), 0)
        rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for start in range(0, len(self.memory), self.block):
            similarity = queries @ self.memory[start : start + self.block].T
            block = torch.arange(start, start + similarity.shape[1], device=queries.device)
            best = torch.cat([best, similarity], dim=1)
            rows = torch.cat([rows, block.expand_as(similarity)], dim=1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            rows = rows.gather(1, order)
        return best, rows


class FaissSearch:
    """Looks into the nearest tenth of sqrt(M) cells (FAISS, inverted file): fast, misses a few.

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
        # sqrt(M) rows per cell are what was asked for, no reason to warn.
        index.cp.min_points_per_centroid = 1
        rows = memory.float().cpu().contiguous().numpy()
        index.train(rows)
        index.add(rows)
        index.nprobe = max(1, cells // 10)
        self._index, self._cells = index, cells

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `ExactSearch`; where the cells hold fewer than k rows, all cells are searched."""
        rows = queries.float().cpu().contiguous().numpy()
        similarity, neighbours = self._index.search(rows, k)
        short = (neighbours < 0).any(1)  # FAISS fills up with -1
        if short.any():
            usual, self._index.nprobe = self._index.nprobe, self._cells
            similarity[short], neighbours[short] = self._index.search(rows[short], k)
            self._index.nprobe = usual
        device = queries.device
        return torch.from_numpy(similarity).to(device), torch.from_numpy(neighbours).to(device)
