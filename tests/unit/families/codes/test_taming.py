"""taming's VQGAN: its released files, the way VOC prepared frames,
and what both mean for checkpoints of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.taming_files import CONFIG, network, released
from torch import Tensor
from torch.nn.functional import conv2d, group_norm

from foreact.checkpoints.format import build, content_hash, load_checkpoint
from foreact.checkpoints.tokenizers import open_tokenizer
from foreact.cli import run
from foreact.errors import UserError
from foreact.families.codes.released.llamagen import is_llamagen
from foreact.families.codes.released.llamagen_names import to_reference as to_llamagen
from foreact.families.codes.released.taming import is_taming, read_taming, write_taming
from foreact.families.codes.released.taming_names import to_native, to_reference
from foreact.released.convert import convert, recognise
from foreact.tokenizers.images import from_legacy_range, prepare, to_legacy_range
from foreact.tokenizers.vq import TAMING, VQConfig, VQTokenizer
from foreact.types import Batch, Codes, Tokenizer, to_model_range

State = dict[str, Tensor]
LEGACY = dataclasses.replace(CONFIG, preprocessing="legacy")


def frames(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(released(network()), tmp_path / "cheetah.pth")
    return tmp_path / "cheetah.pth"


# --- the file -------------------------------------------------------------------------------------


def test_a_released_file_becomes_the_same_network(file: Path) -> None:
    found = read_taming(file, grid=(4, 6))
    assert found.config == LEGACY
    assert found.report.splitlines()[0].startswith(f"tokenizer: {len(found.state)} of ")
    made = VQTokenizer(found.config).eval()
    made.load_state_dict(found.state)
    images = to_model_range(frames(2, 3, 3, 16, 24))
    expected = network(LEGACY)
    assert torch.equal(made.encode(images), expected.encode(images))
    assert len(made.encode(images).unique()) > 3


def test_its_first_and_last_layers_are_where_the_names_say(file: Path) -> None:
    """The names meet the function at both ends of the network, without our module in between."""
    state = torch.load(file, weights_only=True)
    made = VQTokenizer(CONFIG).eval()
    made.load_state_dict(read_taming(file, preprocessing="symmetric", grid=(4, 6)).state)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda _module, inputs, output: seen.update({name: (inputs[0], output)})

    made.get_submodule("encoder.levels.1.blocks.0.norm2").register_forward_hook(
        keep("encoder.down.1.block.0.norm2")
    )
    made.get_submodule("encoder.downsamples.1.conv").register_forward_hook(
        keep("encoder.down.1.downsample.conv")
    )
    made.get_submodule("encoder.levels.2.attentions.0.value").register_forward_hook(
        keep("encoder.down.2.attn.0.v")
    )
    made.get_submodule("decoder.levels.2.blocks.1.conv1").register_forward_hook(
        keep("decoder.up.2.block.1.conv1")
    )
    made.get_submodule("decoder.upsamples.0.conv").register_forward_hook(
        keep("decoder.up.1.upsample.conv")
    )
    made.decoder.middle.block2.conv2.register_forward_hook(keep("decoder.mid.block_2.conv2"))
    made.from_code.register_forward_hook(keep("post_quant_conv"))
    made.decode(made.encode(to_model_range(frames(1, 1, 3, 16, 24))))
    assert len(seen) == 7
    for name, (given, output) in seen.items():
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        if weight.ndim == 1:
            expected = group_norm(given, 32, weight, bias, eps=1e-6)
        else:
            side = weight.shape[-1]
            stride = 2 if "downsample" in name else 1
            expected = conv2d(
                given, weight, bias, stride=stride, padding=0 if stride == 2 or side == 1 else 1
            )
        torch.testing.assert_close(output, expected, msg=name)


def test_the_published_sizes_are_read_from_the_tensors() -> None:
    with torch.device("meta"):
        tokenizer = VQTokenizer(TAMING)
    state = to_reference(tokenizer.state_dict())
    counts = {
        part: [0, 0] for part in ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")
    }
    for name, tensor in state.items():
        counts[name.split(".")[0]][0] += tensor.numel()
        counts[name.split(".")[0]][1] += 1
    assert counts == {
        "encoder": [29_298_176, 144], "decoder": [42_449_795, 194], "quantize": [262_144, 1],
        "quant_conv": [65_792, 2], "post_quant_conv": [65_792, 2],
    }  # fmt: skip
    found = read_taming(
        Path("last.ckpt"), {"state_dict": state, "epoch": 3}, preprocessing="symmetric"
    )
    assert found.config == TAMING
    assert "not read: epoch" in found.report
    voc = read_taming(Path("walker_vq_vae_model.pth"), state)
    assert voc.config == dataclasses.replace(TAMING, image_size=(80, 80), preprocessing="legacy")
    assert voc.config.grid == (5, 5)


def test_the_loss_is_counted_and_left_out(file: Path) -> None:
    theirs = torch.load(file, weights_only=True)
    loss = [name for name in theirs if name.startswith("loss.")]
    assert any("num_batches_tracked" in name for name in loss)
    report = read_taming(file, grid=(4, 6)).report.splitlines()
    assert report == [
        f"tokenizer: {len(theirs) - len(loss)} of {len(theirs)} tensors used, legacy preprocessing",
        f"left out: {len(loss)} tensors under 'loss.', which only training needs",
    ]


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "step": 1}]
)
def test_every_wrapping_is_known_for_what_it_is(
    wrap: Callable[[State], Any], tmp_path: Path
) -> None:
    payload = wrap(released(network()))
    assert is_taming(payload)
    assert recognise(payload, tmp_path).name == "taming"
    assert set(read_taming(tmp_path, payload, grid=(4, 6)).state) == set(network().state_dict())


def test_its_relatives_are_not_taken_for_it(tmp_path: Path) -> None:
    llamagen = {
        "model": to_llamagen(network(dataclasses.replace(CONFIG, normalized=True)).state_dict())
    }
    assert is_llamagen(llamagen)
    assert not is_taming(llamagen)
    assert recognise(llamagen, tmp_path).name == "llamagen"
    kl = {
        k: v
        for k, v in to_reference(network().state_dict()).items()
        if not k.startswith("quantize.")
    }
    assert recognise({"model": kl}, tmp_path).name == "kl_vae"
    assert not is_llamagen({"model": released(network())})
    for other in ([1], {}, {"state_dict": 3}):
        with pytest.raises(UserError, match="should hold a VQGAN"):
            read_taming(tmp_path, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s.update({"encoder.down.0.block.0.temb_proj.weight": torch.zeros(1)}),
            "temb_proj",
        ),
        (lambda s: s.update({"quantize.cluster_size": torch.zeros(1)}), r"quantize\.cluster_size"),
        (
            lambda s: s.pop("decoder.mid.attn_1.proj_out.bias"),
            "1 missing.*decoder.middle.attention.out.bias",
        ),
        (lambda s: s.pop("encoder.conv_in.weight"), "lacks what we call encoder.conv_in.weight"),
        (lambda s: s.update({"quant_conv.bias": torch.zeros(5)}), "another shape.*to_code.bias"),
        (
            lambda s: s.pop("encoder.down.2.attn.0.norm.weight"),
            "1 missing.*encoder.levels.2.attentions.0.norm.weight",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_told(
    file: Path, change: Callable[[State], object], said: str
) -> None:
    state = torch.load(file, weights_only=True)
    change(state)
    with pytest.raises(UserError, match=said):
        read_taming(file, state, grid=(4, 6))


@pytest.mark.parametrize("attention", [(), (1,), (0, 1), (0, 2)])
def test_attention_is_read_wherever_it_is(attention: tuple[int, ...]) -> None:
    config = dataclasses.replace(LEGACY, attention=attention)
    found = read_taming(Path("x"), released(network(config)), grid=(4, 6))
    assert found.config == config


def test_names_go_there_and_back_for_any_number_of_levels() -> None:
    for multipliers in [(1,), (1, 2), (1, 2, 2, 4)]:
        with torch.device("meta"):
            ours = VQTokenizer(VQConfig(multipliers=multipliers, blocks=1)).state_dict()
        back = to_native(to_reference(ours))
        assert back.keys() == ours.keys()
        assert all(back[name] is ours[name] for name in ours)


def test_what_is_written_has_their_names_and_no_loss(file: Path, tmp_path: Path) -> None:
    write_taming(tmp_path / "again.pth", read_taming(file, grid=(4, 6)).state)
    theirs, again = (torch.load(p, weights_only=True) for p in (file, tmp_path / "again.pth"))
    assert set(again) == {name for name in theirs if not name.startswith("loss.")}
    assert all(torch.equal(theirs[name], again[name]) for name in again)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.pth", "cheetah.pth"]


def test_nothing_is_written_where_no_file_can_be(file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("all of it")
    state = read_taming(file).state
    with pytest.raises(UserError, match="could not be written"):
        write_taming(tmp_path / "taken" / "vq.pth", state)
    with pytest.raises(UserError, match="is a folder; give the name of a file"):
        write_taming(tmp_path, state)
    assert (tmp_path / "taken").read_text() == "all of it"


def test_the_command_line_converts_both_ways(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, words = tmp_path / "ours", ["--out", str(tmp_path / "ours"), "--grid", "4", "6"]
    run(["weights", "convert", str(file), *words])
    assert "legacy preprocessing" in capsys.readouterr().out
    assert load_checkpoint(ours).config["preprocessing"] == "legacy"
    run(["weights", "verify", str(ours)])
    run(["weights", "convert", str(ours), "--out", str(tmp_path / "back.pth"), "--to", "reference"])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert read_taming(file, back, grid=(4, 6)).config == LEGACY
    run(["weights", "convert", str(file), *words, "--preprocessing", "symmetric"])
    symmetric = build(load_checkpoint(ours))
    assert isinstance(symmetric, VQTokenizer)
    assert symmetric.config == CONFIG


def test_preprocessing_is_chosen_for_this_kind_alone(tmp_path: Path) -> None:
    other = to_llamagen(network(dataclasses.replace(CONFIG, normalized=True)).state_dict())
    torch.save({"model": other}, tmp_path / "vq.pt")
    with pytest.raises(UserError, match="knows grid; convert it without --preprocessing"):
        convert(tmp_path / "vq.pt", tmp_path / "ours", preprocessing="legacy")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("to", ["reference", "training"])
def test_ways_that_have_no_preprocessing_refuse_the_choice(
    file: Path, tmp_path: Path, to: str
) -> None:
    words = ["--out", str(tmp_path / "other"), "--to", to, "--preprocessing", "legacy"]
    with pytest.raises(UserError, match="--out"):
        run(["weights", "convert", str(file), *words])
    assert not (tmp_path / "other").exists()


# --- frames ---------------------------------------------------------------------------------------


def test_legacy_values_are_what_the_missing_brackets_give() -> None:
    pixels = frames(2, 3, 4, 5)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = pixels / 255 - (mean / std)[:, None, None]
    torch.testing.assert_close(to_legacy_range(to_model_range(pixels)), expected)
    torch.testing.assert_close(from_legacy_range(expected), to_model_range(pixels))


def test_legacy_frames_are_resized_by_taking_the_nearest_pixels_and_others_bilinearly() -> None:
    pixels = frames(1, 2, 3, 8, 6)
    nearest = prepare(pixels, (5, 4), "legacy")
    rows, columns = torch.arange(5) * 8 // 5, torch.arange(4) * 6 // 4
    assert torch.equal(nearest, to_model_range(pixels)[..., rows[:, None], columns])
    expected = torch.nn.functional.interpolate(to_model_range(pixels)[0], (5, 4), mode="bilinear")
    assert torch.equal(prepare(pixels, (5, 4))[0], expected)
    assert torch.equal(prepare(pixels, None), to_model_range(pixels))


def test_the_networks_own_range_stays_inside_the_tokenizer() -> None:
    legacy, plain = network(LEGACY), network(CONFIG)
    images = to_model_range(frames(2, 3, 16, 24))
    torch.testing.assert_close(legacy.latents(images), plain.latents(to_legacy_range(images)))
    codes = legacy.encode(images[:, None])[:, 0]
    torch.testing.assert_close(
        to_legacy_range(legacy.draw(legacy.quantizer.lookup(codes))),
        plain.draw(plain.quantizer.lookup(codes)),
    )
    out = legacy.reconstruct(Batch(video={"top": frames(1, 2, 3, 20, 20)}))
    assert torch.equal(out.images, prepare(frames(1, 2, 3, 20, 20), (16, 24), "legacy")[0])


def test_whoever_opens_it_prepares_frames_as_it_was_trained(file: Path, tmp_path: Path) -> None:
    convert(file, tmp_path / "ours", grid=(4, 6))
    loaded = open_tokenizer(tmp_path / "ours")
    assert (loaded.image_size, loaded.preprocessing) == ((16, 24), "legacy")
    pixels = frames(1, 2, 3, 21, 33)
    assert torch.equal(loaded.prepare(pixels), prepare(pixels, (16, 24), "legacy"))
    assert isinstance(loaded.tokenizer, Tokenizer)
    assert isinstance(loaded.tokenizer, Codes)
    assert loaded.tokenizer.codebook.shape == (20, 6)
    assert loaded.tokenizer.encode(loaded.prepare(pixels)).shape == (1, 2, *loaded.tokenizer.grid)


# --- checkpoints ----------------------------------------------------------------------------------


def test_the_choice_is_part_of_the_hash(file: Path, tmp_path: Path) -> None:
    for name in ("legacy", "symmetric"):
        convert(file, tmp_path / name, grid=(4, 6), preprocessing=name)
    assert content_hash(tmp_path / "legacy") != content_hash(tmp_path / "symmetric")
