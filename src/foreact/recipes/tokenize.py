"""`foreact tokenize`: encode a store's frames once, so that training reads latents instead of pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from foreact.data.store import open_store
from foreact.recipes.runs import pick_device, say
from foreact.recipes.stores import ensure_latents
from foreact.recipes.tasks import find_task
from foreact.tokenizers.kl_vae import KLVAE
from foreact.types import StreamSpec, UserError
from foreact.weights.format import build, load_checkpoint
from foreact.weights.shipped import resolve


def tokenize(
    store: Path,
    tokenizer: str = "kl-vae-pusht",
    task: str | None = None,
    camera: str | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> None:
    """Write the stream `latents_<camera>` (float16, posterior means) with the tokenizer's hash beside it.

    Work that was cut short goes on after the last whole episode; latents of another tokenizer are replaced.

    Args:
        store: the store to extend.
        tokenizer: a checkpoint folder or a shipped name.
        task: what the streams mean; needed unless the store says so itself.
        camera: which camera; default: every one.
        batch_size: frames per call.
        device: where to compute; default CUDA if there is one.
    """
    spec: StreamSpec | None = None if task is None else find_task(task).spec
    reference = load_checkpoint(resolve(tokenizer))
    vae = build(reference)
    if not isinstance(vae, KLVAE):
        raise UserError(f"{reference.path} holds a '{reference.family}'; tokenize needs a 'kl_vae'.")
    opened = open_store(store, spec)
    cameras = [camera] if camera is not None else sorted(opened.spec.cameras)
    if unknown := [c for c in cameras if c not in opened.spec.cameras]:
        raise UserError(f"{store} has cameras {sorted(opened.spec.cameras)}, not '{unknown[0]}'.")
    where: torch.device = pick_device(device)
    say("Encoding", store=store, tokenizer=f"{reference.path} {reference.hash[:19]}", cameras=cameras, device=where)
    for name in cameras:
        ensure_latents(opened, name, vae, reference.hash, batch_size=batch_size, device=str(where))
    print(f"Latents lie in {store}: {', '.join(f'latents_{c}' for c in cameras)}")
