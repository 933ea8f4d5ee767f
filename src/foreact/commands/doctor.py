"""`foreact doctor`: versions, measured speed, what each extra unlocks, and what would break."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import torch

import foreact
from foreact import machine
from foreact.commands.demos import pace
from foreact.envs.rendering import choose_library
from foreact.errors import UserError
from foreact.nn import products
from foreact.runs.run import pick_device

EXTRAS = {
    "pusht": ("gym_pusht", "the PushT simulator: data collect, eval closed-loop, demo"),
    "tensorboard": ("tensorboard", "TensorBoard logs of training"),
    "wandb": ("wandb", "Weights & Biases logs, with --train.wandb"),
    "jpegxl": ("imagecodecs", "stores with JPEG-XL frames"),
    "umi": ("lz4", "UMI's data: JPEG-XL frames, packed stores (data pack, data unpack)"),
    "lerobot": ("pyarrow", "LeRobot sets: read as they are, data export-lerobot"),
    "ray": ("ray", "tokenize --engine ray"),
    "slurm": ("submitit", "submit"),
    "faiss": ("faiss", "eval probe --search faiss"),
    "hdf5": ("h5py", "HDF5 data of robomimic, LIBERO and V-D4RL"),
    "text": ("tokenizers", "text encoders: data text --encoder, models that follow instructions"),
    "robosuite": ("robosuite", "Lift, Can, Square, ToolHang; in an environment of its own"),
    "dmc": ("dm_control", "DeepMind Control: data collect --env dmc/cheetah_run, closed loops"),
}


def doctor() -> None:
    """Print versions, devices, how fast they compute, and which extras are installed.

    Takes some seconds, since speeds are measured. What else computes meanwhile makes them lower.
    """
    print(f"foreact     {foreact.__version__}")
    print(f"python      {platform.python_version()} on {platform.platform()}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    print(
        f"torch       {torch.__version__} ({device}; {machine.cores()} cores, "
        f"{torch.get_num_threads()} threads)"
    )
    for package in ("numpy", "zarr", "numcodecs", "av", "tyro", "safetensors"):
        print(f"{package:<12}{importlib.metadata.version(package)}")
    print()
    for extra, (module, unlocks) in EXTRAS.items():
        installed = importlib.util.find_spec(module) is not None
        status = "installed" if installed else f'missing: pip install "foreact[{extra}]"'
        print(f"{extra:<12}{status:<44}{unlocks}")
    if importlib.util.find_spec("dm_control") is not None:
        print(f"\nMuJoCo      {_drawing()}")
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            print(
                f"\ntorchvision is installed but cannot be imported ({error}); Foreact does not "
                "need it: uninstall it."
            )
    print("\nMeasured now, beside whatever else this machine computes:", flush=True)
    for name, value in speeds(pick_device(None)).items():
        print(f"{name:<14}{value}")


def speeds(device: torch.device) -> dict[str, str]:
    """What was measured of a device, and what it means, by title."""
    chosen = machine.choose_precision("auto", device)
    # Emulated bfloat16 would take seconds to say what is known already.
    rates = {p: machine.gflops(device, p) for p in ("fp32", "bf16") if p in {"fp32", chosen}}
    measured = {
        "precision": machine.explain_precision(chosen, device),
        "speed": ", ".join(f"{rate:,.0f} GFLOP/s in {p}" for p, rate in rates.items())
        + f"; {machine.gigabytes_per_second(device):,.0f} GB/s from memory",
    }
    if device.type == "cpu":
        faster = {
            "numpy's for one row": products.numpy_is_faster(),
            "the transposed one for a few rows": products.transposed_is_faster(),
            "oneDNN's for many": products.onednn_is_faster(),
        }
        chosen_kernels = [name for name, yes in faster.items() if yes]
        measured["products"] = "torch's own"
        if chosen_kernels:
            measured["products"] = ", ".join([*chosen_kernels, "torch's own otherwise"])
    windows = pace.windows_per_second(device, chosen)
    measured["training"] = f"{windows:,.0f} windows/s of the demo's model"
    return measured | pace.expected_minutes(device, windows)


def _drawing() -> str:
    try:
        return f"draws with MUJOCO_GL={choose_library() or ' unset'}"
    except UserError as error:
        return str(error)
