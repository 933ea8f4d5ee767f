"""`foreact eval open-loop`, `eval video` and `eval probe` on tiny
models and miniature data, end to end.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import nn

from foreact.checkpoints.format import save_checkpoint
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError
from foreact.families.driving.data.drives import driving_spec
from foreact.families.driving.evaluate_open_loop import OpenLoop, open_loop
from foreact.families.driving.evaluate_video import DrivingVideo, driving_video
from foreact.families.driving.probe import Probe, probe
from foreact.families.driving.pseudo_depth import pseudo_depth
from foreact.families.driving.vavam import ExpertConfig, VaVAM, VaVAMConfig
from foreact.families.driving.vavim import VaViM, VaViMConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer

SIZE, GRID, CODES = (16, 24), (4, 6), 32
VIDEO = VaViMConfig(
    width=16, heads=2, layers=2, vocab=CODES + 1, frames=4, grid=GRID, base_width=16
)
EXPERT = ExpertConfig(width=16, horizon=3, base_width=8, base_attention=16)


class PixelFeatures(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, ::211]


class Brightness(nn.Module):
    """Depth for tests: what is bright is far."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(1)


def tokenizer(levels: int, size: tuple[int, int]) -> VQTokenizer:
    torch.manual_seed(0)
    config = VQConfig(
        channels=8,
        multipliers=(1,) * levels,
        blocks=1,
        features=8,
        codes=CODES,
        norm_groups=4,
        image_size=size,
    )
    return VQTokenizer(config).eval()


