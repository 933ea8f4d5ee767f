"""Scores of dense labels: intersection over union, and errors of depth."""

from __future__ import annotations

import torch
from torch import Tensor

from foreact.errors import UserError


class Confusion:
    """Counts of (true class, predicted class) over pixels.

    Args:
        classes: how many.
        ignore: label of pixels that do not count.

    Attributes:
        counts: int64 (C, C), row = truth.
    """

    def __init__(self, classes: int, *, ignore: int = 255) -> None:
        self.classes, self.ignore = classes, ignore
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Integer tensors of one shape; raises a `UserError` for classes that do not exist."""
        if predicted.shape != truth.shape:
            raise UserError(
                "Predicted and true classes should have one shape, found "
                f"{tuple(predicted.shape)} and {tuple(truth.shape)}."
            )
        counted = truth != self.ignore
        predicted, truth = predicted[counted].long(), truth[counted].long()
        for values in (predicted, truth):
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.classes:
                raise UserError(
                    f"Classes should lie in 0..{self.classes - 1}, found "
                    f"{int(values.min())}..{int(values.max())}."
                )
        pairs = truth * self.classes + predicted  # the place in `counts`, flattened
        counts = torch.bincount(pairs, minlength=self.classes**2)
        self.counts += counts.view_as(self.counts)

    def iou(self) -> Tensor:
        """Intersection over union of each class, float64 (C,); NaN where neither side has it."""
        intersection = self.counts.diagonal().double()
        return intersection / (self.counts.sum(0) + self.counts.sum(1) - intersection)

    def iou_list(self) -> list[float | None]:
        """`iou` as JSON knows it."""
        return [None if value.isnan() else float(value) for value in self.iou()]

    def scores(self) -> dict[str, float]:
        """mIoU: the mean over the classes that occur."""
        if not int(self.counts.sum()):
            raise UserError(
                "No pixel has a label, so there is no IoU; check the labels of the "
                "held-out pictures."
            )
        return {"mIoU": float(self.iou().nanmean())}


class DepthErrors:
    """Errors of depth maps: means per picture, averaged over pictures.

    Pixels without true depth (<= 0) do not count.
    """

    def __init__(self) -> None:
        self._images: list[Tensor] = []

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """float (B, 1, H, W) each, in one unit."""
        if predicted.shape != truth.shape:
            raise UserError(
                f"Predicted and true depth should have one shape, found {tuple(predicted.shape)} "
                f"and {tuple(truth.shape)}."
            )
        for p, t in zip(predicted.double(), truth.double(), strict=True):
            p, t = p[t > 0], t[t > 0]
            if not len(t):
                continue
            ratio = torch.maximum(p / t, t / p.clamp_min(1e-12))
            error = (p - t).abs()
            within = [(ratio < 1.25**k).double().mean() for k in (1, 2, 3)]
            self._images.append(
                torch.stack([*within, (error / t).mean(), (error**2 / t).mean(), (error**2).mean()])
            )

    def scores(self) -> dict[str, float]:
        """The usual errors of depth, by name.

        d1, d2 and d3 are the shares of pixels within 1.25, 1.25^2 and 1.25^3 of the truth, abs_rel
        and sq_rel the errors relative to it, rmse the root of the pictures' mean MSE.
        """
        if not self._images:
            raise UserError(
                "No pixel has depth, so there is no error of depth; check the depth files."
            )
        mean = torch.stack(self._images).mean(0)
        mean[-1] = mean[-1].sqrt()
        names = ("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse")
        return dict(zip(names, mean.tolist(), strict=True))
