"""`foreact serve neuroncap`: VaVAM behind the network, asked by a NeuroNCAP simulator."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from foreact.checkpoints.shipped import resolve
from foreact.errors import UserError
from foreact.families.driving.policy import Choice, DrivingOptions, open_policy
from foreact.machine import AnyPrecision
from foreact.runs.run import pick_device, say
from foreact.seeds import require_seeds
from foreact.serving.http import Handle, make_server
from foreact.serving.neuroncap import Gaps, NeuroNCAP

LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServeNeuroNCAP:
    """Which model to serve, where, and how it drives."""

    weights: str
    """a checkpoint folder of VaVAM."""
    tokenizer: Path | None = None
    """checkpoint folder or TorchScript encoder of its tokenizer, where it is not embedded."""
    host: str = "127.0.0.1"
    """address to listen on. There is no authentication: open it to networks you trust only."""
    port: int = 9000
    """port to listen on; 0 takes a free one."""
    samples: int = 1
    """plans to draw per request."""
    choose: Choice = "first"
    """which of them to answer with: the first, or the one closest to all others."""
    steps: int | None = None
    """Euler steps; default: the model's."""
    seed: int = 0
    """of the draws of every episode; /reset?seed=N sets another."""
    gaps: Gaps = "keep"
    """when frames are not half a second apart: keep those seen, or restart. Both warn."""
    sessions: int = 16
    """episodes at a time; a further one replaces the one idle for longest."""
    precision: AnyPrecision = "auto"
    """of the model; auto: bf16 where the device computes it faster than fp32."""
    device: str | None = None
    """where to compute; default CUDA if there is one."""


def neuroncap(asked: Annotated[ServeNeuroNCAP, arg(name="")]) -> None:  # --host, not --asked.host
    """Let a NeuroNCAP simulator ask VaVAM for trajectories over HTTP, until interrupted."""
    if asked.sessions < 1:
        raise UserError(f"--sessions is {asked.sessions}; at least one is needed to drive.")
    require_seeds(asked.seed, option="--seed")
    options = DrivingOptions(
        samples=asked.samples,
        choose=asked.choose,
        steps=asked.steps,
        precision=asked.precision,
        tokenizer=None if asked.tokenizer is None else str(asked.tokenizer),
    )
    policy = open_policy(resolve(asked.weights), options, device=pick_device(asked.device))
    server = NeuroNCAP(
        policy.fresh,
        camera=policy.camera,
        seed=asked.seed,
        gaps=asked.gaps,
        max_sessions=asked.sessions,
    )
    settings = {"seed": asked.seed, "gaps": asked.gaps, "sessions": asked.sessions}
    say("NeuroNCAP server", **policy.describe(), **settings)
    horizon, rate = policy.model.config.expert.horizon, policy.spec.fps
    if (horizon, rate) != (6, 2.0):
        print(f"NeuroNCAP expects 6 waypoints at 2 Hz; this model plans {horizon} at {rate:g} Hz.")
    _serve(server.handle, asked.host, asked.port)


def _serve(handle: Handle, host: str, port: int) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    server = make_server(handle, host=host, port=port)
    if host not in LOOPBACK:
        print(f"Anyone who reaches {host} can use this server; it asks for no password.")
    with server:
        print(f"Serving at http://{host}:{server.server_address[1]} (stop with ctrl-C)", flush=True)
        server.serve_forever()
