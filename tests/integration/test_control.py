"""From a store of codes to the control table: behaviour cloning,
planning and rollouts in the toy world.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_world import settings

from foreact.checkpoints.format import load_checkpoint, save_checkpoint
from foreact.commands.closed_loop import ClosedLoop
from foreact.commands.closed_loop import closed_loop as scored
from foreact.commands.closed_loop import command as closed_loop_command
from foreact.data.stores.writer import StoreWriter
from foreact.errors import UserError
from foreact.evals.closed_loop import closed_loop, read_closed_loop
from foreact.families.voc import control as recipe
from foreact.families.voc.cloning.train import CloningRun, command, train_bc
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.control import control, table_rows
from foreact.families.voc.model import VOC
from foreact.families.voc.policy import OccupancyOptions, PlanningConfig
from foreact.policies.baselines import RandomPolicy
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.types import ActionSpec, Observation, StreamSpec
from foreact.worlds import StepOut, Task

SIZE = 16
CONTROL_SPEC = StreamSpec(
    cameras={"img": (SIZE, SIZE)},
    fps=10.0,
    action=ActionSpec(
        names=("x",),
        units=("unitless",),
        frame="world",
        mode="delta",
        rate_hz=10.0,
        low=(-2.0,),
        high=(2.0,),
    ),
    has_reward=True,
)
TASK_NAME = "toy_tasks.glow"
PLANNING = PlanningConfig(candidates=4, samples=1, elites=2, iterations=1, rollout_steps=2)
CODES = VQConfig(
    channels=8,
    multipliers=(1, 1, 1),
    blocks=1,
    features=8,
    codes=16,
    code_dim=4,
    norm_groups=4,
    image_size=(SIZE // 2, SIZE // 2),
)


class Glow:
    """A light that the action turns up or down; the reward is its brightness, less 0.3."""

    spec = CONTROL_SPEC
    max_steps = 6

    def __init__(self) -> None:
        self.light = 0.5

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self.light = float(np.random.default_rng(seed).uniform())
        return self._observe()

    def step(self, action: np.ndarray) -> StepOut:
        self.light = float(np.clip(self.light + 0.1 * action[0], 0.0, 1.0))
        return StepOut(self._observe(), self.light - 0.3, False)

    def _observe(self) -> dict[str, np.ndarray]:
        ramp = np.arange(SIZE * SIZE * 3).reshape(SIZE, SIZE, 3) % 256
        return {"img": (ramp * self.light).astype(np.uint8)}

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), round(255 * self.light), np.uint8)

    def close(self) -> None:
        pass


class Pale(Glow):
    """The same, drawn without shadows."""


@dataclass(frozen=True)
class Made:
    """What the tests share on disk."""

    store: Path
    vq: Path
    bc: Path
    voc: Path
    one_step: Path


def occupancy_weights(path: Path, vq: Path, **changes: Any) -> Path:
    """A VOC of random weights that reads the codes of `vq`."""
    tokenizer = load_checkpoint(vq)
    torch.manual_seed(0)
    config = VOCConfig(
        **{
            "width": 16,
            "heads": 2,
            "layers": 1,
            "vocab": CODES.codes,
            "code_dim": CODES.code_dim,
            "grid": (2, 2),
            "frames": 2,
            "gammas": (0.5, 0.9),
            "actions": 1,
            "camera": "img",
            "reward_hidden": 8,
            **changes,
        }
    )
    model = VOC(config)
    save_checkpoint(
        path,
        family="voc",
        config=config,
        state=model.state_dict(),
        spec=CONTROL_SPEC,
        tokenizer=tokenizer.path,
    )
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("glow")
    with StoreWriter(root / "glow.zarr", CONTROL_SPEC, attrs={"shadows": True}) as writer:
        for seed in range(4):
            rng, world = np.random.default_rng(seed), Glow()
            frames, actions, rewards = [world.reset(seed)["img"]], [], [0.0]
            for _ in range(8):
                actions.append(rng.uniform(-2.0, 2.0, 1))
                out = world.step(actions[-1])
                frames.append(out.obs["img"])
                rewards.append(out.reward)
            writer.append(
                {
                    "img": np.stack(frames),
                    "action": np.array([*actions, [0.0]], np.float32),
                    "reward": np.array(rewards, np.float32)[:, None],
                }
            )
    torch.manual_seed(0)
    tokenizer = VQTokenizer(CODES)
    save_checkpoint(root / "vq", family="vq", config=CODES, state=tokenizer.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        provide_task(patch)
        bc = train_bc(cloning_run(root))
    return Made(
        store=root / "glow.zarr",
        vq=root / "vq",
        bc=bc,
        voc=occupancy_weights(root / "voc", root / "vq"),
        one_step=occupancy_weights(root / "one-step", root / "vq", gammas=(0.0,)),
    )


def cloning_run(root: Path, **changes: Any) -> CloningRun:
    model = dataclasses.replace(CloningRun().model, channels=2, width=8)
    training = settings(
        best_k=1, best_metric="val/loss", best_mode="min", eval_every=1, save_every=2
    )
    base = CloningRun(
        task=TASK_NAME,
        data=root / "glow.zarr",
        tokenizer=str(root / "vq"),
        out=root / "bc",
        val_ratio=0.3,
        device="cpu",
        model=model,
        train=training,
    )
    return dataclasses.replace(base, **changes)


def provide_task(patch: pytest.MonkeyPatch) -> None:
    """Make the task and its environments importable, as a user's module is."""
    module = ModuleType(TASK_NAME)
    task = Task(
        name="glow",
        spec=CONTROL_SPEC,
        camera="img",
        env=f"{TASK_NAME}:make_glow",
        score="sum",
        variants={
            "shadows": f"{TASK_NAME}:make_glow",
            "no-shadows": f"{TASK_NAME}:make_glow_plain",
        },
        score_note="An episode's score is the sum of its rewards.",
    )
    vars(module).update(TASK=task, make_glow=Glow, make_glow_plain=Pale)
    patch.setitem(sys.modules, "toy_tasks", ModuleType("toy_tasks"))
    patch.setitem(sys.modules, TASK_NAME, module)


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    provide_task(monkeypatch)


