"""From a store to the model and to the world: both cameras, states, past actions, instructions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import told_world
from support.tiny_world import MODEL, VAE, settings
from support.told_world import DIM, SIDES, SIZE, SPEC, write_store

import foreact
from foreact.checkpoints.format import load_checkpoint
from foreact.cli import run as cli
from foreact.data.stores.store import StoreWriter, open_store
from foreact.errors import UserError
from foreact.evals.closed_loop import closed_loop
from foreact.evals.seen import Recordings, read_seen
from foreact.families.codes.train_kl_vae import KLVAERun, train_kl_vae
from foreact.families.uva.config import UVAConfig
from foreact.families.uva.data import load_data
from foreact.families.uva.imagine import generate, video
from foreact.families.uva.model import UVA
from foreact.families.uva.recipes import UVARun, recipe
from foreact.families.uva.train import train_uva
from foreact.runs.inputs import Inputs
from foreact.tasks import find_task
from foreact.types import Observation, StreamSpec

TASK, ENCODER = "support.told_world:TASK", "support.told_world:ENCODER"
TOLD = dataclasses.replace(
    MODEL,
    camera="front",
    wrist_camera="wrist",
    action_dim=1,
    text_dim=DIM,
    text_tokens=2,
    past_actions=True,
    proprioception={"hand": 1},
    proprioception_steps=2,
    proprioception_prediction={"hand": 1},
)


@dataclasses.dataclass(frozen=True)
class Roads:
    store: Path
    vae: Path
    weights: Path

    def run(self, out: Path, model: UVAConfig = TOLD, **changes: Any) -> UVARun:
        training = settings(**changes.pop("train", {}))
        base: dict[str, Any] = {
            "task": TASK,
            "data": self.store,
            "tokenizer": str(self.vae),
            "text_encoder": None if model.text_dim is None else ENCODER,
            "val_ratio": 0.3,
            "device": "cpu",
        }
        return UVARun(**{**base, **changes, "out": out, "model": model, "train": training})


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> Roads:
    root = tmp_path_factory.mktemp("told")
    store = write_store(root / "told.zarr")
    vae = train_kl_vae(
        KLVAERun(
            task=TASK,
            data=store,
            out=root / "vae",
            model=VAE,
            train=settings(best_k=0),
            val_ratio=0.3,
            device="cpu",
        )
    )
    made = Roads(store, vae, root / "uva" / "weights")
    model = dataclasses.replace(TOLD, modes={"policy": 0.8, "joint": 0.1, "dynamics": 0.1})
    learning = {"steps": 300, "eval_every": 300, "lr": 5e-3, "batch_size": 16}
    train_uva(made.run(root / "uva", model, train=learning))
    return made


def nothing_told() -> Observation:
    return Observation(
        cameras={name: np.zeros((1, SIZE, SIZE, 3), np.uint8) for name in SPEC.cameras},
        state={"hand": np.zeros((1, 1), np.float32)},
    )


def acting(roads: Roads, **options: Any) -> Any:
    return foreact.load_policy(roads.weights, device="cpu", **options)


def test_the_recipe_takes_its_inputs_from_the_task() -> None:
    model = recipe(TASK, text_encoder=ENCODER).model
    assert (model.camera, model.wrist_camera, model.text_dim) == ("front", "wrist", DIM)
    assert dict(model.proprioception) == {"hand": 1}
    silent = recipe(TASK).model
    assert silent.text_dim is None


def test_a_policy_gathers_all_that_its_model_reads(roads: Roads) -> None:
    """What it gathers while acting is what the store says it saw."""
    policy = acting(roads, batch_size=1)
    questions = []
    ask = policy._ask.question
    policy._ask.question = lambda *args, **kw: questions.append(ask(*args, **kw)) or questions[-1]
    world = told_world.make()
    seen = world.reset(1)
    policy.reset([1])
    taken = []
    for step in range(12):
        policy.observe(
            Observation(
                cameras={name: seen[name][None] for name in SPEC.cameras},
                state={"hand": seen["hand"][None]},
                text=[world.instruction],
            )
        )
        if step % 4 == 0:
            chunk = policy.act()
            assert chunk.t0 == step
        taken.append(chunk.actions[0, step % 4])
        seen = world.step(taken[-1]).obs
    last = questions[-1]  # at step 8
    stats = load_checkpoint(roads.weights).stats
    assert stats is not None
    past = stats.encode(np.array(taken[:8], np.float32), "action")
    np.testing.assert_allclose(last.past_actions[0], past, atol=1e-6)
    assert last.past_valid.all()
    assert not questions[0].past_valid.any()
    assert questions[1].past_valid[0].tolist() == [False] * 4 + [True] * 4
    np.testing.assert_array_equal(last.text[0], told_world.Speller().encode(["go right"])[0])
    assert last.wrist_context.shape == last.context.shape
    assert (last.wrist_context != last.context).any()


def test_a_closed_loop_tells_the_policy_what_to_do(roads: Roads) -> None:
    """The side is told by the sentence alone, so solving both sides needs every road."""
    told = closed_loop(
        "support.told_world:make", acting(roads, execute=4), range(8), workers=0, progress=False
    )
    wrong = closed_loop(
        "support.told_world:make",
        acting(roads, execute=4, instruction="go left"),
        range(8),
        workers=0,
        progress=False,
    )
    assert told.score.mean == 1.0
    assert [e.score for e in wrong.episodes] == [1.0, 0.0] * 4
    assert wrong.protocol["instruction"] == "go left"


def test_new_sentences_need_the_encoder_of_training(roads: Roads) -> None:
    table = load_checkpoint(roads.weights).text
    assert table is not None
    assert set(table.known.texts) == set(SIDES)
    policy = acting(roads, instruction="go away")
    policy.reset([0])
    policy.observe(nothing_told())
    with pytest.raises(UserError, match="not trained on the instruction 'go away'"):
        policy.act()
    encoded = acting(roads, instruction="go away", text_encoder=ENCODER)
    encoded.reset([0])
    encoded.observe(nothing_told())
    assert np.isfinite(encoded.act().actions).all()


def test_what_is_seen_in_a_store_starts_with_nothing_taken(roads: Roads) -> None:
    seen = read_seen(acting(roads), Recordings(open_store(roads.store)), [(1, 2), (0, 12)])
    assert set(seen.frames) == {"front", "wrist"}
    assert seen.past_actions is not None
    assert np.isnan(seen.past_actions[0]).sum() == 6
    assert (seen.past_actions[0, 6:] == 1.0).all()
    assert (seen.past_actions[1] == -1.0).all()
    assert seen.text == ["go right", "go left"]


def test_both_views_are_imagined_and_measured(
    roads: Roads, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video(
        str(roads.weights),
        TASK,
        data=roads.store,
        windows_per_episode=1,
        examples=1,
        out=tmp_path / "v",
        device="cpu",
    )
    raw = json.loads((tmp_path / "v" / "dynamics.json").read_text())
    assert set(raw) == {"front", "wrist"}
    assert raw["front"]["estimates"]["psnr"] != raw["wrist"]["estimates"]["psnr"]
    assert "dynamics, camera wrist: psnr" in capsys.readouterr().out
    generate(
        str(roads.weights),
        TASK,
        "inverse",
        roads.store,
        windows=1,
        out=tmp_path / "i",
        device="cpu",
    )
    assert list((tmp_path / "i").glob("inverse-*.png"))


@pytest.mark.parametrize("first_now", [True, False])
def test_uneven_contexts_train_and_act_at_any_stride(
    roads: Roads, tmp_path: Path, first_now: bool
) -> None:
    model = dataclasses.replace(
        TOLD, uneven_context=True, first_now=first_now, text_dim=None, text_tokens=64
    )
    weights = train_uva(roads.run(tmp_path / "u", model, train={"steps": 2}))
    checkpoint = load_checkpoint(weights)
    assert checkpoint.config["uneven_context"]
    policy: Any = foreact.load_policy(weights, device="cpu", context_stride=3, execute=4)
    assert policy.offsets == policy.state_offsets == [-3, 0]
    assert policy.past_offsets == ([*range(-8, 0)] if first_now else [*range(-7, 1)])
    if first_now:
        closed_loop("support.told_world:make", policy, [0], workers=0, progress=False)
        return
    with pytest.raises(UserError, match="first action is due at step 1"):
        closed_loop("support.told_world:make", policy, [0], workers=0, progress=False)


def test_videos_without_actions_are_learned_from_beside(roads: Roads, tmp_path: Path) -> None:
    spec = StreamSpec(cameras={"video": (20, 24)}, fps=10.0)
    with StoreWriter(tmp_path / "clips.zarr", spec) as writer:
        for episode in range(3):
            frames = np.random.default_rng(episode).integers(0, 256, (30, 20, 24, 3), np.uint8)
            writer.append({"video": frames})
    run = roads.run(
        tmp_path / "mixed",
        video_data=(tmp_path / "clips.zarr",),
        video_share=0.5,
        train={"steps": 3, "batch_size": 8},
    )
    weights = train_uva(run)
    data = load_checkpoint(weights).card["data"]
    assert [Path(source["path"]).name for source in data] == ["told.zarr", "clips.zarr"]


def test_a_sample_without_actions_changes_no_action_loss_and_shows_no_action(roads: Roads) -> None:
    torch.manual_seed(0)
    model = UVA(TOLD).eval()

    data = load_data(
        roads.run(Path("unused")), find_task(TASK), Inputs(None, seed=0), told_world.Speller()
    )
    batch = data.training.batch(np.arange(4))
    rng = torch.Generator().manual_seed(0)
    draws = model.draw(batch, rng, mode="policy")
    whole = model.loss(batch, draws).logs["action_loss"]
    nothing = torch.zeros_like(batch.valid["action"])
    batch.valid["action"] = torch.cat([batch.valid["action"][:3], nothing[3:]])
    assert batch.actions is not None
    without = model.loss(batch, draws).logs["action_loss"]
    batch.actions[3] = 50.0
    assert torch.equal(model.loss(batch, draws).logs["action_loss"], without)
    assert not torch.equal(whole, without)
    imagined = model.draw(batch, torch.Generator().manual_seed(0), mode="dynamics")
    before = model.loss(batch, imagined).logs["video_loss"]
    batch.actions[3] = -50.0
    assert torch.equal(model.loss(batch, imagined).logs["video_loss"], before)


def test_data_say_what_they_are_of(roads: Roads, tmp_path: Path) -> None:
    """`train uva --data FOLDER` without a task: the store's own meaning."""
    cli(
        [
            *("train", "uva", "--data", str(roads.store), "--tokenizer", str(roads.vae)),
            *("--out", str(tmp_path / "own"), "--device", "cpu", "--val-ratio", "0.3"),
            *("--model.grid", "4", "4", "--model.latent-channels", "4", "--model.patch", "2"),
            *("--train.steps", "1", "--train.batch-size", "2", "--train.workers", "0"),
            *("--train.no-tensorboard", "--train.precision", "fp32"),
        ]
    )
    checkpoint = load_checkpoint(tmp_path / "own" / "weights")
    assert checkpoint.spec == SPEC
    assert checkpoint.config["camera"] == "front"
    assert checkpoint.config["proprioception"] == {"hand": 1}
    # So do their weights.
    weights = str(tmp_path / "own" / "weights")
    out = tmp_path / "imagined"
    cli(
        [
            *("generate", "--weights", weights, "--data", str(roads.store), "--windows", "1"),
            *("--out", str(out), "--device", "cpu"),
        ]
    )
    assert list(out.glob("video-front-*.png"))
    with pytest.raises(UserError, match=r"task 'pusht' and weights .* disagree on 'cameras'"):
        generate(weights, "pusht", data=roads.store, out=tmp_path / "no", device="cpu")


