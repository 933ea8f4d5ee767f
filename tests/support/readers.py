"""Small valid files of every kind that the command line reads, and the calls that read them."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr
from safetensors.torch import load_file

from foreact.checkpoints.format import save_checkpoint
from foreact.checkpoints.manifest import MANIFEST
from foreact.cli import main
from foreact.data.stores.store import StoreWriter
from foreact.families.driving.data.nuscenes import nuscenes_records
from foreact.families.driving.data.trajectories import write_trajectories
from foreact.released.pickles import read_torch_file
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.types import ActionSpec, StreamSpec
from support.d4rl_worlds import write_npz_episode, write_shards
from support.driving_worlds import drive, write_nuplan, write_nuscenes, write_opendv
from support.manipulation_files import write_libero, write_robomimic
from support.taming_files import network, released
from support.tiny_vavam import ACTION, VIDEO, tiny_vavam, tiny_vavim

GOLDENS = Path(__file__).parents[1] / "parity/goldens"
FRAME = "--height 9 --width 16"
SPEC = StreamSpec(
    cameras={"img": (8, 8)},
    fps=10.0,
    action=ActionSpec(
        names=("x", "y"), units=("m", "m"), frame="world", mode="absolute", rate_hz=10.0
    ),
    state={"state": ("x", "y", "z")},
    has_reward=True,
)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One way in.

    Attributes:
        name: for people.
        group: readers that are tested together.
        make: writes a valid example into an empty folder; what is below `data` gets damaged.
        calls: command lines, run in that folder, of which each case takes one.
        may_leave: folder that work which had begun may leave behind, such as that of a training
            which reads frame by frame; "" for none.
    """

    name: str
    group: str
    make: Callable[[Path], object]
    calls: tuple[str, ...]
    may_leave: str = ""


# --- stores ---------------------------------------------------------------------------------------


def umi_zip(root: Path) -> None:
    from support.umi_files import write_umi, zipped

    (root / "data").mkdir()
    zipped(write_umi(root / "data/s.zarr", (3, 2), size=224))
    shutil.rmtree(root / "data/s.zarr")


def write_store(path: Path) -> None:
    rng = np.random.default_rng(0)
    with StoreWriter(path, SPEC, attrs={"made": "by a test"}) as writer:
        for steps in (5, 9):
            writer.append(
                {
                    "img": rng.integers(0, 255, (steps, 8, 8, 3)).astype(np.uint8),
                    "state": rng.normal(size=(steps, 3)).astype(np.float32),
                    "action": rng.normal(size=(steps, 2)).astype(np.float32),
                    "reward": rng.normal(size=(steps, 1)).astype(np.float32),
                },
                text="push it",
                seed=steps,
            )


def _copied(path: Path, source: Path, version: int) -> None:
    """The same store in another version of zarr."""
    group = zarr.open_group(str(path), mode="w", zarr_format=3 if version == 3 else 2)
    original = zarr.open_group(str(source), mode="r", use_consolidated=False)
    group.attrs.update(original.attrs.asdict())
    for part in ("data", "meta"):
        node = original[part]
        assert isinstance(node, zarr.Group)
        for name, array in node.arrays():
            values = array[:]
            if np.asarray(values).dtype.kind in "iufb":
                group.create_array(f"{part}/{name}", data=np.asarray(values), chunks="auto")


def zarr_v2(root: Path) -> None:
    write_store(root / "data/s.zarr")


def zarr_v3(root: Path) -> None:
    write_store(root / "source.zarr")
    _copied(root / "data/s.zarr", root / "source.zarr", 3)
    shutil.rmtree(root / "source.zarr")


def zarr_zip(root: Path) -> None:
    write_store(root / "source.zarr")
    (root / "data").mkdir()
    shutil.make_archive(str(root / "data/s.zarr"), "zip", root / "source.zarr")
    shutil.rmtree(root / "source.zarr")