def compare(out: Path, *policies: str, **changes: Any) -> dict[str, Any]:
    options = {
        "episodes": 2,
        "planning": PLANNING,
        "workers": 0,
        "device": "cpu",
        "max_steps": 3,
        **changes,
    }
    control(TASK_NAME, policies, out=out, **options)
    return json.loads((out / "control.json").read_text())


# --- scores that are sums -------------------------------------------------------------------------


def test_a_score_can_be_the_sum_of_the_rewards() -> None:
    def run(score: Any) -> list[float]:
        policy = RandomPolicy(CONTROL_SPEC, execute=2)
        result = closed_loop(
            f"{TASK_NAME}:make_glow",
            policy,
            [1, 2],
            workers=0,
            score=score,
            score_range=None,
            success_at=None,
            progress=False,
        )
        assert result.success is None
        assert [e.success for e in result.episodes] == [None, None]
        assert result.protocol["score"].startswith({"sum": "sum of", "max": "largest"}[score])
        return [e.score for e in result.episodes]

    rewards = []
    for seed in (1, 2):
        world, policy = Glow(), RandomPolicy(CONTROL_SPEC, execute=2)
        world.reset(seed)
        policy.reset([seed])
        rewards.append([])
        for _ in range(3):
            policy.observe(Observation(cameras={}), [0])
            rewards[-1] += [world.step(action).reward for action in policy.act([0]).actions[0]]
            policy.observe(Observation(cameras={}), [0])
    assert run("sum") == pytest.approx([sum(r) for r in rewards])
    assert run("max") == pytest.approx([max(r) for r in rewards])
    with pytest.raises(UserError, match="max, sum"):
        run("mean")


def test_a_result_without_successes_is_read_back(tmp_path: Path) -> None:
    policy = RandomPolicy(CONTROL_SPEC, execute=2)
    result = closed_loop(
        f"{TASK_NAME}:make_glow",
        policy,
        [1],
        workers=0,
        score="sum",
        score_range=None,
        success_at=None,
        out_dir=tmp_path,
        progress=False,
    )
    assert read_closed_loop(tmp_path) == result


# --- behaviour cloning ----------------------------------------------------------------------------


def test_cloning_is_trained_on_stored_codes_and_embeds_its_tokenizer(made: Made) -> None:
    checkpoint, tokenizer = load_checkpoint(made.bc), load_checkpoint(made.vq)
    assert checkpoint.family == "bc"
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.hash == tokenizer.hash
    assert (checkpoint.config["low"], checkpoint.config["high"]) == ([-2.0], [2.0])
    assert (checkpoint.config["vocab"], checkpoint.config["grid"]) == (16, [2, 2])
    assert torch.equal(checkpoint.state["codebook"], rows_of(made.vq))
    card = checkpoint.card
    assert (card["shadows"], card["steps"]) == (True, 2)
    (source,) = card["data"]
    assert source["path"].endswith("glow.zarr")
    assert 0 < len(source["validation"]) < source["fingerprint"]["episodes"]


def rows_of(path: Path) -> torch.Tensor:
    tokenizer = VQTokenizer(CODES)
    tokenizer.load_state_dict(load_checkpoint(path).state)
    return tokenizer.codebook


