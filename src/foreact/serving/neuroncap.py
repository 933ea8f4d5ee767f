"""NeuroNCAP's wire format: a simulator asks over HTTP for the trajectory of every next half second.

    GET  /alive    -> true
    POST /reset    -> true, and what was seen so far is forgotten
    POST /infer    {images, ego2world, canbus, timestamp, command, calibration}
                  -> {trajectory, aux_outputs}

Every path takes `?session=NAME`, so that several simulators can drive at once, and `/reset` takes
`&seed=N`; a client that knows neither drives in one session of its own. Only the camera that the
policy watches is decoded, and images may be PNG, JPEG or .npy beside the torch.save'd tensors of
the original (https://github.com/atonderski/neuro-ncap).
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import numpy as np

from foreact.errors import UserError
from foreact.serving.pictures import decode_picture
from foreact.types import Observation, Policy

CAMERA = "CAM_FRONT"
"""The camera, by its name on the wire, that is given to the policy."""
COMMANDS = (0, 1, 2)
"""Right, left, straight."""
PERIOD_S = 0.5
"""Time between two requests of an episode."""
AUXILIARY = ("objects_in_bev", "object_classes", "object_scores", "object_ids", "future_trajs")
"""What a detector could add to the reply; this one has nothing to say about it."""
MAX_TIMESTAMP = 2**63 - 1
LARGEST = sys.float_info.max

Reply = tuple[int, Any]
"""HTTP status and a JSON value."""
Gaps = Literal["keep", "restart"]

log = logging.getLogger(__name__)


@dataclass
class Session:
    """One simulator's episode: its policy (weights are shared) and its newest frame's time."""

    policy: Policy
    seed: int
    timestamp: int | None = None

    def restart(self) -> None:
        self.policy.reset([self.seed])
        self.timestamp = None


class NeuroNCAP:
    """The protocol without the network: `handle` answers one request.

    Args:
        make_policy: gives a policy for a new session; policies may share a model.
        camera: name of the policy's camera.
        seed: of every episode whose `/reset` names none.
        gaps: what to do when two frames are not half a second apart, give or take half of it.
            "keep" warns and goes on, as the original does; "restart" warns and forgets the frames
            before the gap.
        max_sessions: beyond so many, the one idle for longest is forgotten.
    """

    def __init__(
        self,
        make_policy: Callable[[], Policy],
        *,
        camera: str = "front",
        seed: int = 0,
        gaps: Gaps = "keep",
        max_sessions: int = 16,
    ) -> None:
        self._make_policy = make_policy
        self._camera = camera
        self._seed = seed
        self._gaps = gaps
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def handle(self, method: str, path: str, body: bytes) -> Reply:
        """Answer one request.

        Args:
            method: "GET" or "POST".
            path: of the URL, with its query.
            body: of the request.

        Returns:
            200 and the reply, 422 and {"detail": [{loc, msg, type}, ...]} for a request that breaks
            the schema or cannot be used, 404 or 405 for one to nowhere.
        """
        url = urlsplit(path)
        routes = {
            "/alive": ("GET", self._alive),
            "/reset": ("POST", self._reset),
            "/infer": ("POST", self._infer),
        }
        if url.path not in routes:
            return 404, {"detail": f"There is no {url.path}; known are {', '.join(routes)}."}
        wanted, answer = routes[url.path]
        if method != wanted:
            return 405, {"detail": f"{url.path} takes {wanted}, found {method}."}
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        return answer(query, body)

    def _alive(self, query: Mapping[str, str], body: bytes) -> Reply:
        return 200, True

    def _reset(self, query: Mapping[str, str], body: bytes) -> Reply:
        try:
            seed = int(query.get("seed", self._seed))
        except ValueError:
            return _refusal(
                ("query", "seed"), f"should be a whole number, found {query['seed'][:40]!r}"
            )
        with self._lock:
            session = self._session(query)
            session.seed = seed
            session.restart()
        return 200, True

    def _infer(self, query: Mapping[str, str], body: bytes) -> Reply:
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            return _refusal(("body",), f"should be JSON ({error})", "json_invalid")
        if problems := list(_problems(request)):
            return 422, {"detail": problems}
        where = ("body", "images", CAMERA)
        if CAMERA not in request["images"]:
            return _refusal(where, "Field required", "missing")
        try:
            picture = decode_picture(request["images"][CAMERA], CAMERA)
        except UserError as error:
            return _refusal(where, str(error))
        command = np.array([[request["command"]]], np.float32)
        with self._lock:
            session = self._session(query)
            self._watch_time(session, request["timestamp"])
            try:
                session.policy.observe(
                    Observation({self._camera: picture[None]}, {"command": command})
                )
            except UserError as error:
                return _refusal(("body",), str(error))
            session.timestamp = request["timestamp"]
            trajectory = session.policy.act().actions[0]
        return 200, {"trajectory": trajectory.tolist(), "aux_outputs": dict.fromkeys(AUXILIARY)}

    def _session(self, query: Mapping[str, str]) -> Session:
        name = query.get("session", "")
        if name not in self._sessions:
            self._sessions[name] = Session(self._make_policy(), self._seed)
            self._sessions[name].restart()
            if len(self._sessions) > self._max_sessions:
                forgotten, _ = self._sessions.popitem(last=False)
                log.warning("session %r was idle for longest and is forgotten", forgotten)
        self._sessions.move_to_end(name)
        return self._sessions[name]

    def _watch_time(self, session: Session, timestamp: int) -> None:
        if session.timestamp is None:
            return
        passed = (timestamp - session.timestamp) / 1e6
        if abs(passed - PERIOD_S) > PERIOD_S / 2:
            log.warning(
                "%.3f s between two frames instead of %.3f s; the frames before it are %s",
                passed,
                PERIOD_S,
                "forgotten" if self._gaps == "restart" else "kept",
            )
            if self._gaps == "restart":
                session.restart()


def _refusal(loc: tuple[str, ...], message: str, kind: str = "value_error") -> Reply:
    return 422, {"detail": [_problem(loc, message, kind)]}


def _problem(loc: tuple[str, ...], message: str, kind: str = "value_error") -> dict[str, Any]:
    return {"loc": list(loc), "msg": message, "type": kind}


# --- the schema of /infer; what nobody needs is checked too, since it gives a confused client away


def _problems(request: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(request, dict):
        yield _problem(("body",), "should be an object", "model_type")
        return
    yield from _check_fields(request, _REQUEST, ("body",))
    calibration = request.get("calibration")
    if isinstance(calibration, dict):
        yield from _check_fields(calibration, _CALIBRATION, ("body", "calibration"))


def _check_fields(
    found: Mapping[str, Any],
    fields: Mapping[str, tuple[Callable[[Any], bool], str]],
    loc: tuple[str, ...],
) -> Iterator[dict[str, Any]]:
    for name, (fits, expected) in fields.items():
        if name not in found:
            yield _problem((*loc, name), "Field required", "missing")
        elif not fits(found[name]):
            yield _problem((*loc, name), f"should be {expected}")


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -LARGEST <= value <= LARGEST
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_array(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return _is_number(value)
    return (
        isinstance(value, list)
        and len(value) == shape[0]
        and all(_is_array(row, shape[1:]) for row in value)
    )


def _are_arrays(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, dict) and all(_is_array(row, shape) for row in value.values())


_REQUEST: dict[str, tuple[Callable[[Any], bool], str]] = {
    "images": (
        lambda v: isinstance(v, dict) and all(isinstance(text, str) for text in v.values()),
        "an object of base64 texts, one per camera",
    ),
    "ego2world": (lambda v: _is_array(v, (4, 4)), "4 x 4 numbers"),
    "canbus": (lambda v: _is_array(v, (16,)), "16 numbers"),
    "timestamp": (
        lambda v: _is_whole(v) and 0 <= v <= MAX_TIMESTAMP,
        "a whole number of microseconds",
    ),
    "command": (lambda v: _is_whole(v) and v in COMMANDS, "0 (right), 1 (left) or 2 (straight)"),
    "calibration": (lambda v: isinstance(v, dict), "an object"),
}
_CALIBRATION: dict[str, tuple[Callable[[Any], bool], str]] = {
    "camera2image": (
        lambda v: _are_arrays(v, (3, 3)),
        "an object of 3 x 3 numbers, one per camera",
    ),
    "camera2ego": (lambda v: _are_arrays(v, (4, 4)), "an object of 4 x 4 numbers, one per camera"),
    "lidar2ego": (lambda v: _is_array(v, (4, 4)), "4 x 4 numbers"),
}