def npz(root: Path) -> None:
    for number in range(3):
        write_npz_episode(root / f"data/cheetah_run/expert/{number}.npz", 6, seed=number)


def shards(root: Path) -> None:
    write_shards(root / "data/cheetah_run", ((5, 7), (6,)))


def robomimic(root: Path) -> None:
    masks = {"train": ["demo_0", "demo_2"]}
    write_robomimic(root / "data/image.hdf5", mode="delta", masks=masks, compression="gzip")


def libero(root: Path) -> None:
    write_libero(root / "data/libero_10")


# --- driving --------------------------------------------------------------------------------------


def nuscenes(root: Path) -> None:
    write_nuscenes(root / "data", {"scene-1": drive(4), "scene-2": drive(3, seed=1)})
    (root / "data/scenes.json").write_text(json.dumps(["scene-1", "scene-2"]))


def nuplan(root: Path) -> None:
    write_nuplan(root / "data", root / "data/images", {"a": drive(5), "b": drive(4, seed=1)})
    (root / "data/logs.txt").write_text("a\nb\n")


def opendv(root: Path) -> None:
    videos = [("one", "train", 0.0, 0.0), ("-two", "train", 0.5, 0.5)]
    write_opendv(root / "data", videos, seconds=1.5, fps=10)


def tokens(root: Path) -> None:
    for video in ("one", "two"):
        (root / f"data/tokens/{video}").mkdir(parents=True)
        for i in range(8):
            np.save(root / f"data/tokens/{video}/t_{i:06d}.npy", np.full((2, 3), i, np.uint16))
    (root / "data/tokens/videos.json").write_text(json.dumps(["one", "two"]))


def trajectories(root: Path) -> None:
    world = root / "world"
    write_nuscenes(world, {"scene-1": drive(9), "scene-2": drive(9, seed=1)})
    records = nuscenes_records(world)
    (root / "data").mkdir()
    write_trajectories(root / "data/t.jsonl", records)
    (root / "data/t.pkl").write_bytes(pickle.dumps([dict(record) for record in records], 4))
    for record in records:
        file = (root / "data/tokens" / record["CAM_FRONT"]["file_path"]).with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.zeros((2, 3), np.uint16))
    shutil.rmtree(world)


# --- checkpoints ----------------------------------------------------------------------------------


def vavam_folder(path: Path) -> None:
    model = tiny_vavam()
    save_checkpoint(path, family="vavam", config=ACTION, state=model.state_dict())


def vavam_file(root: Path) -> None:
    vavam_folder(root / "folder")
    (root / "data").mkdir()
    main(f"weights convert {root}/folder --to reference --out {root}/data/w.pt".split())
    shutil.rmtree(root / "folder")


def uva_file(root: Path) -> None:
    (root / "data").mkdir()
    shutil.copy(GOLDENS / "uva/checkpoint_pusht/reference_format.ckpt", root / "data/w.ckpt")


def kl_vae_file(root: Path) -> None:
    (root / "data").mkdir()
    state = load_file(GOLDENS / "uva/vae_encode_decode/weights.safetensors")
    torch.save({"model": state, "epoch": 3}, root / "data/w.ckpt")


def taming_file(root: Path) -> None:
    (root / "data").mkdir()
    torch.save(released(network()), root / "data/w.pth")


def legacy_file(root: Path) -> None:
    (root / "data").mkdir()
    torch.save(released(network()), root / "data/w.pth", _use_new_zipfile_serialization=False)


def llamagen_file(root: Path) -> None:
    config = VQConfig(channels=32, multipliers=(1, 1), blocks=1, features=8, codes=12, code_dim=4)
    save_checkpoint(root / "vq", family="vq", config=config, state=VQTokenizer(config).state_dict())
    (root / "data").mkdir()
    main(f"weights convert {root}/vq --to reference --out {root}/data/w.pt".split())
    shutil.rmtree(root / "vq")