def test_a_resumed_cloning_run_equals_an_undisturbed_one(made: Made, tmp_path: Path) -> None:
    run = cloning_run(made.store.parent, out=tmp_path / "bc")
    train_bc(run)
    longer = dataclasses.replace(run.train, steps=4)
    resumed = train_bc(dataclasses.replace(run, train=longer))
    whole = train_bc(dataclasses.replace(run, out=tmp_path / "whole", train=longer))
    assert load_checkpoint(resumed).hash == load_checkpoint(whole).hash


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "name the tokenizer"),
        (
            ["--tokenizer", "{vq}", "--model.vocab", "99"],
            r"--model.vocab says 99, tokenizer and data have 16",
        ),
        (["--tokenizer", "{bc}"], "no tokenizer"),
    ],
)
def test_cloning_that_cannot_be_is_refused(
    made: Made, tmp_path: Path, args: list[str], words: str
) -> None:
    filled = [a.format(vq=made.vq, bc=made.bc) for a in args]
    common = [
        "--task",
        TASK_NAME,
        "--data",
        str(made.store),
        "--out",
        str(tmp_path / "bc"),
        "--device",
        "cpu",
    ]
    with pytest.raises(UserError, match=words):
        command([*common, *filled])
    assert not (tmp_path / "bc").exists()


# --- the table ------------------------------------------------------------------------------------


def test_the_table_holds_every_policy_on_the_same_episodes(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = compare(
        tmp_path,
        "random",
        f"bc:{made.bc}",
        f"bc-draw:{made.bc}",
        f"one-step:{made.one_step}",
        f"voc:{made.voc}",
    )
    names = ["random", "bc", "bc-draw", "one-step", "voc-0.5", "voc-0.9"]
    assert [row["policy"] for row in table["rows"]] == names
    assert table["seeds"] == [100000, 100001]
    for row in table["rows"]:
        assert row["score"]["mean"] == pytest.approx(np.mean(row["episodes"]))
        assert row["score"]["n"] == 2
        assert row["protocol"]["max_steps"] == 3
        assert row["seconds_per_plan"] >= 0.0
        assert (tmp_path / row["policy"] / "videos" / "seed-100000.mp4").is_file()
    told = {row["policy"]: row["protocol"] for row in table["rows"]}
    assert told["voc-0.9"]["gamma"] == 0.9
    assert told["one-step"]["value"] == "rollouts"
    assert (
        told["voc-0.5"]["prior"] == load_checkpoint(made.bc).hash
    )  # the one among the policies proposes
    assert told["bc-draw"]["draw"]
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in names)
    assert "sum of its rewards" in page
    assert capsys.readouterr().out.count("s per plan") == len(names)


