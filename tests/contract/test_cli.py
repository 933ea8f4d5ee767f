"""The command line: every verb explains itself, every mistake is
one sentence, every recipe is a model.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from foreact.cli import main, usage, verbs
from foreact.families.codes.train_kl_vae import KLVAERun
from foreact.families.uva.config import SIZES
from foreact.families.uva.model import UVA
from foreact.families.uva.recipes import recipe
from foreact.tasks import TASKS, find_task
from foreact.tokenizers.kl_vae import KLVAE

OPTIONS = {
    "demo": ["--out", "--steps", "--seeds", "--workers"],
    "demo driving": ["--out", "--scenes", "--effort"],
    "demo voc": ["--out", "--task", "--effort"],
    "data collect": ["--env", "--episodes", "--out", "--first-seed", "--noise", "--workers"],
    "data import": ["--src", "--out", "--task", "--mask", "--fill-missing"],
    "data import-d4rl": ["--root", "--out", "--task", "--fps", "--codes", "--grid", "--vocab"],
    "data import-opendv": [
        "--root",
        "--out",
        "--split",
        "--names",
        "--cutting",
        "--damage",
        "--height",
        "--width",
    ],
    "data import-nuscenes": [
        "--root",
        "--out",
        "--version",
        "--scenes",
        "--camera",
        "--height",
        "--width",
    ],
    "data import-nuplan": [
        "--databases",
        "--images",
        "--out",
        "--logs",
        "--camera",
        "--height",
        "--width",
    ],
    "data toy-street": ["--out", "--scenes", "--seed"],
    "data remaining": [
        "--windows",
        "--out",
        "--run",
        "--world",
        "--batch-size",
        "--steps",
        "--seed",
        "--drop-last",
    ],
    "data pseudo-depth": ["--network", "--data", "--out", "--dataset"],
    "data check": ["--store", "--task", "--windows"],
    "data stats": ["--store", "--task", "--against"],
    "data export-lerobot": [
        "--store",
        "--out",
        "--task",
        "--codec",
        "--task-text",
        "--data-mb",
        "--video-mb",
        "--robot",
    ],
    "data show": ["--store", "--out", "--task", "--episodes"],
    "data text": ["--store", "--task", "--encoder"],
    "data pack": ["--out"],
    "data unpack": ["--to"],
    "tokenize": [
        "--store",
        "--tokenizer",
        "--task",
        "--camera",
        "--engine",
        "--batch-size",
        "--precision",
        "--device",
    ],
    "train kl-vae": [
        "--from",
        "--task",
        "--data",
        "--out",
        "--device",
        "--model.channels",
        "--train.lr",
    ],
    "train vq": [
        "--from",
        "--task",
        "--data",
        "--camera",
        "--init",
        "--out",
        "--model.codes",
        "--adversarial.weight",
        "--perceptual",
        "--lpips",
        "--shift",
        "--train.lr",
    ],
    "train vqkd": [
        "--from",
        "--size",
        "--task",
        "--data",
        "--camera",
        "--teacher",
        "--init",
        "--out",
        "--train.lr",
    ],
    "train musik": [
        "--from",
        "--task",
        "--data",
        "--reach",
        "--shift",
        "--out",
        "--model.codes",
        "--train.lr",
    ],
    "train uva": [
        "--from",
        "--task",
        "--size",
        "--stage",
        "--data",
        "--tokenizer",
        "--init",
        "--out",
        "--pixels",
        "--eval-seeds",
        "--model.width",
        "--model.head",
        "--train.steps",
        "--train.ema.max",
    ],
    "train vavim": [
        "--from",
        "--size",
        "--stage",
        "--data.sources",
        "--data.ratios",
        "--data.only",
        "--tokenizer",
        "--init",
        "--plan",
        "--model.width",
        "--train.start-from",
        "--train.parallel",
        "--train.drop",
    ],
    "train vavam": [
        "--from",
        "--size",
        "--video",
        "--data.sources",
        "--data.hard-turns",
        "--data.command-horizon",
        "--plan",
        "--model.train-vavim",
        "--model.expert.width",
        "--train.steps",
    ],
    "train voc": [
        "--from",
        "--size",
        "--codes",
        "--task",
        "--data",
        "--tokenizer",
        "--joint",
        "--freeze-after",
        "--init",
        "--actions",
        "--model.gammas",
        "--model.bootstrap-steps",
        "--model.target-top-k",
        "--vq.codes",
        "--musik.codes",
        "--train.accumulation",
        "--train.schedule-steps",
    ],
    "train bc": ["--from", "--task", "--data", "--tokenizer", "--out", "--train.lr"],
    "submit": ["--nodes", "--gpus-per-node", "--hours", "--partition", "--dry-run"],
    "generate": [
        "--weights",
        "--task",
        "--mode",
        "--data",
        "--windows",
        "--seed",
        "--out",
        "--device",
    ],
    "eval closed-loop": [
        "--weights",
        "--task",
        "--seeds",
        "--variant",
        "--execute",
        "--temperature",
        "--steps",
        "--baselines",
    ],
    "eval replay": ["--task", "--data", "--episodes", "--variant", "--out"],
    "eval open-loop": [
        "--weights",
        "--data",
        "--samples",
        "--steps",
        "--command-horizon",
        "--calibration",
        "--out",
    ],
    "eval video": [
        "--weights",
        "--task",
        "--data",
        "--windows-per-episode",
        "--episodes",
        "--seed",
        "--examples",
    ],
    "eval probe": [
        "--weights",
        "--data",
        "--dataset",
        "--task",
        "--layer",
        "--neighbours",
        "--search",
        "--reference",
    ],
    "eval values": [
        "--weights",
        "--data",
        "--gammas",
        "--samples",
        "--states",
        "--candidates",
        "--seed",
        "--out",
    ],
    "eval control": [
        "--policies",
        "--gammas",
        "--task",
        "--episodes",
        "--prior",
        "--execute",
        "--max-steps",
        "--variant",
        "--planning.planner",
        "--planning.candidates",
        "--planning.samples",
        "--out",
    ],
    "eval ncap": ["--rootdir", "--check", "--reference-rounding", "--out"],
    "scaling coord-check": ["--sources", "--widths", "--steps", "--lr", "--out"],
    "scaling lr-sweep": ["--sources", "--widths", "--lrs", "--standard", "--out"],
    "scaling laws": ["--sources", "--widths", "--steps", "--out"],
    "serve neuroncap": [
        "--weights",
        "--tokenizer",
        "--host",
        "--port",
        "--samples",
        "--choose",
        "--seed",
        "--gaps",
    ],
    "weights list": [],
    "weights get": ["--out", "--base-url", "--sha256", "--files", "--timeout"],
    "weights unpack": ["--out", "--max-total", "--max-files"],
    "weights pack": ["--out", "--max-size", "--extension"],
    "weights convert": ["--out", "--task", "--raw", "--heads", "--grid", "--half", "--to"],
    "weights verify": [],
    "doctor": [],
}


def test_every_verb_is_covered_here() -> None:
    assert set(OPTIONS) == set(verbs())


@pytest.mark.parametrize("verb", verbs())
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*verb.split(), "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: foreact {verb} " in printed
    missing = [
        option for option in OPTIONS[verb] if not re.search(re.escape(option) + r"[\s,]", printed)
    ]
    assert not missing


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_bare_call_lists_every_verb(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(argv)
    printed = capsys.readouterr().out
    assert printed == usage() + "\n"
    for verb, (_, text) in verbs().items():
        assert re.search(rf"^  {verb} +{re.escape(text)}$", printed, re.MULTILINE), verb


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["fly"], "There is no verb 'fly'; known ones are data, demo, doctor, "),
        (["data"], "`foreact data` needs one of: data collect, data import, data import-d4rl, "),
        (["data", "colect"], "`foreact data` needs one of: data collect, "),
        (
            ["train", "--help"],
            "`foreact train` needs one of: train kl-vae, train vq, train vqkd, train musik, ",
        ),
        (
            ["train", "uva", "--task", "pushtt"],
            "There is no task called 'pushtt'; did you mean 'pusht'?",
        ),
        (
            ["train", "uva", "--task", "no.such_task"],
            "Task 'no.such_task' cannot be imported (No module named 'no')",
        ),
        (["train", "uva", "--task", "foreact.types"], "Module 'foreact.types' exports no TASK; "),
        (
            ["train", "uva", "--size", "giant"],
            "--size should be one of pocket, tiny, small, base, large, huge, ",
        ),
        (["train", "uva", "--stage=act"], "--stage should be one of video, joint, found 'act'."),
        (["train", "uva", "--size"], "--size needs a value."),
        (
            ["train", "kl-vae", "--from", "nowhere"],
            "--from expects the folder of an earlier run; nowhere holds no ",
        ),
        (
            ["weights", "verify", "nothing"],
            "'nothing' is neither a checkpoint folder nor a shipped ",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"foreact: {sentence}")
    assert re.search(r"[.?]\n$", err)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["data", "check"],
        ["data", "check", "--stor", "x"],
        ["train", "uva", "--model.width", "wide"],
        ["doctor", "--x"],
    ],
)
def test_options_that_do_not_parse_are_explained_without_traceback(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"foreact {' '.join(argv[: 1 if argv[0] == 'doctor' else 2])}" in err
    assert "Traceback" not in err


def test_installed_command() -> None:
    command = Path(sys.executable).with_name("foreact")
    done = subprocess.run([str(command), "fly"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("foreact: There is no verb 'fly'")


def test_doctor_names_every_extra(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    printed = capsys.readouterr().out
    assert f"torch       {torch.__version__}" in printed
    for extra in ("pusht", "tensorboard", "wandb", "jpegxl"):
        assert re.search(rf"^{extra} +(installed|missing: pip install)", printed, re.MULTILINE)


def test_doctor_says_what_was_measured_and_what_it_means(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["doctor"])
    printed = capsys.readouterr().out
    for line in (
        r"precision +(fp32|bf16) \(.+\)",
        r"speed +[\d,]+ GFLOP/s in fp32(, [\d,]+ GFLOP/s in bf16)?; [\d,]+ GB/s from memory",
        r"training +[\d,]+ windows/s of the demo's model",
        *(
            rf"{demo} +(about \d+ min on this machine|not measured with a GPU yet)"
            for demo in ("demo", "demo driving", "demo voc")
        ),
    ):
        assert re.search(rf"^{line}$", printed, re.MULTILINE), line


@pytest.mark.parametrize("task", TASKS.built_in)
@pytest.mark.parametrize("stage", ["video", "joint"])
@pytest.mark.parametrize("size", ["pocket", *SIZES])
def test_every_uva_recipe_is_a_model(
    task: str, stage: Literal["video", "joint"], size: str
) -> None:
    run = recipe(task, size, stage)
    with torch.device("meta"):
        model = UVA(run.model)
    assert (run.task, run.stage, run.size) == (task, stage, size)
    assert run.model.predict_action == (stage == "joint")
    assert any(name.startswith("heads.action.") for name in model.state_dict()) == (
        stage == "joint"
    )
    assert run.train.warmup < run.train.steps
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters < 10e6 if size == "pocket" else parameters > 50e6


def test_kl_vae_recipe_fits_the_pocket_model() -> None:
    config = KLVAERun().model
    with torch.device("meta"):
        KLVAE(config)
    pocket = recipe().model
    assert (config.latent_channels, config.grid) == (pocket.latent_channels, pocket.grid)


def test_a_task_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks").mkdir()
    (tmp_path / "my_tasks" / "slide.py").write_text(
        "from foreact.types import ActionSpec, StreamSpec\n"
        "from foreact.worlds import Task\nACTION = ActionSpec(names=('a', "
        "'b', 'c'), units=('m',) * 3, frame='world', mode='delta', rate_hz=5.0)\nTASK = "
        "Task(name='slide', spec=StreamSpec(cameras={'top': (48, 48)}, fps=5.0, action=ACTION), "
        "camera='top')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find_task("my_tasks.slide").name == "slide"
    run = recipe("my_tasks.slide")
    with torch.device("meta"):
        UVA(run.model)
    assert (run.model.camera, run.model.action_dim) == ("top", 3)
    assert run.model.proprioception_prediction == {}