def gpt2_file(root: Path) -> None:
    from support.occupancy_worlds import TOKENIZER, write_tokenizer

    (root / "data").mkdir()
    torch.save(load_file(GOLDENS / "voc/gpt2_lm/weights.safetensors"), root / "data/w.pth")
    config = dataclasses.replace(TOKENIZER, codes=32, image_size=(16, 16))
    write_tokenizer(root / "data/tokenizer", config)


def deepspeed(root: Path) -> None:
    from support.zero_files import write

    save_checkpoint(root / "folder", family="vavim", config=VIDEO, state=tiny_vavim().state_dict())
    main(f"weights convert {root}/folder --to reference --out {root}/w.pt".split())
    content = read_torch_file(root / "w.pt")
    state = content.pop("state_dict")
    head, embedding = "network.lm_head.weight", "network.transformer.wie.weight"
    state = {name: tensor for name, tensor in state.items() if name != head}
    write(root / "data/zero", [state], world=2, client=content, shared={head: embedding})
    (root / "w.pt").unlink()
    shutil.rmtree(root / "folder")


def folder(root: Path) -> None:
    from support.occupancy_worlds import write_tokenizer, write_voc

    write_tokenizer(root / "tokenizer")
    write_voc(root / "data/w", root / "tokenizer")
    shutil.rmtree(root / "tokenizer")


# --- archives and lists ---------------------------------------------------------------------------


def archive(root: Path) -> None:
    (root / "in").mkdir()
    for name in ("a", "b"):
        (root / f"in/{name}.pt").write_bytes(bytes(range(256)) * 8)
    (root / "data").mkdir()
    with tarfile.open(root / "data/w.tar.gz", "w:gz") as packed:
        packed.add(root / "in", "in")
    shutil.rmtree(root / "in")


def packed_store(root: Path) -> None:
    from support.umi_files import write_umi

    (root / "data").mkdir()
    write_umi(root / "s.zarr", (3, 2))
    main(f"data pack {root}/s.zarr --out {root}/data/s.zarr.tar.lz4".split())
    shutil.rmtree(root / "s.zarr")


def parts(root: Path) -> None:
    (root / "in").mkdir()
    (root / "in/a.pt").write_bytes(np.random.default_rng(0).bytes(4000))
    main(f"weights pack {root}/in --out {root}/data/w --max-size 1500".split())
    assert (root / "data" / MANIFEST).is_file()
    shutil.rmtree(root / "in")


TINY = (
    "--model.width 16 --model.heads 2 --model.layers 1 --model.vocab 50 --model.frames 2 "
    "--model.base-width 8 --model.grid 2 3 --train.steps 1 --train.warmup 0 --train.drop 0 "
    "--train.precision fp32 --train.no-tensorboard --device cpu --out run --data.val-ratio 0.5"
)
VAVIM = f"train vavim {TINY} --data.sources"
IMPORT_NUPLAN = "data import-nuplan --databases data --images data/images --out out.zarr"
CHECK = "data check --store data/s.zarr"
CONVERT = "weights convert data/w"