def save(path: Path, model: nn.Module, family: str, **beside: Any) -> Path:
    save_checkpoint(path, family=family, config=model.config, state=model.state_dict(), **beside)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three drives at 4 Hz with tokens and poses,
    and checkpoints of all three models.
    """
    root = tmp_path_factory.mktemp("world")
    draw = np.random.default_rng(0)
    lengths = [24, 20, 22]
    with StoreWriter(root / "drives.zarr", driving_spec(4.0, SIZE)) as writer:
        for i, n in enumerate(lengths):
            writer.append(
                {"front": draw.integers(0, 256, (n, *SIZE, 3), dtype=np.uint8)}, name=f"drive-{i}"
            )
    poses = np.zeros((sum(lengths), 7))
    poses[:, 3] = 1.0
    poses[:, 0] = np.arange(sum(lengths))  # straight on, 1 m per frame
    group = zarr.open_group(str(root / "drives.zarr"))["data"]
    assert isinstance(group, zarr.Group)
    group.create_array("ego_pose", data=poses)
    group.create_array(
        "tokens_front", data=draw.integers(0, CODES, (sum(lengths), *GRID)).astype(np.uint16)
    )
    save(root / "vq", tokenizer(3, SIZE), "vq")
    torch.manual_seed(0)
    save(root / "vavim", VaViM(VIDEO), "vavim", tokenizer=root / "vq")
    save(
        root / "vavam",
        VaVAM(VaVAMConfig(vavim=VIDEO, expert=EXPERT)),
        "vavam",
        tokenizer=root / "vq",
    )
    return root


def metrics(out: Path) -> dict:
    assert (out / "report.html").stat().st_size > 1000
    return json.loads((out / "metrics.json").read_text())


def test_open_loop_measures_tokens_and_plans(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = tmp_path / "camera.json"
    calibration.write_text(
        json.dumps(
            {
                "intrinsic": [[20, 0, 12], [0, 20, 8], [0, 0, 1]],
                "sensor_to_ego_rot": [0.5, -0.5, 0.5, -0.5],
                "sensor_to_ego_tran": [1, 0, 1.5],
                "size": SIZE,
            }
        )
    )
    open_loop(
        OpenLoop(
            weights=str(world / "vavam"),
            data=str(world / "drives.zarr"),
            samples=3,
            steps=2,
            examples=2,
            store_trajectories=True,
            calibration=calibration,
            out=tmp_path / "out",
            device="cpu",
        )
    )
    found = metrics(tmp_path / "out")
    # 4 frames, 2 apart, span 6 rows: 18 + 14 + 16 windows; plans need 6 rows more.
    assert found["next_token"]["windows"] == 18 + 14 + 16
    assert found["next_token"]["tokens"] == 48 * (4 * 24 - 1)
    assert found["next_token"]["perplexity"] == pytest.approx(
        math.exp(found["next_token"]["loss"]["mean"])
    )
    assert found["plans"]["windows"] == {"straight": 12 + 8 + 10}
    assert found["plans"]["min_ade"]["n"] == 3
    plans = json.loads((tmp_path / "out/plans.json").read_text())
    assert np.shape(plans[0]["predicted"]) == (3, 3, 2)
    assert plans[0]["truth"] == [[2.0, 0.0], [4.0, 0.0], [6.0, 0.0]]
    errors = [
        np.linalg.norm(np.subtract(p["predicted"], p["truth"]), axis=-1).mean(-1).min()
        for p in plans
    ]
    assert found["plans"]["min_ade"]["mean"] == pytest.approx(np.mean(errors), abs=1e-3)
    assert len(list((tmp_path / "out").glob("plan-*.png"))) == 2
    assert "minADE_3" in capsys.readouterr().out


def test_open_loop_of_a_video_model_has_no_plans(world: Path, tmp_path: Path) -> None:
    open_loop(
        OpenLoop(
            weights=str(world / "vavim"),
            data=str(world / "drives.zarr"),
            max_windows=5,
            precision="bf16",
            out=tmp_path / "out",
            device="cpu",
        )
    )
    found = metrics(tmp_path / "out")
    assert found["next_token"]["windows"] == 5
    assert "plans" not in found


def test_imagined_drives_with_fid_and_fvd(world: Path, tmp_path: Path) -> None:
    network = tmp_path / "pixels.jit"
    torch.jit.script(PixelFeatures()).save(str(network))
    model = DrivingVideo(
        data=world / "drives.zarr",
        weights=str(world / "vavim"),
        context=2,
        future=2,
        features=str(network),
        clip_features=str(network),
        clip_preprocessing="none",
        max_windows=6,
        examples=1,
        out=tmp_path / "model",
        device="cpu",
    )
    driving_video(model)
    found = metrics(tmp_path / "model")
    assert found["clips"] == 6
    assert found["quality"]["steps_ahead"] == [2, 4]
    assert found["networks"]["fid"]["hash"].startswith("sha256:")
    assert all(len(found["fid"][name]) == 2 for name in ("tokenizer", "imagined"))
    assert set(found["fvd"]) == {"tokenizer", "imagined"}
    assert len(list((tmp_path / "model").glob("*.mp4"))) == 1

    driving_video(replace(model, weights=None, tokenizer=str(world / "vq"), out=tmp_path / "bound"))
    bound = metrics(tmp_path / "bound")
    assert bound["fid"] == {"tokenizer": pytest.approx(found["fid"]["tokenizer"])}

    driving_video(replace(model, reference=True, out=tmp_path / "reference"))
    reference = metrics(tmp_path / "reference")
    assert (reference["real"], reference["accumulation"]) == ("context", "reference")
    assert reference["fid"]["tokenizer"] != found["fid"]["tokenizer"]
    assert reference["quality"]["estimates"] == found["quality"]["estimates"]


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training and two validation pictures in the layout of
    Cityscapes, bright where there are cars.
    """
    root = tmp_path_factory.mktemp("streets")
    for split in ("train", "val"):
        for i in range(2):
            stem = f"ulm_00000{i}_000019"
            labels = np.full((1024, 2048), 7, np.uint8)
            labels[:, 800 + 200 * i :] = 26
            image = np.repeat(((labels == 26) * 200)[..., None], 3, axis=2).astype(np.uint8)
            for folder, pixels, name in (
                ("leftImg8bit", image, f"{stem}_leftImg8bit.png"),
                ("gtFine", labels, f"{stem}_gtFine_labelIds.png"),
            ):
                path = root / folder / split / "ulm" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, compress_level=1)
    return root