def test_unfit_instructions_are_refused(roads: Roads, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="makes 4 numbers, the model reads 7"):
        train_uva(roads.run(tmp_path / "a", dataclasses.replace(TOLD, text_dim=7)))
    assert not (tmp_path / "a").exists()
    policy = acting(roads)
    policy.reset([0])
    policy.observe(nothing_told())
    with pytest.raises(UserError, match="there is no instruction"):
        policy.act()
    with pytest.raises(UserError, match="is a list, one text per episode, found 'go left'"):
        policy.observe(dataclasses.replace(nothing_told(), text="go left"))


def test_a_further_sense_has_a_head_of_its_own_that_can_be_asked(
    roads: Roads, tmp_path: Path
) -> None:
    """Declared in the config alone: a force, foreseen beside actions and video."""
    spec = dataclasses.replace(SPEC, state={**SPEC.state, "force": ("f", "noise")}, has_text=False)
    told = open_store(roads.store)
    with StoreWriter(tmp_path / "felt.zarr", spec) as writer:
        for episode in range(len(told)):
            streams = told.read(episode, 0, int(told.lengths[episode]), told.streams)
            force = np.stack([5.0 * streams["action"][:, 0], np.arange(len(streams["hand"]))], 1)
            writer.append({**streams, "force": force.astype(np.float32)})
    model = dataclasses.replace(
        TOLD, text_dim=None, text_tokens=64, modalities={"force": 1}, modes={"policy": 1.0}
    )
    weights = train_uva(
        roads.run(
            tmp_path / "felt",
            model,
            task=None,
            data=tmp_path / "felt.zarr",
            train={"steps": 400, "eval_every": 100, "lr": 5e-3, "batch_size": 16},
        )
    )
    policy: Any = foreact.load_policy(weights, device="cpu", temperature=0.0, steps=8)
    seen = read_seen(policy, Recordings(open_store(tmp_path / "felt.zarr")), [(0, 8), (1, 8)])
    felt = policy.predict_modalities(seen, rng=torch.Generator().manual_seed(0))
    assert felt["force"].shape == (2, 8, 1)
    # Which side it goes, past actions tell; the force follows.
    assert felt["force"][0].mean() < -3.0
    assert felt["force"][1].mean() > 3.0
    with pytest.raises(UserError, match="foresees no modality"):
        acting(roads).predict_modalities(seen, rng=torch.Generator().manual_seed(0))
