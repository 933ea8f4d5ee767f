"""What a replay says about a data set: that it agrees, or which convention is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foreact.data.rotations import Form, angle_between, convert
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.findings import Finding
from foreact.evals.replay import Replayed, Stream

AGREES = {"cm": 0.5, "deg": 1.0}
"""Mean drift that rounding and free joints explain; of other numbers, 1 % of their range."""
SAME_PICTURE_DB = 30.0
"""PSNR from which two pictures show the same instant, drawn alike."""
CLEARLY_DB = 3.0
"""How much nearer another view must be to be named."""
FAR_CM = 10.0
"""Distance of a target from the hand that no control step bridges."""
TURNED_DEGREES = 60.0


def findings(
    store: EpisodeStore, streams: Sequence[Stream], replayed: Sequence[Replayed]
) -> list[Finding]:
    """Plain sentences about a replay; "error" where a convention looks wrong."""
    judged, found = replayed, []
    if "noise" in store.info_names:
        noise = store.info("noise")
        judged = [r for r in replayed if noise[r.episode] == 0] or replayed
        if len(judged) < len(replayed):
            found.append(
                Finding(
                    "note",
                    f"{len(replayed) - len(judged)} episodes were recorded with noise, which may "
                    f"not be part of the actions; the other {len(judged)} are judged.",
                )
            )
    found += [
        *_of_drift(store, streams, judged),
        *_of_pictures(judged),
        *_of_scores(judged),
    ]
    if any(f.severity == "error" for f in found):
        found += _of_targets(store, replayed)
    return found


def _of_drift(
    store: EpisodeStore, streams: Sequence[Stream], replayed: Sequence[Replayed]
) -> list[Finding]:
    found = []
    for stream in streams:
        drift = np.concatenate([r.drift[stream.name] for r in replayed])
        limit = AGREES.get(stream.unit) or 0.01 * float(
            np.ptp(store.all_rows(stream.name), 0).max()
        )
        text = (
            f"'{stream.name}' drifts by {drift.mean():.3g} {stream.unit} on average, "
            f"{drift.max():.3g} at most"
        )
        if drift.mean() <= limit:
            found.append(Finding("note", f"{text}: it comes back as recorded."))
        elif max(r.drift[stream.name][0] for r in replayed) > limit:
            found.append(
                Finding(
                    "error",
                    f"{text}, and is elsewhere before the first action: episodes do not begin "
                    "where they were recorded, or the stream means something else.",
                )
            )
        else:
            found.append(
                Finding(
                    "error",
                    f"{text}, from the right start: the simulator takes the actions otherwise, or "
                    "what was executed is not what was recorded.",
                )
            )
    return found


def _of_pictures(replayed: Sequence[Replayed]) -> list[Finding]:
    """Which view each recorded camera fits, by the first frames, which no drift can change."""
    found = []
    views = replayed[0].first_picture
    mean = {view: float(np.mean([r.first_picture[view] for r in replayed])) for view in views}
    for camera in dict.fromkeys(view[0] for view in views):
        own = {view: db for view, db in mean.items() if view[0] == camera}
        best = max(own, key=lambda view: own[view])
        straight = own.get((camera, camera, "upright"), 0.0)
        if own[best] > straight + CLEARLY_DB:
            found.append(
                Finding(
                    "error",
                    f"Recorded pictures of '{camera}' fit the simulator's '{best[1]}' "
                    f"{best[2]} ({own[best]:.1f} dB), not '{camera}' upright ({straight:.1f} dB).",
                )
            )
        elif straight >= SAME_PICTURE_DB:
            found.append(
                Finding("note", f"Pictures of '{camera}' fit upright ({straight:.1f} dB).")
            )
        else:
            found.append(
                Finding(
                    "warning",
                    f"Pictures of '{camera}' fit best upright, but not well ({straight:.1f} dB): "
                    "they were drawn otherwise; try another --variant.",
                )
            )
    return found


def _of_scores(replayed: Sequence[Replayed]) -> list[Finding]:
    known = [r for r in replayed if r.recorded_score is not None]
    other = [r for r in known if not np.isclose(r.score, r.recorded_score or 0.0, rtol=0.02)]
    if not known:
        return []
    if not other:
        return [Finding("note", f"All {len(known)} episodes score as recorded.")]
    return [
        Finding(
            "error",
            f"{len(other)} of {len(known)} episodes score otherwise than recorded, the first is "
            f"'{other[0].name}': {other[0].score:.3g} instead of {other[0].recorded_score:.3g}.",
        )
    ]


def _of_targets(store: EpisodeStore, replayed: Sequence[Replayed]) -> list[Finding]:
    """Whether absolute targets of a hand look like deltas, of another frame, or a quarter off."""
    spec = store.spec
    sizes = {name: len(names) for name, names in spec.state.items()}
    positions = [n for n, size in sizes.items() if n.endswith(("eef_pos", "ee_pos")) and size == 3]
    forms: dict[str, tuple[int, Form]] = {"eef_quat": (4, "quat_xyzw"), "ee_ori": (3, "axis_angle")}
    rotations: list[tuple[str, Form]] = [
        (n, form)
        for n, size in sizes.items()
        for ending, (wanted, form) in forms.items()
        if n.endswith(ending) and size == wanted
    ]
    if spec.action is None or spec.action.dim != 10 or not positions or not rotations:
        return []
    rows = np.concatenate(
        [store.starts[r.episode] + np.arange(store.lengths[r.episode]) for r in replayed]
    )
    action = store.gather("action", rows)
    hand = store.gather(positions[0], rows)
    way = 100.0 * float(np.median(np.linalg.norm(action[:, :3] - hand, axis=1)))
    found = []
    if way > FAR_CM:
        # Targets of a shifted frame follow the hand at a constant distance, deltas do not.
        follows = _spread(action[:, :3] - hand) < 0.5 * _spread(hand)
        deltas = not follows and np.abs(action[:, :3]).max() <= 1.0
        found.append(
            Finding(
                "error",
                f"Targets lie {way:.0f} cm from the hand, where absolute ones in the world lie "
                f"within a few: they {'look like deltas' if deltas else 'are of another frame'}.",
            )
        )
    name, form = rotations[0]
    body = convert(store.gather(name, rows), form, "matrix")
    target = convert(action[:, 3:9], "rows_6d", "matrix")
    quarter = convert(np.array([0.0, 0.0, -np.pi / 2]), "axis_angle", "matrix")
    site = float(np.degrees(np.median(angle_between(body @ quarter, target))))
    same = float(np.degrees(np.median(angle_between(body, target))))
    if site > TURNED_DEGREES and same < site:
        found.append(
            Finding(
                "error",
                f"Targets are turned by {site:.0f} degrees from the grip site and {same:.0f} from "
                "the hand's body: their rotation is of the body, the controller takes the site's.",
            )
        )
    return found


def _spread(points: np.ndarray) -> float:
    """Median distance of points (N, 3) from their middle."""
    return float(np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1)))
