"""The model: two layers that see one frame, foresee the next one, and plan four actions."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

import foreact
from foreact.data.windows.window import Window
from foreact.plugs import Family
from foreact.policies.plain import open_plain
from foreact.runs.plain import train_plain
from foreact.runs.stores import open_task_store
from foreact.tasks import find_task
from foreact.types import LossOut, to_model_range, to_uint8


@dataclass(frozen=True)
class Config:
    camera: str = "top"
    size: tuple[int, int] = (16, 16)
    actions: int = 2
    horizon: int = 4
    width: int = 64


class Reach(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, pixels = config, 3 * config.size[0] * config.size[1]
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(pixels, config.width), nn.GELU())
        self.plan = nn.Linear(config.width, config.horizon * config.actions)
        self.imagine = nn.Linear(config.width, pixels)

    def answer(
        self, frames
    ):  # uint8 (B, 3, H, W) -> actions (B, K, A), next frame (B, 3, H, W) in [-1, 1]
        h = self.trunk(to_model_range(frames))
        return self.plan(h).unflatten(1, (self.config.horizon, -1)), self.imagine(h).view(
            frames.shape
        )

    def forward(self, batch, *, rng):
        now, ahead = batch.video[self.config.camera].unbind(1)
        actions, imagined = self.answer(now)
        acting = (actions - batch.actions).square().mean()
        seeing = (imagined - to_model_range(ahead)).square().mean()
        return LossOut(acting + seeing, {"actions": acting.detach(), "frames": seeing.detach()})

    def param_groups(self, lr, weight_decay):
        return [{"params": list(self.parameters()), "lr": lr, "weight_decay": weight_decay}]


def window(config):
    return Window(video={config.camera: (0, 1)}, actions=tuple(range(config.horizon)))


def fit(config, spec):
    return replace(config, size=spec.cameras[config.camera], actions=spec.action.dim)


def train(args):
    return train_plain(FAMILY, args, task="reach.task", window=window, fit=fit)


def open_policy(path, options, *, execute, device):
    def decide(model, frames, states, rng):
        return model.answer(frames)[0][0]

    return open_plain(path, decide, camera="top", execute=execute or 2, device=device)


def generate(weights: str, data: Path, out: Path = Path("runs/imagined")):
    """Write what is seen beside the next frame as it was and as the model imagines it."""
    model, store = foreact.load(weights), open_task_store(find_task("reach.task"), data)
    seen = torch.from_numpy(store.read(0, 0, 2, ["top"])["top"]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        imagined = to_uint8(model.answer(seen[:1])[1])
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat([*seen, *imagined], dim=2).permute(1, 2, 0).numpy()).save(
        out / "next.png"
    )
    print(out / "next.png")


FAMILY = Family(
    name="reach",
    title="a two-layer model that reaches",
    config="reach.model:Config",
    module="reach.model:Reach",
    train="reach.model:train",
    policy="reach.model:open_policy",
    generate="reach.model:generate",
)
