from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import os
import socket
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.tiny_driver import SIZE, BrightnessTokenizer
from support.tiny_vavam import ACTION, tiny_vavam

from foreact.errors import UserError
from foreact.families.driving.policy import DrivingPolicy, acting_spec
from foreact.serving import pictures
from foreact.serving.http import make_server
from foreact.serving.neuroncap import NeuroNCAP
from foreact.serving.pictures import decode_picture

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
EYE3, EYE4 = np.eye(3).tolist(), np.eye(4).tolist()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def torch_bytes(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def image_bytes(picture: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def without_palette(png: bytes) -> bytes:
    """The same PNG, its header now claiming a palette that the file lacks."""
    header = png[12:25] + b"\x03" + png[26:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def picture(level: int = 100) -> np.ndarray:
    return np.full((*SIZE, 3), level, np.uint8)


def request(level: int = 100, *, step: int = 0, command: Any = 2, **changes: Any) -> dict[str, Any]:
    """A body of /infer; a change to None takes the entry away."""
    body = {
        "images": {CAMERAS[0]: text(torch_bytes(torch.from_numpy(picture(level))))}
        | dict.fromkeys(CAMERAS[1:], "-"),
        "ego2world": EYE4,
        "canbus": [0.0] * 16,
        "timestamp": 1_533_151_603_500_000 + 500_000 * step,
        "command": command,
        "calibration": {
            "camera2image": dict.fromkeys(CAMERAS, EYE3),
            "camera2ego": dict.fromkeys(CAMERAS, EYE4),
            "lidar2ego": EYE4,
        },
    } | changes
    return {name: value for name, value in body.items() if value is not None}


def server(tokenizer: BrightnessTokenizer | None = None, **options: Any) -> NeuroNCAP:
    model, tokenizer = tiny_vavam(), tokenizer or BrightnessTokenizer()
    return NeuroNCAP(lambda: DrivingPolicy(model, tokenizer, acting_spec(SIZE)), **options)


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_base64_may_be_broken_into_lines(end: str) -> None:
    body = text(image_bytes(picture(70), "PNG"))
    lines = end.join(body[i : i + 76] for i in range(0, len(body), 76)) + end
    np.testing.assert_array_equal(decode_picture(lines, "It"), picture(70))
    with pytest.raises(UserError, match="is not base64"):
        decode_picture(lines.replace(body[10], "!", 1), "It")


def ask(to: NeuroNCAP, body: Any, query: str = "") -> tuple[int, Any]:
    return to.handle(
        "POST", f"/infer{query}", body if isinstance(body, bytes) else json.dumps(body).encode()
    )


def drive(to: NeuroNCAP, levels: list[int], query: str = "") -> list[Any]:
    answers = [ask(to, request(level, step=step), query) for step, level in enumerate(levels)]
    assert [status for status, _ in answers] == [200] * len(levels)
    return [reply["trajectory"] for _, reply in answers]


# --- the conversation -----------------------------------------------------------------------------


def test_alive_and_reset_say_true() -> None:
    ncap = server()
    assert ncap.handle("GET", "/alive", b"") == (200, True)
    assert ncap.handle("POST", "/reset", b"") == (200, True)


def test_infer_answers_with_a_trajectory_and_empty_auxiliaries() -> None:
    status, reply = ask(server(), request())
    assert status == 200
    assert np.array(reply["trajectory"]).shape == (ACTION.expert.horizon, 2)
    nothing = ("objects_in_bev", "object_classes", "object_scores", "object_ids", "future_trajs")
    assert reply["aux_outputs"] == dict.fromkeys(nothing)
    json.dumps(reply, allow_nan=False)


def test_a_trajectory_is_the_policys() -> None:
    policy = DrivingPolicy(tiny_vavam(), BrightnessTokenizer(), acting_spec(SIZE))
    ncap = NeuroNCAP(lambda: policy, seed=4)
    found = drive(ncap, [10, 200])
    other = server(seed=4)
    assert drive(other, [10, 200]) == found
    np.testing.assert_array_equal(np.array(found[-1], np.float32), policy.act().actions[0])


def test_the_past_counts_until_a_reset() -> None:
    ncap = server()
    first = drive(ncap, [10, 200])
    ncap.handle("POST", "/reset", b"")
    assert drive(ncap, [10, 200]) == first
    assert drive(server(), [200])[0] != first[1]


def test_seeds_make_episodes_repeatable_and_different() -> None:
    ncap = server()
    plans = {}
    for seed in (1, 2, 1):
        assert ncap.handle("POST", f"/reset?seed={seed}", b"") == (200, True)
        plans.setdefault(seed, []).append(drive(ncap, [10, 200]))
    assert plans[1][0] == plans[1][1] != plans[2][0]
    status, reply = ncap.handle("POST", "/reset?seed=x", b"")
    assert (status, reply["detail"][0]["loc"]) == (422, ["query", "seed"])


def test_sessions_do_not_see_each_other() -> None:
    ncap, levels = server(), {"a": [10, 200, 30], "b": [250, 0, 90]}
    alone = {name: drive(server(), found) for name, found in levels.items()}
    together: dict[str, list[Any]] = {"a": [], "b": []}
    for step in range(3):
        for name, found in levels.items():
            together[name].append(
                ask(ncap, request(found[step], step=step), f"?session={name}")[1]["trajectory"]
            )
    assert together == alone
    ncap.handle("POST", "/reset?session=b", b"")
    assert ask(ncap, request(levels["b"][0]), "?session=b")[1]["trajectory"] == alone["b"][0]


def test_sessions_in_threads_do_not_disturb_each_other() -> None:
    ncap = server()
    levels = {f"s{i}": [i * 20, 255 - i * 20, 7] for i in range(6)}
    found: dict[str, Any] = {}

    def run(name: str) -> None:
        found[name] = drive(ncap, levels[name], f"?session={name}")

    threads = [threading.Thread(target=run, args=(name,)) for name in levels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: drive(server(), of) for name, of in levels.items()}


def test_the_session_idle_for_longest_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    ncap = server(max_sessions=2)
    kept = drive(ncap, [10, 200], "?session=a")
    ncap.handle("POST", "/reset?session=b", b"")
    ask(ncap, request(3, step=2), "?session=a")
    ncap.handle("POST", "/reset?session=c", b"")
    assert "session 'b' was idle for longest and is forgotten" in caplog.text
    assert drive(ncap, [10, 200], "?session=new") == kept
    assert "session 'a' was idle" in caplog.text


def test_only_the_watched_camera_is_decoded_and_needed() -> None:
    front = request()["images"][CAMERAS[0]]
    lonely = request(images={CAMERAS[0]: front})
    assert ask(server(), lonely) == ask(server(), request())


def test_a_frame_is_tokenized_once() -> None:
    tokenizer = BrightnessTokenizer()
    drive(server(tokenizer), [1, 50, 100, 150, 200])
    assert tokenizer.frames == 5


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [-1, 0, 3])
def test_gaps_are_noticed(skip: int, caplog: pytest.LogCaptureFixture) -> None:
    kept, restarted = server(), server(gaps="restart")
    for ncap in (kept, restarted):
        ask(ncap, request(10, step=0))
        assert caplog.text.count("between two frames") == (0 if ncap is kept else 1)
        ask(ncap, request(200, step=skip))
    assert f"{skip * 0.5:.3f} s between two frames instead of 0.500 s" in caplog.text
    assert "before it are kept" in caplog.text
    assert "before it are forgotten" in caplog.text
    after = [ask(ncap, request(90, step=skip + 1))[1]["trajectory"] for ncap in (kept, restarted)]
    assert after == [drive(server(), [10, 200, 90])[-1], drive(server(), [200, 90])[-1]]


def test_half_a_second_is_no_gap(caplog: pytest.LogCaptureFixture) -> None:
    drive(server(), [1, 2, 3])
    late = server()
    ask(late, request())
    ask(late, request(timestamp=request()["timestamp"] + 749_000))
    assert "between two frames" not in caplog.text


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"command": 3}, ["command"]),
        ({"command": True}, ["command"]),
        ({"command": "1"}, ["command"]),
        ({"canbus": None}, ["canbus"]),
        ({"canbus": [0.0] * 15}, ["canbus"]),
        ({"canbus": [True] * 16}, ["canbus"]),
        ({"canbus": [0.0] * 15 + [10**400]}, ["canbus"]),
        ({"canbus": [0.0] * 15 + [float("nan")]}, ["canbus"]),
        ({"ego2world": EYE3}, ["ego2world"]),
        ({"ego2world": [[0, 0, 0, "x"]] * 4}, ["ego2world"]),
        ({"timestamp": 1.5}, ["timestamp"]),
        ({"timestamp": 10**30}, ["timestamp"]),
        ({"timestamp": -1}, ["timestamp"]),
        ({"images": []}, ["images"]),
        ({"images": {CAMERAS[0]: 3}}, ["images"]),
        ({"images": {CAMERAS[1]: "-"}}, ["images", CAMERAS[0]]),
        ({"images": {CAMERAS[0]: "no base64!"}}, ["images", CAMERAS[0]]),
        ({"calibration": None}, ["calibration"]),
        ({"calibration": 7}, ["calibration"]),
        ({"calibration": {"camera2image": {}, "camera2ego": {}}}, ["calibration", "lidar2ego"]),
        (
            {"calibration": {"camera2image": {"x": EYE4}, "camera2ego": {}, "lidar2ego": EYE4}},
            ["calibration", "camera2image"],
        ),
    ],
)
def test_schema_errors_name_the_place_and_leave_no_trace(
    change: dict[str, Any], loc: list[str]
) -> None:
    ncap = server()
    ask(ncap, request(10))
    status, reply = ask(ncap, request(99, step=1, **change))
    assert status == 422
    assert [problem["loc"] for problem in reply["detail"]] == [["body", *loc]]
    assert all(set(problem) == {"loc", "msg", "type"} for problem in reply["detail"])
    assert ask(ncap, request(200, step=1))[1]["trajectory"] == drive(server(), [10, 200])[1]


