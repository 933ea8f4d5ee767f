"""The calibrated copy of the last frame, in the unit of video models: nats per token.

    P(x | the token y at the same place one frame before) = p [x = y] + (1 - p) u(x)

with u the smoothed frequencies of the training tokens and p fitted to them by maximum likelihood.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.evals.clustered import clustered_estimate
from foreact.types import Batch, Estimate


@dataclass(frozen=True, kw_only=True)
class CopyBaseline:
    """Repeats the last frame, and knows how often that fails.

    Attributes:
        keep: p, the probability that a token is copied, in [0, 1).
        unigram: float64 (V,), what a token is drawn from otherwise; positive, of sum 1.
    """

    keep: float
    unigram: Tensor

    def token_losses(self, tokens: Tensor) -> Tensor:
        """Per-token cross-entropy after the first frame: (B, T, h, w) -> float64 (B, T-1, h, w)."""
        following = tokens[:, 1:]
        drawn = (1.0 - self.keep) * self.unigram.to(tokens.device)[following]
        return -(drawn + self.keep * (following == tokens[:, :-1]).double()).log()


def fit_copy(batches: Iterable[Batch], camera: str, vocab: int) -> CopyBaseline:
    """Fit the baseline to training windows.

    One count is added to every token id and one token is taken to have changed into an id of
    average frequency, so that what training never showed is unlikely, not impossible.

    Args:
        batches: with `tokens[camera]` of two frames or more, without padding.
        camera: stream to read.
        vocab: number of token ids, V.

    Raises:
        UserError: no window, windows of one frame, padding, or ids outside the vocabulary.
    """
    counts = torch.ones(vocab, dtype=torch.float64)
    copied: list[Tensor] = []
    changed = 1
    for batch in batches:
        tokens = whole_windows(batch, camera)
        if tokens.min() < 0 or tokens.max() >= vocab:
            raise UserError(
                f"Token ids should lie in 0..{vocab - 1}, found "
                f"{int(tokens.min())}..{int(tokens.max())}."
            )
        counts += torch.bincount(tokens.flatten(), minlength=vocab)
        same = tokens[:, 1:] == tokens[:, :-1]
        copied.append(tokens[:, 1:][same])
        changed += int((~same).sum())
    if not copied:
        raise UserError(
            "There is no training window to fit the copy baseline to; give longer drives."
        )
    unigram = counts / counts.sum()
    return CopyBaseline(keep=_likeliest_keep(unigram[torch.cat(copied)], changed), unigram=unigram)


def _likeliest_keep(copied: Tensor, changed: int) -> float:
    """The p that maximises sum_i log(p + (1 - p) u_i) + changed log(1 - p).

    u_i is the unigram probability of each kept token.

    The sum is concave in p, so bisection finds where its derivative is zero.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        slope = float(((1.0 - copied) / (p + (1.0 - p) * copied)).sum()) - changed / (1.0 - p)
        low, high = (p, high) if slope > 0 else (low, p)
    return low


@dataclass(frozen=True, kw_only=True)
class AgainstCopy:
    """Result of `against_copy`, in nats per token; the intervals are over independent drives.

    Attributes:
        model: loss of the model.
        copy: loss of the baseline on the same tokens.
        gain: copy minus model, window by window; the model is better where its interval lies above
            zero.
        tokens: how many were predicted.
        windows: how many windows they came from.
    """

    model: Estimate
    copy: Estimate
    gain: Estimate
    tokens: int
    windows: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@torch.no_grad()
def against_copy(
    token_losses: Callable[[Tensor], Tensor],
    baseline: CopyBaseline,
    batches: Iterable[Batch],
    camera: str,
    *,
    device: torch.device | str,
) -> AgainstCopy:
    """Score a model and the baseline on the same tokens: all but each window's first frame.

    Args:
        token_losses: int64 (B, T, h, w) -> float (B, T h w - 1), nats: the loss of each token but
            the first.
        baseline: fitted to training tokens.
        batches: with `tokens[camera]`, without padding. `index` names the drive of each window.
        camera: stream to read.
        device: where `token_losses` computes.

    Raises:
        UserError: no window, windows of one frame, padding, or losses that are not finite.
    """
    model, copy, drives = [], [], []
    count = 0
    for batch in batches:
        tokens = whole_windows(batch, camera)
        following = tokens[:, 1:].numel()
        losses = token_losses(tokens.to(device)).double().cpu()
        model += losses[:, -(following // len(tokens)) :].mean(1).tolist()
        copy += baseline.token_losses(tokens).flatten(1).mean(1).tolist()
        first = len(drives)
        drives += range(first, len(model)) if batch.index is None else batch.index[:, 0].tolist()
        count += following

    def mean(values: list[float], *, better: bool) -> Estimate:
        return clustered_estimate(values, drives, unit="nats per token", higher_is_better=better)

    gain = [c - m for c, m in zip(copy, model, strict=True)]
    return AgainstCopy(
        model=mean(model, better=False),
        copy=mean(copy, better=False),
        gain=mean(gain, better=True),
        tokens=count,
        windows=len(model),
    )


def whole_windows(batch: Batch, camera: str) -> Tensor:
    """The tokens of a batch of windows (B, T, h, w) with T >= 2 and without padding."""
    if camera not in batch.tokens:
        raise UserError(
            f"The data has no tokens of camera '{camera}', it has "
            f"{sorted(batch.tokens)}; tokenize it."
        )
    tokens, valid = batch.tokens[camera], batch.valid.get(camera)
    if tokens.shape[1] < 2 or (valid is not None and not bool(valid.all())):
        raise UserError(
            "Copying the last frame is measured on whole windows of 2 frames or more, found "
            f"{tokens.shape[1]} {'with padding' if valid is not None else 'frame'}; cut other "
            "windows."
        )
    return tokens
