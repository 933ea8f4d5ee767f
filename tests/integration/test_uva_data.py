"""UVA learns from data of other projects as they are: the right inputs, and a few steps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.coded_pictures import codes, encode
from support.coded_pictures import video as coded_video
from support.lerobot_worlds import LENGTHS, TASKS, action_of, make_set, state_of
from support.manipulation_files import LIBERO_FILES, stamps, write_libero, write_robomimic
from support.small_tasks import LIBERO, TOOL_HANG, UMI
from support.tiny_world import MODEL, VAE, settings
from support.told_world import DIM, Speller
from support.umi_files import who, write_umi

from foreact.checkpoints.format import load_checkpoint
from foreact.cli import run as cli
from foreact.data.rotations import convert
from foreact.data.windows.mirror import mirror_coverage
from foreact.families.codes.train_kl_vae import KLVAERun, train_kl_vae
from foreact.families.uva.config import UVAConfig
from foreact.families.uva.data import Data, load_data
from foreact.families.uva.recipes import UVARun
from foreact.families.uva.train import train_uva
from foreact.runs.inputs import Inputs
from foreact.runs.stores import task_of
from foreact.types import Batch
from foreact.worlds import Task

ENCODER = "support.told_world:ENCODER"
SMALL = dataclasses.replace(MODEL, horizon=4, proprioception_steps=2, proprioception_prediction={})
"""Two frames two steps apart before and after now, four actions."""


def autoencoder(out: Path, size: tuple[int, int], **data: Any) -> str:
    model = dataclasses.replace(VAE, image_size=size)
    train = settings(best_k=0)
    return str(
        train_kl_vae(
            KLVAERun(out=out, model=model, train=train, val_ratio=0.3, device="cpu", **data)
        )
    )


def a_run(out: Path, model: UVAConfig, **options: Any) -> UVARun:
    encoder = None if model.text_dim is None else ENCODER
    train = settings(best_k=0)
    base = {"out": out, "model": model, "train": train, "text_encoder": encoder}
    return UVARun(**{**base, "val_ratio": 0.3, "device": "cpu", **options})


def pixels_of(run: UVARun, task: Task) -> Data:
    """What the run learns from, with pictures in place of latents."""
    encoder = None if run.text_encoder is None else Speller()
    return load_data(dataclasses.replace(run, pixels=True), task, Inputs(None, seed=0), encoder)


def every_window(data: Data) -> list[Batch]:
    """Of the validation side, which nothing augments; one a batch."""
    assert len(data.validation) > 0
    return [data.validation.batch(np.array([number])) for number in range(len(data.validation))]


def images(batch: Batch, camera: str) -> np.ndarray:
    """uint8 (T, H, W, 3)."""
    return batch.video[camera][0].permute(0, 2, 3, 1).numpy()


def anchor(batch: Batch) -> tuple[int, int]:
    assert batch.index is not None
    episode, step = batch.index[0].tolist()
    return episode, step


def test_a_lerobot_set_without_a_task(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    tokenizer = autoencoder(tmp_path / "vae", (32, 48), data=root)
    cli(
        [
            *("train", "uva", "--data", str(root), "--tokenizer", tokenizer, "--device", "cpu"),
            *("--out", str(tmp_path / "own"), "--val-ratio", "0.3", "--text-encoder", ENCODER),
            *("--model.grid", "8", "12", "--model.latent-channels", "4", "--model.patch", "2"),
            *("--model.horizon", "4", "--model.text-tokens", "2"),
            *("--train.steps", "2", "--train.batch-size", "2", "--train.workers", "0"),
            *("--train.no-tensorboard", "--train.precision", "fp32"),
        ]
    )
    weights = load_checkpoint(tmp_path / "own" / "weights")
    assert weights.spec is not None
    assert weights.spec.cameras == {"top": (32, 48), "wrist": (32, 48)}
    assert weights.config["camera"] == "top"
    assert weights.config["proprioception"] == {"state": 2}
    assert weights.text is not None
    assert set(weights.text.known.texts) == set(TASKS)
    assert not (root / "data" / "latents_top").exists()


def test_what_is_known_after_a_step_is_shown_to_no_policy(tmp_path: Path) -> None:
    done = ({"dtype": "bool", "shape": [1], "names": None}, pa.array([False] * sum(LENGTHS)))
    task = task_of(None, make_set(tmp_path / "set", columns={"next.done": done}))
    assert set(task.spec.state) == {"state", "next.done"}
    assert set(task.proprioception) == {"state"}


def test_windows_of_a_lerobot_set(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", spare=3)
    model = dataclasses.replace(
        SMALL,
        camera="top",
        wrist_camera="wrist",
        action_dim=3,
        text_dim=DIM,
        text_tokens=2,
        proprioception={"state": 2},
    )
    data = pixels_of(a_run(tmp_path / "out", model, data=root), task_of(None, root))
    starts = np.cumsum([0, *LENGTHS])
    for batch in every_window(data):
        episode, step = anchor(batch)
        seen = np.clip(np.array([step - 2, step, step + 2, step + 4]), 0, LENGTHS[episode] - 1)
        for number, camera in enumerate(("top", "wrist")):
            expected = [(episode, frame, number) for frame in seen]
            assert codes(images(batch, camera)) == expected
        assert batch.actions is not None
        assert batch.text is not None
        row, last = starts[episode] + step, starts[episode + 1] - 1
        rows = np.minimum(row + np.arange(4), last)
        actions = data.normalizer.decode(batch.actions[0].numpy(), "action")
        np.testing.assert_allclose(actions, action_of(sum(LENGTHS))[rows], rtol=1e-5)
        states = data.normalizer.decode(batch.state["state"][0].numpy(), "state")
        np.testing.assert_allclose(states[-1], state_of(sum(LENGTHS))[row], atol=1e-4)
        told = TASKS[(0, 1, 1, 0)[episode]]
        np.testing.assert_array_equal(batch.text[0].numpy(), Speller().encode([told])[0])


def test_tool_hang_with_both_cameras_and_its_own_state(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "image_abs.hdf5", (9, 11, 10, 8))
    model = dataclasses.replace(
        SMALL,
        camera=TOOL_HANG.camera,
        wrist_camera=TOOL_HANG.wrist_camera,
        action_dim=10,
        proprioception=TOOL_HANG.proprioception,
    )
    task = "support.small_tasks:TOOL_HANG"
    data = pixels_of(a_run(tmp_path / "out", model, task=task, data=path), TOOL_HANG)
    for batch in every_window(data):
        episode, step = anchor(batch)
        assert stamps(images(batch, "sideview_image"))[1] == (episode, step, 0)
        assert stamps(images(batch, "robot0_eye_in_hand_image"))[1] == (episode, step, 1)
        grip = data.normalizer.decode(
            batch.state["robot0_gripper_qpos"][0].numpy(), "robot0_gripper_qpos"
        )
        np.testing.assert_allclose(grip[-1], [0.001 * step, -0.001 * step], atol=1e-6)
        assert batch.actions is not None
        rotations = batch.actions[0, :, 3:9].reshape(-1, 2, 3).numpy()  # scaled by nothing
        np.testing.assert_allclose(np.linalg.norm(rotations, axis=-1), 1.0, atol=1e-5)
    tokenizer = autoencoder(tmp_path / "vae", (16, 16), task=task, data=path)
    run = a_run(tmp_path / "uva", model, task=task, data=path, tokenizer=tokenizer)
    weights = load_checkpoint(train_uva(run))
    assert weights.config["wrist_camera"] == "robot0_eye_in_hand_image"
    assert weights.spec == TOOL_HANG.spec


def test_libero_with_its_instructions(tmp_path: Path) -> None:
    """Step t is what was seen after action t - 1, and the action that came next."""
    folder = write_libero(tmp_path / "libero_10", (9, 11), mode="absolute")
    model = dataclasses.replace(
        SMALL,
        camera=LIBERO.camera,
        wrist_camera=LIBERO.wrist_camera,
        action_dim=10,
        text_dim=DIM,
        text_tokens=2,
        proprioception=LIBERO.proprioception,
    )
    task = "support.small_tasks:LIBERO"
    data = pixels_of(a_run(tmp_path / "out", model, task=task, data=folder), LIBERO)
    sentences = ["turn on the stove"] * 2 + ["put the mug on the plate"] * 2
    for batch in every_window(data):
        episode, step = anchor(batch)
        assert stamps(images(batch, "agentview_rgb"))[1] == (episode, step + 1, 0)
        assert stamps(images(batch, "eye_in_hand_rgb"))[1] == (episode, step + 1, 1)
        assert batch.actions is not None
        assert batch.text is not None
        # The gripper's commands alternate, beginning with -1 at the action that was left out.
        assert batch.actions[0, 0, 9] == (1.0 if step % 2 == 0 else -1.0)
        spelt = Speller().encode([sentences[episode]])[0]
        np.testing.assert_array_equal(batch.text[0].numpy(), spelt)
    tokenizer = autoencoder(tmp_path / "vae", (16, 16), task=task, data=folder)
    run = a_run(tmp_path / "uva", model, task=task, data=folder, tokenizer=tokenizer)
    table = load_checkpoint(train_uva(run)).text
    assert table is not None
    assert set(table.known.texts) == set(sentences)
    assert sorted(path.name for path in folder.iterdir()) == sorted(LIBERO_FILES)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("umi")
    write_umi(root / "cup.zarr", (21, 18, 24, 19))
    write_umi(root / "towel.zarr", (20, 22, 17))
    cup = {"path": "cup.zarr", "weight": 3, "instruction": "go left", "mirror_mask": True}
    towel = {"path": "towel.zarr", "weight": 1, "instruction": "go right"}
    (root / "mixture.json").write_text(json.dumps({"members": [cup, towel]}))
    return root / "mixture.json"


HANDS_MODEL = dataclasses.replace(
    SMALL,
    camera="camera0_rgb",
    action_dim=10,
    first_now=False,
    text_dim=DIM,
    text_tokens=2,
    proprioception={"robot0_eef_pos": 3, "robot0_eef_rot_axis_angle": 6},
    proprioception_prediction={"robot0_eef_rot_axis_angle_wrt_start": 6},
    grid=(8, 8),
)
UMI_NAME = "support.small_tasks:UMI"


def test_windows_of_a_mixture_of_hands(mixture: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "out", HANDS_MODEL, task=UMI_NAME, data=mixture)
    data = pixels_of(run, UMI)
    spelt = dict(
        zip(("go left", "go right"), Speller().encode(["go left", "go right"]), strict=True)
    )
    told = set()
    for batch in every_window(data):
        assert batch.text is not None
        assert batch.actions is not None
        sentence = next(s for s, row in spelt.items() if (row == batch.text[0].numpy()).all())
        told.add(sentence)
        store = data.stores[0 if sentence == "go left" else 1][0]
        episode, step = anchor(batch)
        last = int(store.lengths[episode]) - 1
        recorded = store.read(
            episode, 0, last + 1, ["camera0_rgb", "robot0_eef_pos", "robot0_eef_rot_axis_angle"]
        )
        # Three recorded steps are one of the policy's; its actions begin after now.
        ahead = np.minimum(step + 3 * np.arange(1, 5), last)
        turn = convert(
            recorded["robot0_eef_rot_axis_angle"].astype(np.float64), "axis_angle", "matrix"
        )
        position = recorded["robot0_eef_pos"].astype(np.float64)
        np.testing.assert_allclose(
            batch.actions[0, :, :3].numpy(),
            (position[ahead] - position[step]) @ turn[step],
            atol=1e-5,
        )
        relative = turn[step].T @ turn[ahead]
        np.testing.assert_allclose(
            batch.actions[0, :, 3:9].numpy(), relative[:, :2].reshape(-1, 6), atol=1e-5
        )
        now = images(batch, "camera0_rgb")[1]
        np.testing.assert_array_equal(now, recorded["camera0_rgb"][step])
        mirrors = now[mirror_coverage(*now.shape[:2]) == 1.0]
        assert (mirrors == 0).all() == (sentence == "go left")
        if sentence == "go right":
            assert who(now) == (episode, step, 0)
    assert told == set(spelt)


def test_a_mixture_of_hands_trains_in_its_shares(mixture: Path, tmp_path: Path) -> None:
    single = mixture.parent / "cup.zarr"
    tokenizer = autoencoder(tmp_path / "vae", (32, 32), task=UMI_NAME, data=single)
    run = a_run(tmp_path / "uva", HANDS_MODEL, task=UMI_NAME, data=mixture, tokenizer=tokenizer)
    data = pixels_of(run, UMI)
    chosen = np.arange(len(data.training) // 4 * 4)
    texts = []
    for part in np.split(chosen, 4):
        batch = data.training.batch(part)
        assert batch.text is not None
        texts.append(batch.text.numpy())
    share = (np.concatenate(texts) == Speller().encode(["go left"])[0]).all(1).mean()
    assert share == pytest.approx(0.75, abs=0.02)
    weights = load_checkpoint(train_uva(run))
    assert weights.text is not None
    assert set(weights.text.known.texts) == {"go left", "go right"}
    assert weights.spec is not None
    assert weights.spec.action is not None
    assert weights.spec.action.mode == "relative"
    assert weights.spec.fps == pytest.approx(59.94 / 3)


def test_latents_of_masked_pictures_are_kept_apart(mixture: Path, tmp_path: Path) -> None:
    single = mixture.parent / "cup.zarr"
    tokenizer = autoencoder(tmp_path / "vae", (32, 32), task=UMI_NAME, data=single)
    plain = json.loads(mixture.read_text())
    del plain["members"][0]["mirror_mask"]
    unmasked = mixture.with_name("unmasked.json")
    unmasked.write_text(json.dumps(plain))
    latents = []
    for name, file in (("masked", mixture), ("unmasked", unmasked)):
        run = a_run(tmp_path / name, HANDS_MODEL, task=UMI_NAME, data=file, tokenizer=tokenizer)
        train_uva(run)
        stores = load_data(run, UMI, Inputs(None, seed=0), Speller()).stores
        latents.append([s.gather("latents_camera0_rgb", np.arange(30)) for s, _ in stores])
    (masked_cup, towel), (cup, same_towel) = latents
    np.testing.assert_array_equal(towel, same_towel)
    assert (masked_cup != cup).any(axis=(1, 2, 3)).all()


def test_a_folder_of_videos_beside_a_lerobot_set(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    for episode in range(3):
        encode(tmp_path / "clips" / f"{episode}.mp4", coded_video(episode, 14, 0))
    tokenizer = autoencoder(tmp_path / "vae", (32, 48), data=root, camera="top")
    model = dataclasses.replace(SMALL, camera="top", action_dim=3, grid=(8, 12))
    run = a_run(
        tmp_path / "uva", model, data=root, tokenizer=tokenizer, video_data=(tmp_path / "clips",)
    )
    sources = load_checkpoint(train_uva(run)).card["data"]
    assert [Path(source["path"]).name for source in sources] == ["set", "clips"]