def test_what_was_measured_by_the_same_protocol_is_read(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    measure = recipe.measure

    def spy(task: Task, policy: Any, seeds: Any, name: str, *args: Any, **known: Any) -> Any:
        measured.append(name)
        return measure(task, policy, seeds, name, *args, **known)

    monkeypatch.setattr(recipe, "measure", spy)
    first = compare(tmp_path, "random", f"voc:{made.voc}", gammas=(0.5,))
    again = compare(tmp_path, "random", f"voc:{made.voc}", "do-nothing", gammas=(0.5,))
    assert measured == ["random", "voc-0.5", "do-nothing"]
    assert again["rows"][:2] == first["rows"]
    # With a prior VOC plans otherwise, and shorter episodes score otherwise: neither replaces.
    with pytest.raises(UserError, match=r"voc-0.5 holds a measurement with other prior; name an"):
        compare(tmp_path, "random", f"voc:{made.voc}", gammas=(0.5,), prior=str(made.bc))
    with pytest.raises(UserError, match=r"holds the results of .*eval control.*; name another"):
        compare(tmp_path, "random", max_steps=2)
    assert len(measured) == 3


def test_shadows_are_recorded_and_must_be_those_of_the_data(made: Made, tmp_path: Path) -> None:
    table = compare(tmp_path, "random", variant="no-shadows")
    assert table["rows"][0]["protocol"]["env"] == f"{TASK_NAME}:make_glow_plain"
    with pytest.raises(
        UserError, match="learned from pictures of the variant 'shadows'; give --variant shadows"
    ):
        compare(tmp_path, f"bc:{made.bc}", variant="no-shadows")


def test_closed_loop_scores_a_planner_too(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ClosedLoop(
        weights=str(made.voc),
        task=TASK_NAME,
        seeds=2,
        videos=1,
        workers=0,
        out=tmp_path,
        device="cpu",
    )
    planning = dataclasses.replace(PLANNING, gamma=0.9)
    scored(asked, OccupancyOptions(prior=str(made.bc), planning=planning))
    result = read_closed_loop(tmp_path / "voc")
    assert result.score.n == 2
    assert result.protocol["gamma"] == 0.9
    assert result.protocol["score"] == "sum of the episode's rewards"
    assert "solved" not in capsys.readouterr().out
    assert (tmp_path / "report.html").is_file()


def test_closed_loop_refuses_options_of_other_families_and_no_action_at_all(
    made: Made, tmp_path: Path
) -> None:
    for weights, options, words in (
        ("random", ["--prior", str(made.bc)], "--prior is for weights of the family voc"),
        (str(made.bc), ["--planning.samples", "2"], "--planning is for"),
        (str(made.voc), ["--temperature=0.5"], "--temperature is for weights of the family uva"),
        (str(made.bc), ["--steps", "3"], "--steps is for weights of the family uva or vavam"),
        ("random", ["--execute", "0"], "execute is 0"),
        (str(made.bc), ["--execute", "0"], "execute is 0"),
    ):
        out = tmp_path / "out"
        argv = f"--weights {weights} --task {TASK_NAME} --seeds 1 --out {out} --device cpu".split()
        with pytest.raises(UserError, match=words):
            closed_loop_command([*argv, *options])
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("policies", "changes", "words"),
    [
        (("walk",), {}, "KIND:WEIGHTS"),
        (("voc:",), {}, "KIND:WEIGHTS"),
        ((), {}, "found none"),
        (("random", "random"), {}, "random twice"),
        (("bc:{voc}",), {}, "bc takes those of bc"),
        (("voc:{bc}",), {}, "voc takes those of voc"),
        (("voc:{voc}",), {"gammas": (0.7,)}, r"No model .* gamma 0\.7"),
        (("one-step:{voc}", "bc:{bc}"), {}, "name it voc:"),
        (("voc:{one_step}", "bc:{bc}"), {}, "name it one-step:"),
        (("one-step:{one_step}",), {}, "name weights of `foreact train bc`"),
        (("voc:{voc}",), {"prior": "{voc}"}, "takes those of bc"),
        (("voc:{missing}",), {}, "neither a checkpoint folder"),
        (("random",), {"episodes": 0}, "distinct seed"),
        (
            ("random",),
            {"planning": dataclasses.replace(PLANNING, rollouts=True)},
            "one-step:WEIGHTS",
        ),
    ],
)
def test_a_table_that_cannot_be_is_refused(
    made: Made, tmp_path: Path, policies: tuple[str, ...], changes: dict[str, Any], words: str
) -> None:
    places = {**vars(made), "missing": tmp_path / "missing"}
    filled = {k: v.format(**places) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(UserError, match=words):
        compare(tmp_path, *(p.format(**places) for p in policies), **filled)
    assert not (tmp_path / "control.json").exists()


def test_models_of_other_codes_do_not_plan_together(made: Made, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_checkpoint(
        tmp_path / "vq", family="vq", config=CODES, state=VQTokenizer(CODES).state_dict()
    )
    other = occupancy_weights(tmp_path / "voc", tmp_path / "vq")
    with pytest.raises(UserError, match="train both on the same codes"):
        compare(tmp_path / "out", f"voc:{other}", prior=str(made.bc))
    longer = occupancy_weights(tmp_path / "longer", made.vq, frames=3)
    with pytest.raises(UserError, match=r"has frames = 3, its prior .* has 2"):
        compare(tmp_path / "out", f"voc:{longer}", prior=str(made.bc))


def test_several_models_of_one_gamma_each_make_a_table(made: Made, tmp_path: Path) -> None:
    low, high = (occupancy_weights(tmp_path / f"{g}", made.vq, gammas=(g,)) for g in (0.5, 0.8))
    rows = table_rows((f"voc:{low}", f"voc:{high}"), (0.5, 0.8))
    assert [(row.name, row.gamma) for row in rows] == [("voc-0.5", 0.5), ("voc-0.8", 0.8)]
    assert [row.name for row in table_rows((f"voc:{low}", f"voc:{high}"), (0.8,))] == ["voc-0.8"]


def test_the_simulator_takes_part_without_shadows_unless_they_are_asked_for(tmp_path: Path) -> None:
    control(
        "cheetah-run",
        ("random",),
        episodes=1,
        max_steps=2,
        videos=0,
        workers=0,
        out=tmp_path,
        device="cpu",
    )
    table = json.loads((tmp_path / "control.json").read_text())
    assert table["rows"][0]["protocol"]["env"] == "foreact.envs.dmc:make_cheetah_run_plain"
    assert {"dm-control", "mujoco"} <= set(table["versions"])
