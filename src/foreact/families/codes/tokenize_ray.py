"""Tokenizing on Ray Data: actors that hold a tokenizer fill the shards of a stream.

Only the numbers of the shards travel through Ray. Actors read frames from the store and write rows
into it, so the store must lie where every machine of the cluster sees it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foreact.checkpoints.tokenizers import open_tokenizer
from foreact.data.stores.derived import Shard
from foreact.data.stores.store import open_store
from foreact.errors import UserError
from foreact.machine import Precision
from foreact.progress import Progress
from foreact.runs.encoding import SHARD_STEPS, StreamEncoder, Throughput
from foreact.types import StreamSpec

STORE_BYTES = 128 * 2**20
"""Shared memory of a Ray that is started here; little but shard numbers passes through it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an actor needs to know to make its own `StreamEncoder`."""

    store: Path
    spec: StreamSpec | None
    camera: str
    tokenizer: str
    hash: str
    batch_size: int
    precision: Precision
    device: str


class ShardActor:
    """Lives in a process of Ray; called with one shard at a time.

    A `UserError` comes back as a value, since Ray would bury its sentence in a traceback.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        index, start, stop = (int(batch[name][0]) for name in ("index", "start", "stop"))
        try:
            self.encoder.fill(Shard(index, start, stop), progress=lambda frames: None)
        except UserError as error:
            return {"frames": np.array([0]), "error": np.array([str(error)])}
        return {"frames": batch["stop"] - batch["start"], "error": np.array([""])}

    @cached_property
    def encoder(self) -> StreamEncoder:
        job = self.job
        loaded = open_tokenizer(job.tokenizer, job.device)
        if loaded.hash != job.hash:
            raise UserError(
                f"{job.tokenizer} is {loaded.hash} on one machine of the cluster and {job.hash} "
                "on another."
            )
        return StreamEncoder(
            open_store(job.store, job.spec, memory_limit=0),
            job.camera,
            loaded,
            batch_size=job.batch_size,
            device=job.device,
            precision=job.precision,
        )


def encode_with_ray(
    encoder: StreamEncoder,
    tokenizer: str,
    *,
    device: str | None = None,
    spec: StreamSpec | None = None,
    shard_steps: int = SHARD_STEPS,
) -> Throughput:
    """Fill the stream of `encoder` by actors on Ray, one per GPU or CPU core, and finish it.

    A Ray that this process is connected to is used; else the cluster that RAY_ADDRESS names; else
    one is started on this machine, reachable from it alone, and shut down at the end.

    Args:
        encoder: of this process; it encodes nothing itself.
        tokenizer: what the actors open.
        device: "cpu" or "cuda", of the actors; default CUDA if the cluster has any.
        spec: what the streams mean, for a store that does not say.
        shard_steps: rows per shard.

    Raises:
        UserError: Ray is missing or an actor failed; what was done is kept.
    """
    ray, begin = import_ray(), time.monotonic()
    missing = encoder.stream.missing(shard_steps)
    total = sum(map(len, missing))
    local = Path(tokenizer).expanduser()
    if missing:
        with connected(ray), Progress(total=total, unit="frame", desc="encode") as bar:
            job = Job(
                store=encoder.store.path.resolve(),
                spec=spec,
                camera=encoder.camera,
                tokenizer=str(local.resolve()) if local.exists() else tokenizer,
                hash=encoder.hash,
                batch_size=encoder.batch_size,
                precision=encoder.precision,
                device=device or ("cuda" if ray.cluster_resources().get("GPU") else "cpu"),
            )
            for result in shards_through(ray, job, missing):
                if result["error"][0]:
                    raise UserError(f"An actor failed: {result['error'][0]}")
                bar.update(int(result["frames"][0]))
    done = Throughput(total, time.monotonic() - begin)
    encoder.finish(shard_steps)
    return done


def shards_through(ray: Any, job: Job, shards: list[Shard]) -> Any:
    """Iterator of {"frames": (1,), "error": (1,)}, one per shard, as they get done."""
    resource = "GPU" if job.device == "cuda" else "CPU"
    available = int(ray.cluster_resources().get(resource, 0))
    if available == 0:
        raise UserError(f"The Ray cluster has no {resource}; choose another --device.")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False  # ours counts frames
    items = [{"index": s.index, "start": s.start, "stop": s.stop} for s in shards]
    data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ShardActor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(available, len(items))),
        **({"num_gpus": 1} if job.device == "cuda" else {"num_cpus": 1}),
    )
    return data.iter_batches(batch_size=1, prefetch_batches=0)


def import_ray() -> Any:
    """The package, with reports to its makers off."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not os.environ.get("RAY_ADDRESS"):
        # Read on import: without it, Ray listens on all interfaces, whatever address it is given.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError(
            '`--engine ray` needs Ray Data; run `pip install "foreact[ray]"`.'
        ) from None
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return ray


@contextmanager
def connected(ray: Any) -> Iterator[None]:
    """Use the Ray that this process is connected to; else connect, and end it afterwards."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            ray.init(include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
    except ConnectionError as error:
        raise UserError(
            f"There is no Ray cluster at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')} ({error})."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