def test_all_schema_errors_are_told_at_once() -> None:
    _, reply = ask(server(), request(command=9, canbus=None, ego2world=3))
    assert sorted(problem["loc"][1] for problem in reply["detail"]) == [
        "canbus",
        "command",
        "ego2world",
    ]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"3", b"null", b"[]"])
def test_a_body_that_is_no_object(body: bytes) -> None:
    status, reply = ask(server(), body)
    assert (status, reply["detail"][0]["loc"]) == (422, ["body"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([*request(), "other"]), json_values))
def test_any_json_is_answered(changes: dict[str, Any]) -> None:
    status, reply = ask(server(), request(**changes))
    changed = set(changes) - {"other"}
    assert status == 422 if any(changes[name] is None for name in changed) else status in (200, 422)
    json.dumps(reply, allow_nan=False)


def test_wrong_places_are_named() -> None:
    assert server().handle("GET", "/nowhere", b"")[0] == 404
    assert server().handle("POST", "/alive", b"")[0] == 405
    assert server().handle("GET", "/infer", b"") == (
        405,
        {"detail": "/infer takes POST, found GET."},
    )


# --- pictures -------------------------------------------------------------------------------------

SAMPLE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
KINDS: dict[str, Callable[[np.ndarray], bytes]] = {
    "torch": lambda x: torch_bytes(torch.from_numpy(x.copy())),
    "torch, planes": lambda x: torch_bytes(
        torch.from_numpy(x.transpose(2, 0, 1).copy()).permute(1, 2, 0)
    ),
    "png": lambda x: image_bytes(x, "PNG"),
    "npy": npy_bytes,
    "npy, fortran": lambda x: npy_bytes(np.asfortranarray(x)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_lossless_kind_gives_the_same_picture(kind: str) -> None:
    found = decode_picture(text(KINDS[kind](SAMPLE)), "x")
    assert (found.dtype, found.flags.writeable, found.flags.c_contiguous) == (np.uint8, True, True)
    np.testing.assert_array_equal(found, SAMPLE)


def test_jpeg_and_grey_png() -> None:
    flat = picture(120)
    assert (
        np.abs(
            decode_picture(text(image_bytes(flat, "JPEG", quality=95)), "x").astype(int) - flat
        ).max()
        <= 2
    )
    np.testing.assert_array_equal(
        decode_picture(text(image_bytes(SAMPLE[..., 0], "PNG")), "x")[..., 2], SAMPLE[..., 0]
    )


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def packed(data: bytes) -> bytes:
    """The same archive, compressed."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as copy,
    ):
        for name in archive.namelist():
            copy.writestr(name, archive.read(name))
    return buffer.getvalue()


def test_nothing_is_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    evil = text(torch_bytes(Runs(proof)))
    with pytest.raises(
        UserError, match=r"^the picture asks for '\w+\.system', which is not on the list"
    ):
        decode_picture(evil, "the picture")
    status, reply = ask(server(), request(images={CAMERAS[0]: evil}))
    assert (status, reply["detail"][0]["loc"]) == (422, ["body", "images", CAMERAS[0]])
    assert not proof.exists()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"GIF89a", "x is of no known kind"),
        (b"", "x is of no known kind"),
        (
            torch_bytes(torch.from_numpy(SAMPLE), _use_new_zipfile_serialization=False),
            "x is of no known kind",
        ),
        (packed(torch_bytes(torch.from_numpy(SAMPLE))), "x is a compressed torch.save file"),
        (torch_bytes({"a": 1}), r"x holds a dict; send one uint8 tensor \(H, W, 3\)"),
        (
            torch_bytes(torch.zeros(4, 4, 3)),
            r"x should be uint8 \(H, W, 3\), found float32 \(4, 4, 3\)",
        ),
        (torch_bytes(torch.zeros(3, 4, 4, dtype=torch.uint8)), r"found uint8 \(3, 4, 4\)"),
        (torch_bytes(torch.zeros(0, 4, 3, dtype=torch.uint8)), r"found uint8 \(0, 4, 3\)"),
        (npy_bytes(SAMPLE.astype(np.float32)), r"found float32 \(6, 5, 3\)"),
        (npy_bytes(np.array([{}])), r"found object \(1,\)"),
        (npy_bytes(SAMPLE)[:-1], "x should hold 90 bytes of pixels, found 89"),
        (
            npy_bytes(SAMPLE).replace(b"(6, 5, 3)", b"(9999999999, 9999999999, 3)"),
            "x is a damaged .npy file|pixels",
        ),
        (npy_bytes(SAMPLE).replace(b"'shape'", b"b'shap'"), "x is a damaged .npy file"),
        (image_bytes(SAMPLE, "PNG")[:-30], "x is a damaged picture"),
        (without_palette(image_bytes(SAMPLE, "PNG")), "x is a damaged picture"),
        (image_bytes(SAMPLE, "JPEG")[:40], "x is a damaged picture"),
        (torch_bytes(torch.from_numpy(SAMPLE))[:200], "x is a damaged torch.save file"),
    ],
)
def test_what_is_no_picture_is_told_in_a_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        decode_picture(text(data), "x")
    assert "/tmp" not in str(refusal.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_beyond_the_limit_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 29)
    with pytest.raises(UserError, match="x has 6 x 5 pixels, more than 29"):
        decode_picture(text(KINDS[kind](SAMPLE)), "x")


@settings(max_examples=150)
@example("npy", 10, 35, False)  # numpy's parser of headers gives up in a way of its own
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_damage_never_raises_anything_else(kind: str, at: int, flip: int, cut: bool) -> None:
    data = bytearray(KINDS[kind](SAMPLE))
    at %= len(data)
    data[at] ^= flip
    try:
        found = decode_picture(text(bytes(data[: at + 1] if cut else data)), "x")
    except UserError:
        return
    assert found.dtype == np.uint8
    assert found.shape[2] == 3


# --- over the network -----------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    running = []

    def start(handle: Callable[[str, str, bytes], tuple[int, Any]], **options: Any) -> int:
        made = make_server(handle, **options)
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((made, thread))
        return made.server_address[1]

    yield start
    for made, thread in running:
        made.shutdown()
        made.server_close()
        thread.join()


def exchange(connection: http.client.HTTPConnection, *args: Any, **kwargs: Any) -> tuple[int, Any]:
    connection.request(*args, **kwargs)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_drive_over_one_connection(serve: Callable[..., int]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", serve(server().handle), timeout=10)
    assert exchange(connection, "GET", "/alive") == (200, True)
    assert exchange(connection, "POST", "/reset") == (200, True)
    expected = drive(server(), [10, 200])
    for step, level in enumerate([10, 200]):
        status, reply = exchange(
            connection, "POST", "/infer", body=json.dumps(request(level, step=step))
        )
        assert (status, reply["trajectory"]) == (200, expected[step])
    assert exchange(connection, "POST", "/infer", body="{}")[0] == 422
    connection.close()


def test_a_body_too_large_is_refused_unread(serve: Callable[..., int]) -> None:
    port = serve(lambda *_: (200, True), max_body=10)
    for length in ("11", "9" * 30):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("POST", "/infer")
        connection.putheader("Content-Length", length)
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (413, "close")
        assert json.loads(answer.read())["detail"].endswith("at most 10 are taken.")
        connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    assert exchange(connection, "POST", "/infer", body=b"0123456789") == (200, True)
    connection.close()


@pytest.mark.parametrize(
    "header", [("Transfer-Encoding", "chunked"), ("Content-Length", "-1"), ("Content-Length", "x")]
)
def test_a_body_of_unknown_length_is_refused(
    serve: Callable[..., int], header: tuple[str, str]
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", serve(lambda *_: (200, True)), timeout=10)
    connection.putrequest("POST", "/infer")
    connection.putheader(*header)
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()


@pytest.mark.parametrize("reply", [RuntimeError("secret"), (200, float("nan"))])
def test_a_failure_is_one_sentence_and_the_next_request_is_served(
    serve: Callable[..., int], reply: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/alive":
            return 200, True
        if isinstance(reply, Exception):
            raise reply
        return reply

    connection = http.client.HTTPConnection("127.0.0.1", serve(handle), timeout=10)
    with caplog.at_level(logging.ERROR):
        status, answer = exchange(connection, "POST", "/infer", body=b"{}")
    assert (status, answer) == (
        500,
        {"detail": "The server failed on this request; its log says why."},
    )
    assert "Traceback" in caplog.text
    assert exchange(connection, "GET", "/alive") == (200, True)
    connection.close()


def test_a_client_that_stops_talking_is_left(serve: Callable[..., int]) -> None:
    port = serve(lambda *_: (200, True), timeout_s=0.1)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
        silent.sendall(b"POST /infer HTTP/1.1\r\nContent-Length: 5\r\n\r\n12")
        assert silent.recv(1) == b""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    assert exchange(connection, "GET", "/alive") == (200, True)
    connection.close()


def test_a_taken_port_is_one_sentence(serve: Callable[..., int]) -> None:
    port = serve(lambda *_: (200, True))
    with pytest.raises(
        UserError,
        match=rf"Cannot listen on 127\.0\.0\.1:{port} \(.*in use.*\); choose another --port",
    ):
        make_server(lambda *_: (200, True), port=port)
    with pytest.raises(UserError, match="Cannot listen on"):
        make_server(lambda *_: (200, True), port=70000)
