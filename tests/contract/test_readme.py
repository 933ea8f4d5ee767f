"""Every command of the README and of the systems' pages runs, in
its order, with options that make it small.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from foreact import cli

ROOT = Path(__file__).parents[2]

TINY = "--train.steps 2 --train.batch-size 2 --train.warmup 1"
SMALL = {
    "demo driving": "--scenes 4 --effort 0.004",
    "demo voc": "--data data/demo.zarr --effort 0.002 --decisions 4",
    "train voc": f"{TINY} --train.batch-size 16 --val-ratio 0.4",  # which validation takes too
    "train voc --codes musik": f"{TINY} --train.batch-size 16 --val-ratio 0.4 --musik.channels 8 "
    "--musik.blocks 1",
    "train bc": f"{TINY} --val-ratio 0.4",
    "generate futures": "--states 1 --samples 2",
    "eval values": "--samples 2 --states 4 --candidates 2",
    "eval control": "--episodes 1 --max-steps 2 --videos 0 --workers 1 --planning.candidates 4 "
    "--planning.samples 1 --planning.elites 2",
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
    # A planner's episodes take minutes.
    "data collect dmc": "--episodes 3 --workers 1 --policy random",
    "data check": "--windows 10",
    "data show": "",
    "train kl-vae": "--model.image-size 16 16 --model.channels 8 --train.steps 2 "
    "--train.batch-size 4 --train.warmup 1",
    "train uva": "--train.steps 2 --train.batch-size 4 --train.warmup 1 --val-ratio 0.4",
    "train uva --from": "--train.steps 3",
    "eval closed-loop": "--seeds 1 --videos 1 --workers 1",
    "eval video": "--episodes 2 --windows-per-episode 1",
    "generate": "--windows 1",
    "weights list": "",
    "weights verify": "",
    "doctor": "",
}


MADE = {
    "README.md": ["runs/acting/report.html"],
    "docs/uva.md": [
        "runs/vae/weights",
        "runs/joint/weights",
        "runs/acting/report.html",
        "runs/video-quality/report.html",
    ],
    "docs/driving.md": [
        "runs/demo-driving/open-loop/report.html",
        "runs/drive/weights",
        "runs/open-loop/report.html",
    ],
    "docs/control.md": [
        "runs/demo-voc/report.html",
        "runs/voc/weights",
        "runs/control/report.html",
    ],
}
"""Page -> what its commands leave behind."""


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def commands(page: str) -> list[str]:
    """The `foreact` commands of a page, in its order."""
    lines = [
        line.split("  #")[0].split(" # ")[0].strip()
        for block in blocks(page, "bash")
        for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("foreact ")]


def test_the_pages_name_every_kind_of_verb() -> None:
    verbs = {verb.split()[0] for verb in cli.verbs()}
    named = {command.split()[1] for page in MADE for command in commands(page)}
    assert named >= verbs - {"serve"}  # which would not end
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


def test_every_page_is_linked_from_the_index_and_no_link_is_broken() -> None:
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").glob("*.md")} - {
        Path("index.md")
    }
    index = (ROOT / "docs" / "index.md").read_text()
    assert not [str(page) for page in pages if f"({page})" not in index]
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert target == "api/index.md" or (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", [page for page in MADE if blocks(page, "python")])
def test_the_python_of_a_page_runs_as_it_stands(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", MADE)
def test_every_command_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Episodes first: the demo of the page learns from a copy of them, to which it adds codes of
        #     its own.
        for command in sorted(commands(page), key=lambda command: "data collect" not in command):
            words = shlex.split(command)[1:]
            verb = " ".join(words[:2]) if " ".join(words[:2]) in cli.verbs() else words[0]
            key = f"{verb} --from" if "--from" in words else verb
            key = next(
                (f"generate {kind}" for kind in ("drives", "futures") if f"runs/{kind}" in words),
                key,
            )
            key = "train voc --codes musik" if "musik" in words else key
            key = "data collect dmc" if "dmc/cheetah_run" in words else key
            if verb == "demo voc":
                shutil.copytree("data/cheetah-run.zarr", "data/demo.zarr")
            cli.run([*words, *shlex.split(SMALL[key])])
    finally:
        torch.set_num_threads(threads)
    for made in MADE[page]:
        assert (tmp_path / made).exists(), made
