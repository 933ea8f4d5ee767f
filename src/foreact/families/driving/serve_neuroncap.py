"""`foreact serve`: a policy behind a network."""

from __future__ import annotations

import logging
from pathlib import Path

from foreact.checkpoints.shipped import resolve
from foreact.errors import UserError
from foreact.families.driving.policy import Choice, DrivingOptions, open_policy
from foreact.machine import AnyPrecision
from foreact.runs.run import pick_device, say
from foreact.serving.http import Handle, make_server
from foreact.serving.neuroncap import Gaps, NeuroNCAP

LOOPBACK = ("127.0.0.1", "localhost")


def neuroncap(
    weights: str,
    tokenizer: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 9000,
    samples: int = 1,
    choose: Choice = "first",
    steps: int | None = None,
    seed: int = 0,
    gaps: Gaps = "keep",
    sessions: int = 16,
    precision: AnyPrecision = "auto",
    device: str | None = None,
) -> None:
    """Let a NeuroNCAP simulator ask VaVAM for trajectories over HTTP, until interrupted.

    Args:
        weights: a checkpoint folder of VaVAM.
        tokenizer: checkpoint folder or TorchScript encoder of its tokenizer, where it is not embedded.
        host: address to listen on. There is no authentication: open it to networks you trust only.
        port: port to listen on; 0 takes a free one.
        samples: plans to draw per request.
        choose: which of them to answer with: the first, or the one closest to all others.
        steps: Euler steps; default: the model's.
        seed: of the draws of every episode; /reset?seed=N sets another.
        gaps: when frames are not half a second apart: keep what was seen, or restart without it. Both warn.
        sessions: episodes at a time; a further one replaces the one idle for longest.
        precision: of the model; auto: bf16 where the device computes it faster than fp32.
        device: where to compute; default CUDA if there is one.
    """
    if sessions < 1:
        raise UserError(f"sessions is {sessions}; at least one is needed to drive.")
    chosen = pick_device(device)
    options = DrivingOptions(
        samples=samples, choose=choose, steps=steps, precision=precision,
        tokenizer=None if tokenizer is None else str(tokenizer),
    )  # fmt: skip
    policy = open_policy(resolve(weights), options, device=chosen)
    server = NeuroNCAP(policy.fresh, camera=policy.camera, seed=seed, gaps=gaps, max_sessions=sessions)
    say("NeuroNCAP server", **policy.describe(), seed=seed, gaps=gaps, sessions=sessions)
    horizon, rate = policy.model.config.expert.horizon, policy.spec.fps
    if (horizon, rate) != (6, 2.0):
        print(f"NeuroNCAP expects 6 waypoints at 2 Hz; this model plans {horizon} at {rate:g} Hz.")
    _serve(server.handle, host, port)


def _serve(handle: Handle, host: str, port: int) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    server = make_server(handle, host=host, port=port)
    if host not in LOOPBACK:
        print(f"Anyone who reaches {host} can use this server; it asks for no password.")
    with server:
        print(f"Serving at http://{host}:{server.server_address[1]} (stop with ctrl-C)", flush=True)
        server.serve_forever()
