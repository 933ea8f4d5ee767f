"""`foreact tokenize`: encode a store's frames once, to train on latents or tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from foreact.checkpoints.tokenizers import open_tokenizer
from foreact.data.stores.opening import recognised
from foreact.data.stores.store import open_store
from foreact.errors import UserError
from foreact.machine import Precision
from foreact.runs.encoding import SHARD_STEPS, StreamEncoder, encode_stream
from foreact.runs.ranks import Ranks
from foreact.runs.run import is_main_process, pick_device, process_count, say
from foreact.tasks import find_task
from foreact.types import StreamSpec


def tokenize(
    store: Path,
    tokenizer: str = "kl-vae-pusht",
    task: str | None = None,
    camera: str | None = None,
    engine: Literal["local", "ray"] = "local",
    batch_size: int = 64,
    precision: Precision = "fp32",
    device: str | None = None,
    shard_steps: int = SHARD_STEPS,
    patience: float = 600.0,
) -> None:
    """Write `latents_<camera>` (float16) or `tokens_<camera>` (uint16) and the tokenizer's hash.

    Runs in this process; over all processes of torchrun, one device each; or on Ray Data. All of
    them fill the same shards, so that work which was cut short goes on after the last whole shard,
    with whichever engine. Before readers see the stream it is read back, counted and checked; it
    replaces one of another tokenizer or precision.

    Args:
        store: the store to extend.
        tokenizer: a checkpoint folder, a shipped name, or the TorchScript file of an encoder (.jit,
            .pt).
        task: what the streams mean; needed unless the store says so itself.
        camera: which camera; default: every one.
        engine: this process and its fellows of torchrun, or Ray: the cluster of RAY_ADDRESS, else
            this machine.
        batch_size: frames per call.
        precision: never chosen by the machine, since codes are kept; bf16 computes under autocast,
            as the released driving models' data were made.
        device: where to compute; default CUDA if there is one. With Ray "cpu" or "cuda", of the
            actors.
        shard_steps: frames per shard, rounded up to whole chunks of the stream.
        patience: seconds without a sign of life from the other processes of torchrun after which
            they count as lost.
    """
    if shard_steps < 1:
        raise UserError(f"--shard-steps should be at least 1, found {shard_steps}.")
    if (format_ := recognised(store)) is not None:
        raise UserError(
            f"{store} holds recordings in the format '{format_.name}', which are not written to; "
            "`foreact data import` makes a store of them, to which codes are added."
        )
    spec: StreamSpec | None = None if task is None else find_task(task).spec
    # With Ray, the actors compute; here one frame tells the shape of the stream.
    torch_device = torch.device("cpu") if engine == "ray" else own_device(pick_device(device))
    loaded = open_tokenizer(tokenizer, torch_device)
    # Every frame is read once, in order: nothing is worth holding.
    opened = open_store(store, spec, memory_limit=0)
    cameras = [camera] if camera is not None else sorted(opened.spec.cameras)
    if unknown := [c for c in cameras if c not in opened.spec.cameras]:
        raise UserError(f"{store} has cameras {sorted(opened.spec.cameras)}, not '{unknown[0]}'.")
    size = loaded.image_size
    processes = process_count()
    frames = "as stored"
    if size is not None:
        frames = f"{size[0]} x {size[1]} pixels, {loaded.preprocessing}"
    say(
        "Encoding",
        store=store,
        tokenizer=f"{tokenizer} {loaded.hash[:19]}",
        cameras=cameras,
        engine="ray" if engine == "ray" else f"local, {processes} process(es) on {torch_device}",
        frames=frames,
        precision=precision,
    )
    streams = []
    for name in cameras:
        encoder = StreamEncoder(
            opened,
            name,
            loaded,
            batch_size=batch_size,
            device=torch_device,
            precision=precision,
        )
        streams.append(encoder.stream.name)
        if engine == "ray":
            from foreact.families.codes.tokenize_ray import encode_with_ray

            done = encode_with_ray(
                encoder, tokenizer, device=device, spec=spec, shard_steps=shard_steps
            )
        else:
            done = encode_stream(
                encoder, shard_steps=shard_steps, ranks=Ranks.of_torchrun(patience=patience)
            )
        if is_main_process():
            print(f"{encoder.stream.name}: {encoder.stream.rows} rows, checked; {done}")
    if is_main_process():
        print(f"The streams lie in {store}: {', '.join(streams)}")


def own_device(device: torch.device) -> torch.device:
    """Each process of torchrun on a machine has a CUDA device to itself."""
    if device.type == "cuda" and device.index is None and process_count() > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device
