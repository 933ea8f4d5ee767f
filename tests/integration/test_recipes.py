"""The road that a user walks: collect, autoencoder, latents, two
stages, resume, act, imagine, convert.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support.tiny_world import MODEL, World

from foreact.checkpoints.format import build, load_checkpoint, load_tokenizer
from foreact.cli import main
from foreact.commands.closed_loop import ClosedLoop, closed_loop
from foreact.commands.convert import Convert, convert
from foreact.commands.weights import verify
from foreact.data.stores.store import open_store
from foreact.data.windows.augment import CropAndBlur
from foreact.data.windows.normalize import Normalizer
from foreact.errors import UserError
from foreact.families.uva import train as recipe_uva
from foreact.families.uva.imagine import generate, video
from foreact.families.uva.model import UVA
from foreact.families.uva.released.names import reference_names
from foreact.families.uva.train import train_uva
from foreact.released.pickles import read_torch_file
from foreact.runs import training as runs
from foreact.runs.acting import open_policy
from foreact.runs.inputs import Inputs
from foreact.runs.stores import ensure_latents
from foreact.tasks import find_task
from foreact.train.logs import read_log
from foreact.types import Batch

GOLDEN = Path(__file__).parents[1] / "parity/goldens/uva/checkpoint_pusht"


class Tags(HTMLParser):
    """Counts what is opened and not closed, and keeps the text."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input", "source", "col", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(path: Path) -> str:
    """The visible text of a page whose tags all match."""
    tags = Tags()
    tags.feed(path.read_text())
    assert tags.open == []
    return tags.text


# --- training -------------------------------------------------------------------------------------


def test_autoencoder_is_whole_and_its_latents_have_unit_variance(world: World) -> None:
    checkpoint = load_checkpoint(world.vae)
    assert checkpoint.family == "kl_vae"
    assert checkpoint.card["steps"] == 2
    store = open_store(world.store)
    assert store.tokenizer_hash("latents_img") == checkpoint.hash
    latents = store.gather("latents_img", np.arange(int(store.lengths.sum())))
    assert latents.shape[1:] == (4, 4, 4)
    assert latents.dtype == np.float16
    assert 0.3 < latents.astype(np.float32).std() < 3.0


def test_encoding_is_done_once_and_again_for_another_autoencoder(
    world: World, tmp_path: Path
) -> None:
    shutil.copytree(world.store, tmp_path / "store")
    store = open_store(tmp_path / "store")
    vae: Any = build(load_checkpoint(world.vae))
    chunk = next(
        p for p in (tmp_path / "store/data/latents_img").iterdir() if not p.name.startswith(".")
    )
    before = chunk.stat().st_mtime_ns
    ensure_latents(store, "img", vae, load_checkpoint(world.vae).hash)
    assert chunk.stat().st_mtime_ns == before
    with torch.no_grad():
        vae.to_moments.weight.mul_(2.0)
        vae.to_moments.bias.mul_(2.0)
    old = store.read(0, 0, 5, ["latents_img"])["latents_img"].astype(np.float32)
    ensure_latents(store, "img", vae, "sha256:other")
    assert store.tokenizer_hash("latents_img") == "sha256:other"
    np.testing.assert_allclose(
        store.read(0, 0, 5, ["latents_img"])["latents_img"], 2 * old, atol=2e-2
    )


def test_two_stages_leave_weights_that_act(world: World) -> None:
    video, joint = load_checkpoint(world.video), load_checkpoint(world.uva)
    assert not any(name.startswith("heads.action.") for name in video.state)
    assert any(name.startswith("heads.action.") for name in joint.state)
    assert not any(name.startswith("heads.proprioception.") for name in joint.state)
    assert joint.card["start"] == str(world.video)
    assert joint.tokenizer is not None
    assert joint.tokenizer.hash == load_checkpoint(world.vae).hash
    assert joint.stats is not None
    assert set(joint.stats.streams) == {"action", "state"}
    assert isinstance(build(joint), UVA)
    load_tokenizer(joint)
    run = json.loads((world.uva.parent / "config.json").read_text())
    assert run["model"]["width"] == 16
    last = read_log(world.uva.parent / "log.jsonl")[-1]
    assert {"val/policy_action_loss", "val/joint_video_loss", "val/dynamics_video_loss"} <= set(
        last
    )


