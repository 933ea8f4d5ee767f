"""`foreact doctor`: what this environment is, what each extra unlocks, and what would break."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform

import torch

import foreact
from foreact.envs.rendering import choose_library
from foreact.types import UserError

EXTRAS = {
    "pusht": ("gym_pusht", "the PushT simulator: data collect, eval closed-loop, demo"),
    "tensorboard": ("tensorboard", "TensorBoard logs of training"),
    "wandb": ("wandb", "Weights & Biases logs, with --train.wandb"),
    "jpegxl": ("imagecodecs", "UMI stores with JPEG-XL frames"),
    "ray": ("ray", "tokenize --engine ray"),
    "slurm": ("submitit", "submit"),
    "faiss": ("faiss", "eval probe --search faiss"),
    "hdf5": ("h5py", "V-D4RL's shards: data import-d4rl"),
    "dmc": ("dm_control", "DeepMind Control: data collect --env dmc/cheetah_run, closed loops"),
}


def doctor() -> None:
    """Print versions, devices and which extras are installed; warn about a torchvision that cannot be imported."""
    print(f"foreact     {foreact.__version__}")
    print(f"python      {platform.python_version()} on {platform.platform()}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    print(f"torch       {torch.__version__} ({device}; {os.cpu_count()} cores, {torch.get_num_threads()} threads)")
    for package in ("numpy", "zarr", "numcodecs", "av", "tyro", "safetensors"):
        print(f"{package:<12}{importlib.metadata.version(package)}")
    print()
    for extra, (module, unlocks) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        status = "installed" if there else f'missing: pip install "foreact[{extra}]"'
        print(f"{extra:<12}{status:<44}{unlocks}")
    if importlib.util.find_spec("dm_control") is not None:
        print(f"\nMuJoCo      {_drawing()}")
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            print(
                f"\ntorchvision is installed but cannot be imported ({error}); Foreact does not need it: uninstall it."
            )


def _drawing() -> str:
    try:
        return f"draws with MUJOCO_GL={choose_library() or ' unset'}"
    except UserError as error:
        return str(error)