READERS = (
    Reader(
        name="zarr v2",
        group="stores",
        make=zarr_v2,
        calls=(CHECK, "data import --src data/s.zarr --out out.zarr"),
    ),
    Reader(
        name="zarr v3",
        group="stores",
        make=zarr_v3,
        calls=(CHECK, "data import --src data/s.zarr --out out.zarr"),
    ),
    Reader(
        name="zarr zip",
        group="stores",
        make=zarr_zip,
        calls=(f"{CHECK}.zip", "data import --src data/s.zarr.zip --out out.zarr"),
    ),
    Reader(
        name="UMI zip",
        group="stores",
        make=umi_zip,
        calls=(f"{CHECK}.zip --task umi --windows 4",),
    ),
    Reader(
        name="V-D4RL .npz",
        group="stores",
        make=npz,
        calls=("data import-d4rl --root data/cheetah_run/expert --out out.zarr",),
    ),
    Reader(
        name="V-D4RL .hdf5",
        group="stores",
        make=shards,
        calls=(
            "data check --store data/cheetah_run",
            "data import-d4rl --root data/cheetah_run --out out.zarr",
        ),
    ),
    Reader(
        name="robomimic .hdf5",
        group="stores",
        make=robomimic,
        calls=(
            "data check --store data/image.hdf5",
            "data import --src data/image.hdf5 --out out.zarr --mask train",
        ),
    ),
    Reader(
        name="LIBERO .hdf5",
        group="stores",
        make=libero,
        calls=(
            "data check --store data/libero_10",
            "data import --src data/libero_10 --out out.zarr",
        ),
    ),
    Reader(
        name="nuScenes",
        group="driving",
        make=nuscenes,
        calls=(
            f"data import-nuscenes --root data --out out.zarr {FRAME}",
            f"data import-nuscenes --root data --out out.zarr {FRAME} --scenes data/scenes.json",
        ),
    ),
    Reader(
        name="nuPlan",
        group="driving",
        make=nuplan,
        calls=(f"{IMPORT_NUPLAN} {FRAME}", f"{IMPORT_NUPLAN} {FRAME} --logs data/logs.txt"),
    ),
    Reader(
        name="OpenDV",
        group="driving",
        make=opendv,
        calls=(f"data import-opendv --root data --out out.zarr {FRAME}",),
    ),
    Reader(
        name="token folders",
        group="driving",
        make=tokens,
        calls=(f"{VAVIM} data/tokens@2",),
        may_leave="run",
    ),
    Reader(
        name="trajectories",
        group="driving",
        make=trajectories,
        calls=(f"{VAVIM} data/t.jsonl:data/tokens@2", f"{VAVIM} data/t.pkl:data/tokens@2"),
        may_leave="run",
    ),
    Reader(
        name="VaVAM file",
        group="weights",
        make=vavam_file,
        calls=(f"{CONVERT}.pt --out out --grid 2 3",),
    ),
    Reader(
        name="UVA file",
        group="weights",
        make=uva_file,
        calls=(
            f"{CONVERT}.ckpt --out out --heads 2 2",
            f"{CONVERT}.ckpt --out out --heads 2 2 --raw",
        ),
    ),
    Reader(
        name="KL-VAE file", group="weights", make=kl_vae_file, calls=(f"{CONVERT}.ckpt --out out",)
    ),
    Reader(
        name="taming file",
        group="weights",
        make=taming_file,
        calls=(f"{CONVERT}.pth --out out --grid 4 6",),
    ),
    Reader(
        name="taming file, legacy",
        group="weights",
        make=legacy_file,
        calls=(f"{CONVERT}.pth --out out --grid 4 6",),
    ),
    Reader(
        name="LlamaGen file",
        group="weights",
        make=llamagen_file,
        calls=(f"{CONVERT}.pt --out out --grid 4 4",),
    ),
    Reader(
        name="VOC file",
        group="weights",
        make=gpt2_file,
        calls=(f"{CONVERT}.pth --out out --tokenizer data/tokenizer --heads 4",),
    ),
    Reader(
        name="DeepSpeed",
        group="weights",
        make=deepspeed,
        calls=("weights convert data/zero --out out --grid 2 3",),
    ),
    Reader(name="our folder", group="weights", make=folder, calls=("weights verify data/w",)),
    Reader(
        name="archive",
        group="archives",
        make=archive,
        calls=("weights unpack data/w.tar.gz --out out",),
    ),
    Reader(
        name="packed store",
        group="archives",
        make=packed_store,
        calls=("data unpack data/s.zarr.tar.lz4 --to out",),
    ),
    Reader(
        name="archive in parts",
        group="archives",
        make=parts,
        calls=("weights unpack data --out out", "weights verify data"),
    ),
)