def test_second_stage_starts_from_the_first(world: World, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UVA(MODEL)
    first = load_checkpoint(world.video)
    report = recipe_uva.fill_from(model, first, find_task("pusht").spec)
    same = [name for name, tensor in model.state_dict().items() if name in first.state]
    assert len(same) > 20
    assert all(torch.equal(model.state_dict()[name], first.state[name].float()) for name in same)
    assert "heads.action" in report


def test_the_first_stage_starts_from_the_image_model(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train uva --init mar.pth`, as the authors do; which tensors came over is counted."""
    torch.manual_seed(1)
    mar = UVA(replace(MODEL, head="diffusion", readout="conv_fc"))
    names = reference_names(mar.config)
    parts = ("z_proj", "encoder_", "decoder_")
    state = {names[k]: v for k, v in mar.state_dict().items() if names[k].startswith(parts)}
    torch.save({"model_ema": state, "epoch": 1}, tmp_path / "mar.pth")
    torch.manual_seed(0)
    model = UVA(MODEL)
    inputs = Inputs(None, seed=0)
    spec = find_task("pusht").spec
    account = recipe_uva.start_from(model, str(tmp_path / "mar.pth"), spec, inputs)
    new = len(model.state_dict()) - len(state)
    assert inputs.weights["init"].startswith("sha256:")
    assert f"loaded {len(state)} tensors, left {new} as initialised" in account
    ours = next(k for k, theirs in names.items() if theirs == "encoder_blocks.0.mlp.fc1.weight")
    assert torch.equal(model.state_dict()[ours], state["encoder_blocks.0.mlp.fc1.weight"])


class Interrupted:
    """The recipe's batches, with Ctrl-C pressed while one of them is fetched."""

    def __init__(self, at: int) -> None:
        self.at, self.real = at, runs.batches

    def __call__(self, *args: Any, start: int = 0, **options: Any) -> Iterator[Batch]:
        for number, batch in enumerate(self.real(*args, start=start, **options), start=start):
            if number == self.at:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    """The log without what the clock says."""
    clock = ("seconds", "samples_per_s", "data_wait")
    return [
        {k: v for k, v in entry.items() if k not in clock}
        for entry in read_log(run_dir / "log.jsonl")
    ]


def test_interrupted_and_resumed_run_equals_an_undisturbed_one(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"steps": 4, "eval_every": 100}
    whole = train_uva(world.run(tmp_path / "whole", train=options))
    with monkeypatch.context() as patched:
        patched.setattr(runs, "batches", Interrupted(at=1))
        with pytest.raises(SystemExit) as exit_:
            train_uva(world.run(tmp_path / "parts", train=options))
    assert exit_.value.code == 130
    resume = f"foreact train uva --from {tmp_path / 'parts'}"
    assert (
        f"Stopped after step 2; everything is saved. Go on with: {resume}\n"
        in capsys.readouterr().out
    )
    assert not (tmp_path / "parts" / "weights").exists()
    main(resume.split()[1:])
    a, b = load_checkpoint(whole), load_checkpoint(tmp_path / "parts" / "weights")
    assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)
    assert a.hash == b.hash
    assert len(log_of(tmp_path / "whole")) >= 4
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")


def test_training_on_augmented_pixels(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = []
    monkeypatch.setattr(
        CropAndBlur,
        "__call__",
        lambda self, clip, rng: changed.append(clip.shape) or clip.flip(-1),
    )
    weights = train_uva(
        world.run(tmp_path / "pixels", pixels=True, train={"steps": 1, "eval_every": 1})
    )
    assert changed == [(4, 3, 96, 96)] * 4
    assert load_checkpoint(weights).family == "uva"


def test_closed_loop_checks_during_training_rank_checkpoints(world: World, tmp_path: Path) -> None:
    training = {"steps": 1, "eval_every": 1, "best_metric": "closed_loop/score"}
    weights = train_uva(world.run(tmp_path / "checked", eval_seeds=1, train=training))
    (entry,) = [e for e in read_log(tmp_path / "checked" / "log.jsonl") if "closed_loop/score" in e]
    assert 0.0 <= entry["closed_loop/score"] <= 1.0
    assert load_checkpoint(weights).card["closed_loop/score"] == entry["closed_loop/score"]


def test_pusht_m_is_collected_and_trained_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        ["data", "collect", "--env", "pusht-m", "--episodes", "2", "--workers", "1", "--noise", "0"]
    )
    main(["data", "check", "--store", "data/pusht-m.zarr"])
    weights = train_uva(
        world.run(tmp_path / "m", task="pusht-m", data=None, train={"steps": 1, "eval_every": 1})
    )
    assert load_checkpoint(weights).card["command"].startswith("foreact train uva --task pusht-m")
    assert open_store("data/pusht-m.zarr").info("goal").shape == (2, 3)


# --- acting and imagining -------------------------------------------------------------------------


def test_closed_loop_writes_scores_films_and_a_report(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval"
    closed_loop(
        ClosedLoop(
            weights=str(world.uva),
            seeds=2,
            videos=1,
            workers=0,
            baselines=("do-nothing",),
            out=out,
            device="cpu",
        )
    )
    run = world.uva.parent.name
    for name in (run, "do-nothing"):
        raw = json.loads((out / name / "closed_loop.json").read_text())
        assert raw["seeds"] == [100_000, 100_001]
        assert raw["score"]["n"] == 2
        assert len(raw["episodes"]) == 2
    assert (out / run / "videos" / "seed-100000.mp4").stat().st_size > 0
    raw = json.loads((out / run / "closed_loop.json").read_text())
    assert raw["protocol"]["weights"] == load_checkpoint(world.uva).hash
    text = read_page(out / "report.html")
    assert f"{raw['score']['mean']:.3f}" in text
    assert "do-nothing" in text
    assert find_task("pusht").score_note in capsys.readouterr().out


def test_video_quality_and_its_report(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "video"
    video(
        str(world.uva), data=world.store, windows_per_episode=1, examples=1, out=out, device="cpu"
    )
    for mode in ("video", "dynamics"):
        raw = json.loads((out / f"{mode}.json").read_text())["img"]
        assert raw["windows"] == 1  # of the one episode that was not trained on
        assert set(raw["estimates"]) == {"psnr", "ssim", "psnr_copy", "ssim_copy"}
        assert list((out / mode).glob("*.png"))
    page = read_page(out / "report.html")
    assert "PSNR" in page.upper()
    assert "1 (1 of 3 were not trained on)" in page
    assert "dynamics, camera img: psnr" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["video", "dynamics", "inverse"])
def test_generate(
    world: World, tmp_path: Path, mode: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "two"):
        generate(
            str(world.uva),
            mode=mode,
            data=world.store,
            windows=2,
            seed=3,
            out=tmp_path / folder,
            device="cpu",
        )
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    pictures = [name for name in names if name.endswith(".png")]
    assert len(pictures) == 1  # of the one episode that was not trained on
    assert sum(name.endswith(".mp4") for name in names) == (0 if mode == "inverse" else 1)
    for name in pictures:
        assert (tmp_path / "one" / name).read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    printed = capsys.readouterr().out
    assert ("mean distance" if mode == "inverse" else "psnr") in printed


# --- data and weights -----------------------------------------------------------------------------


def test_data_verbs(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world.uva, tmp_path / "uva")
    everything = Normalizer.fit_store(open_store(world.store))
    (tmp_path / "uva" / "stats.json").write_text(json.dumps(everything.to_json()))
    main(["data", "stats", "--store", str(world.store), "--against", str(tmp_path / "uva")])
    printed = capsys.readouterr().out
    assert "out of range" in printed
    assert "0.0 %" in printed
    main(
        [
            "data",
            "show",
            "--store",
            str(world.store),
            "--out",
            str(tmp_path / "show"),
            "--episodes",
            "1",
        ]
    )
    assert sorted(p.name for p in (tmp_path / "show").iterdir()) == ["img.png", "img_1.mp4"]


def test_foreign_store_is_imported_under_a_task(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.zarr"
    shutil.copytree(world.store, foreign)
    group = zarr.open_group(str(foreign), mode="r+", use_consolidated=False)
    del group.attrs["foreact_spec"]
    main(
        [
            "data",
            "import",
            "--src",
            str(foreign),
            "--out",
            str(tmp_path / "ours.zarr"),
            "--task",
            "pusht",
        ]
    )
    ours, original = open_store(tmp_path / "ours.zarr"), open_store(world.store)
    assert ours.native
    np.testing.assert_array_equal(ours.lengths, original.lengths)
    a, b = (s.read(1, 0, int(s.lengths[1]), ["img", "action"]) for s in (ours, original))
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_released_checkpoint_is_converted_verified_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads((GOLDEN / "case.json").read_text())
    assert "state_dicts" in read_torch_file(GOLDEN / facts["file"])
    size = facts["registered_size"]
    heads = (size["encoder"][2], size["decoder"][2])
    convert(Convert(src=GOLDEN / facts["file"], out=tmp_path / "shipped" / "golden"), heads=heads)
    verify(str(tmp_path / "shipped" / "golden"))
    printed = capsys.readouterr().out
    digest = load_checkpoint(tmp_path / "shipped" / "golden").hash
    assert digest in printed
    assert "tokenizer  embedded" in printed
    monkeypatch.setattr("foreact.checkpoints.shipped.ROOT", tmp_path / "shipped")
    main(["weights", "list"])
    printed = capsys.readouterr().out
    assert "golden" in printed
    assert digest[:19] in printed


def test_raw_and_half_are_other_tensors(tmp_path: Path) -> None:
    file = GOLDEN / "reference_format.ckpt"
    for name, half, raw in (("ema", False, None), ("raw", False, True), ("half", True, None)):
        convert(Convert(src=file, out=tmp_path / name, half=half), heads=(2, 2), raw=raw)
    ema, raw, half = (load_checkpoint(tmp_path / name).state for name in ("ema", "raw", "half"))
    assert any(not torch.equal(ema[name], raw[name]) for name in ema)
    assert {t.dtype for t in half.values() if t.is_floating_point()} == {torch.float16}


def test_weights_act_in_another_task_of_the_same_streams(world: World) -> None:
    policy = open_policy(str(world.uva), find_task("pusht-m"), device="cpu")
    policy.spec.require_equal(find_task("pusht-m").spec, "the policy", "the task")


# --- processes ------------------------------------------------------------------------------------


def test_several_processes_do_not_encode_the_same_store(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world.store, tmp_path / "store", ignore=shutil.ignore_patterns("latents_img"))
    store = open_store(tmp_path / "store")
    checkpoint = load_checkpoint(world.vae)
    vae: Any = build(checkpoint)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start this command once as one process before"):
        ensure_latents(store, "img", vae, checkpoint.hash)
    assert store.tokenizer_hash("latents_img") is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    ensure_latents(store, "img", vae, checkpoint.hash)
    assert store.tokenizer_hash("latents_img") == checkpoint.hash
