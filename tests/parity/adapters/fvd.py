"""Cases about the Frechet distance between clips."""

from __future__ import annotations

import dataclasses

from parity.registry import Case, adapter

from foreact.evals.features import PREPROCESSING
from foreact.evals.frechet import Moments, frechet_distance
from foreact.types import to_model_range


@adapter("uva", "fvd_math")
def fvd_math(case: Case) -> None:
    sides = []
    for name in ("in/x1", "in/x2"):
        moments = Moments()
        moments.add(case.io[name].numpy())
        sides.append(moments)
    case.check("out/frechet", frechet_distance(*sides))

    clips = to_model_range(case.io["in/video"].movedim(-1, -3))
    for name in (key for key in case.io if key.startswith("out/preprocess")):
        size = int(name.removeprefix("out/preprocess"))
        case.check(
            name,
            dataclasses.replace(PREPROCESSING["i3d"], size=(size, size), clip_frames=None).clip(
                clips
            ),
        )
