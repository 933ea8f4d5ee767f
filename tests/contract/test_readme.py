"""Every command of the README runs, in its order, with a few options appended that make it small."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from foreact import cli

README = (Path(__file__).parents[2] / "README.md").read_text()

TINY = "--train.steps 2 --train.batch-size 2 --train.warmup 1"
SMALL = {
    "demo driving": "--scenes 4 --effort 0.004",
    "demo voc": "--data data/demo.zarr --effort 0.002 --decisions 4",
    "train voc": f"{TINY} --train.batch-size 16 --val-ratio 0.4",  # which validation takes too
    "train voc --codes musik": f"{TINY} --train.batch-size 16 --val-ratio 0.4 --musik.channels 8 --musik.blocks 1",
    "train bc": f"{TINY} --val-ratio 0.4",
    "generate futures": "--states 1 --samples 2",
    "eval values": "--samples 2 --states 4 --candidates 2",
    "eval control": "--episodes 1 --max-steps 2 --videos 0 --workers 1 --planning.candidates 4 --planning.samples 1 "
    "--planning.elites 2",
    "data toy-street": "--scenes 4",
    "data import-nuscenes": "",
    "train vq": f"{TINY} --val-ratio 0.4 --model.channels 8 --model.blocks 1",
    "tokenize": "",
    "train vavim": f"{TINY} --train.drop 1 --model.layers 2 --data.val-ratio 0.4",
    "train vavam": f"{TINY} --train.drop 1 --data.val-ratio 0.4",
    "eval open-loop": "--max-windows 4 --samples 2 --steps 2",
    "generate drives": "--windows 1 --context 1 --future 1",
    "submit": "",
    "scaling coord-check": "--widths 32 64 --steps 2",
    "data collect": "--episodes 3 --workers 1",
    "data collect dmc": "--episodes 3 --workers 1 --policy random",  # a planner's episodes take minutes
    "data check": "--windows 10",
    "data show": "",
    "train kl-vae": "--model.image-size 16 16 --model.channels 8 --train.steps 2 --train.batch-size 4 --train.warmup 1",
    "train uva": "--train.steps 2 --train.batch-size 4 --train.warmup 1 --val-ratio 0.4",
    "train uva --from": "--train.steps 3",
    "eval closed-loop": "--seeds 1 --videos 1 --workers 1",
    "eval video": "--episodes 2 --windows-per-episode 1",
    "generate": "--windows 1",
    "weights list": "",
    "weights verify": "",
    "doctor": "",
}


def sections() -> dict[str, list[str]]:
    """The `foreact` commands under each heading."""
    found = {}
    for part in README.split("\n## ")[1:]:
        blocks = re.findall(r"```bash\n(.*?)```", part, flags=re.DOTALL)
        lines = [line.split("  #")[0].split(" # ")[0].strip() for block in blocks for line in block.splitlines()]
        if commands := [line for line in lines if line.startswith("foreact ")]:
            found[part.splitlines()[0]] = commands
    return found


MADE = {
    "From demonstrations to a policy": ["runs/vae/weights", "runs/joint/weights", "runs/acting/report.html"],
    "Driving": ["runs/demo-driving/open-loop/report.html", "runs/drive/weights", "runs/open-loop/report.html"],
    "Control from pixels": ["runs/demo-voc/report.html", "runs/voc/weights", "runs/control/report.html"],
    "Imagine": ["runs/video-quality/report.html"],
    "Weights": [],
}


def test_the_readme_names_every_kind_of_verb() -> None:
    verbs = {verb.split()[0] for verb in cli.verbs()}
    named = {command.split()[1] for commands in sections().values() for command in commands}
    assert named >= verbs - {"serve"}  # which would not end
    assert set(sections()) == set(MADE)
    assert "make demo" in README
    assert "make test" in README


@pytest.mark.timeout(900)
@pytest.mark.parametrize("section", MADE)
def test_every_command_of_a_section_runs(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Episodes first: the demo of the section learns from a copy of them, to which it adds codes of its own.
        for command in sorted(sections()[section], key=lambda command: "data collect" not in command):
            words = shlex.split(command)[1:]
            verb = " ".join(words[:2]) if " ".join(words[:2]) in cli.verbs() else words[0]
            key = f"{verb} --from" if "--from" in words else verb
            key = next((f"generate {kind}" for kind in ("drives", "futures") if f"runs/{kind}" in words), key)
            key = "train voc --codes musik" if "musik" in words else key
            key = "data collect dmc" if "dmc/cheetah_run" in words else key
            if verb == "demo voc":
                shutil.copytree("data/cheetah-run.zarr", "data/demo.zarr")
            cli.run([*words, *shlex.split(SMALL[key])])
    finally:
        torch.set_num_threads(threads)
    for made in MADE[section]:
        assert (tmp_path / made).exists(), made