@pytest.mark.parametrize("search", ["exact", "faiss"])
def test_probe(streets: Path, tmp_path: Path, search) -> None:
    config = VaViMConfig(
        width=16, heads=2, layers=1, vocab=CODES, frames=1, grid=(18, 32), base_width=16
    )
    torch.manual_seed(0)
    save(tmp_path / "vq", tokenizer(5, (288, 512)), "vq")
    save(tmp_path / "vavim", VaViM(config), "vavim", tokenizer=tmp_path / "vq")
    probe(
        Probe(
            weights=str(tmp_path / "vavim"),
            data=streets,
            layer=0,
            per_image=40,
            neighbours=5,
            search=search,
            examples=1,
            out=tmp_path / "out",
            device="cpu",
        )
    )
    found = metrics(tmp_path / "out")
    assert (found["memory"], found["images"]) == (80, 2)
    assert 0.0 <= found["scores"]["mIoU"] <= 1.0
    assert [c for c, iou in enumerate(found["iou"]) if iou is not None] == [0, 13]
    assert (tmp_path / "out/examples.png").is_file()


def test_depth_labels_are_made_once_and_probed(
    streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    network = tmp_path / "brightness.jit"
    torch.jit.script(Brightness()).save(str(network))
    depth = tmp_path / "depth"
    for split in ("train", "val"):
        pseudo_depth(str(network), streets, depth, split=split, device="cpu")
    damaged, kept = sorted((depth / "val").iterdir())
    assert np.asarray(Image.open(kept)).max() == 65535
    before = damaged.read_bytes()
    damaged.write_bytes(b"broken")
    pseudo_depth(str(network), streets, depth, split="val", device="cpu")
    assert "1 of 2 depth files were made" in capsys.readouterr().out
    assert damaged.read_bytes() == before

    config = VaViMConfig(
        width=16, heads=2, layers=1, vocab=CODES, frames=1, grid=(18, 32), base_width=16
    )
    torch.manual_seed(0)
    save(tmp_path / "vq", tokenizer(5, (288, 512)), "vq")
    save(tmp_path / "vavim", VaViM(config), "vavim", tokenizer=tmp_path / "vq")
    probe(
        Probe(
            weights=str(tmp_path / "vavim"),
            data=streets,
            task="depth",
            depth=depth,
            layer=0,
            neighbours=5,
            per_image=0,
            out=tmp_path / "out",
            device="cpu",
        )
    )
    found = metrics(tmp_path / "out")
    assert found["memory"] == 2 * 18 * 32
    assert set(found["scores"]) == {"d1", "d2", "d3", "abs_rel", "sq_rel", "rmse"}
    torch.jit.script(PixelFeatures()).save(str(network))
    with pytest.raises(UserError, match="should return"):
        pseudo_depth(
            str(network),
            streets,
            tmp_path / "other",
            split="val",
            preprocessing="none",
            device="cpu",
        )


def test_what_does_not_fit_is_one_sentence(world: Path, streets: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "out", world / "drives.zarr"
    planned = OpenLoop(weights=str(world / "vavim"), data=str(store), out=out, device="cpu")
    with pytest.raises(UserError, match="holds weights of the family 'vq'"):
        open_loop(replace(planned, weights=str(world / "vq")))
    with pytest.raises(UserError, match="should end with the frame rate"):
        open_loop(replace(planned, data=f"{store}@often"))
    with pytest.raises(UserError, match="at least 1, found 0"):
        open_loop(replace(planned, max_windows=0))
    imagined = DrivingVideo(data=store, out=out, device="cpu")
    with pytest.raises(UserError, match="Name a model with --weights, or a tokenizer"):
        driving_video(imagined)
    with pytest.raises(UserError, match="which is neither"):
        driving_video(replace(imagined, tokenizer=str(world / "vq"), features="inception.jit"))
    probed = Probe(weights=str(world / "vavim"), data=streets, out=out, device="cpu")
    with pytest.raises(UserError, match="do not fit a model of 4 x 6 tokens"):
        probe(probed)
    config = VaViMConfig(
        width=16, heads=2, layers=1, vocab=CODES, frames=1, grid=(18, 32), base_width=16
    )
    save(tmp_path / "vavim", VaViM(config), "vavim", tokenizer=world / "vq")
    with pytest.raises(UserError, match="name it with --depth"):
        probe(replace(probed, weights=str(tmp_path / "vavim"), task="depth"))
    assert not out.exists()
