"""Released tokenizers: LlamaGen's own file read strictly and written
back, and TorchScript files run as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm, interpolate, normalize, pad

from foreact.checkpoints.format import build, load_checkpoint, save_checkpoint
from foreact.checkpoints.torchscript import TorchScriptTokenizer
from foreact.cli import run
from foreact.errors import UserError
from foreact.families.codes.released.llamagen import is_llamagen, read_llamagen, write_llamagen
from foreact.families.codes.released.llamagen_names import to_native, to_reference
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.types import Tokenizer

CONFIG = VQConfig(
    channels=32,
    multipliers=(1, 1, 2),
    blocks=2,
    features=12,
    codes=40,
    code_dim=4,
    image_size=(16, 24),
)
State = dict[str, Tensor]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def tokenizer(config: VQConfig = CONFIG) -> VQTokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQTokenizer(config).eval()


def frames(b: int = 2, t: int = 1, size: tuple[int, int] = (16, 24)) -> Tensor:
    return torch.rand(b, t, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- LlamaGen's layout, written a second time: names and function ---------------------------------


class LlamaGen:
    """The published network as functions over a state dict with its
    names; creates random tensors on demand.
    """

    def __init__(
        self, multipliers: tuple[int, ...], blocks: int, *, channels: int, features: int, codes: int
    ) -> None:
        self.multipliers, self.blocks, self.channels = multipliers, blocks, channels
        self.features, self.codes, self.code_dim = features, codes, 4
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(7)

    def tensor(self, name: str, *shape: int, scale: float = 0.1, shift: float = 0.0) -> Tensor:
        if name not in self.state:
            self.state[name] = shift + scale * torch.randn(shape, generator=self.generator)
        assert self.state[name].shape == shape, name
        return self.state[name]

    def conv(self, name: str, x: Tensor, outputs: int, side: int, **options: Any) -> Tensor:
        weight = self.tensor(f"{name}.weight", outputs, x.shape[1], side, side)
        return conv2d(x, weight, self.tensor(f"{name}.bias", outputs), **options)

    def norm(self, name: str, x: Tensor) -> Tensor:
        width = x.shape[1]
        weight, bias = (
            self.tensor(f"{name}.weight", width, shift=1.0),
            self.tensor(f"{name}.bias", width),
        )
        return group_norm(x, 32, weight, bias, eps=1e-6)

    def residual(self, name: str, x: Tensor, outputs: int) -> Tensor:
        y = x
        for i in ("1", "2"):
            y = self.norm(f"{name}.norm{i}", y)
            y = self.conv(f"{name}.conv{i}", y * y.sigmoid(), outputs, 3, padding=1)
        return y + (
            x if x.shape[1] == outputs else self.conv(f"{name}.nin_shortcut", x, outputs, 1)
        )

    def attend(self, name: str, x: Tensor) -> Tensor:
        y, width = self.norm(f"{name}.norm", x), x.shape[1]
        q, k, v = (self.conv(f"{name}.{part}", y, width, 1).flatten(2) for part in "qkv")
        weights = (torch.einsum("bci,bcj->bij", q, k) / width**0.5).softmax(dim=2)
        y = torch.einsum("bij,bcj->bci", weights, v).view(x.shape)
        return x + self.conv(f"{name}.proj_out", y, width, 1)

    def level(self, name: str, x: Tensor, outputs: int, blocks: int, attention: bool) -> Tensor:
        for j in range(blocks):
            x = self.residual(f"{name}.res.{j}", x, outputs)
            x = self.attend(f"{name}.attn.{j}", x) if attention else x
        return x

    def middle(self, name: str, x: Tensor) -> Tensor:
        x = self.attend(f"{name}.1", self.residual(f"{name}.0", x, x.shape[1]))
        return self.residual(f"{name}.2", x, x.shape[1])

    def end(self, side: str, x: Tensor, outputs: int) -> Tensor:
        x = self.norm(f"{side}.norm_out", x)
        return self.conv(f"{side}.conv_out", x * x.sigmoid(), outputs, 3, padding=1)

    def rows(self) -> Tensor:
        return normalize(self.tensor("quantize.embedding.weight", self.codes, self.code_dim), dim=1)

    def encode(self, x: Tensor) -> Tensor:
        last = len(self.multipliers) - 1
        x = self.conv("encoder.conv_in", x, self.channels, 3, padding=1)
        for i, m in enumerate(self.multipliers):
            x = self.level(f"encoder.conv_blocks.{i}", x, self.channels * m, self.blocks, i == last)
            if i < last:
                name = f"encoder.conv_blocks.{i}.downsample.conv"
                x = self.conv(name, pad(x, (0, 1, 0, 1)), x.shape[1], 3, stride=2)
        x = self.end("encoder", self.middle("encoder.mid", x), self.features)
        z = normalize(self.conv("quant_conv", x, self.code_dim, 1), dim=1)
        return torch.einsum("bchw,nc->bhwn", z, self.rows()).argmax(dim=-1)

    def decode(self, tokens: Tensor) -> Tensor:
        last = len(self.multipliers) - 1
        x = self.conv("post_quant_conv", self.rows()[tokens].permute(0, 3, 1, 2), self.features, 1)
        x = self.conv("decoder.conv_in", x, self.channels * self.multipliers[-1], 3, padding=1)
        x = self.middle("decoder.mid", x)
        for i, m in enumerate(reversed(self.multipliers)):
            x = self.level(
                f"decoder.conv_blocks.{i}", x, self.channels * m, self.blocks + 1, i == 0
            )
            if i < last:
                x = interpolate(x, scale_factor=2, mode="nearest")
                x = self.conv(f"decoder.conv_blocks.{i}.upsample.conv", x, x.shape[1], 3, padding=1)
        return self.end("decoder", x, 3)


@pytest.fixture(scope="module")
def llamagen() -> LlamaGen:
    network = LlamaGen((1, 1, 2), 2, channels=32, features=12, codes=40)
    network.decode(network.encode(frames().flatten(0, 1)))
    return network


@pytest.fixture
def released(llamagen: LlamaGen, tmp_path: Path) -> Path:
    state = {**llamagen.state, "quantize.codebook_used": torch.zeros(65536)}
    torch.save({"model": state}, tmp_path / "vq.pt")
    return tmp_path / "vq.pt"


def rewritten(path: Path, change: Callable[[State], object]) -> Path:
    state = torch.load(path, weights_only=True)["model"]
    change(state)
    torch.save({"model": state}, path)
    return path


# --- its file -------------------------------------------------------------------------------------


def test_a_released_file_gives_the_same_tokens_and_pictures(
    llamagen: LlamaGen, released: Path
) -> None:
    found = read_llamagen(released, image_size=(16, 24))
    assert found.config == CONFIG
    ours = VQTokenizer(found.config).eval()
    ours.load_state_dict(found.state)
    video = frames(3, 2, (32, 24))
    tokens = ours.encode(video)
    assert torch.equal(tokens.flatten(0, 1), llamagen.encode(video.flatten(0, 1)))
    assert len(tokens.unique()) > 5
    torch.testing.assert_close(
        ours.draw(ours.quantizer.lookup(tokens.flatten(0, 1))),
        llamagen.decode(tokens.flatten(0, 1)),
    )


def test_every_tensor_is_accounted_for(released: Path) -> None:
    count = len(tokenizer().state_dict())
    assert read_llamagen(released).report.splitlines() == [
        f"tokenizer: {count} of {count + 1} tensors used",
        "left out: quantize.codebook_used, a log of the codes that training saw last",
    ]
    payload = {**torch.load(released, weights_only=True), "steps": 3}
    assert "not read: steps" in read_llamagen(released, payload).report


def test_the_sizes_of_the_released_file_are_read_from_its_tensors() -> None:
    with torch.device("meta"):
        state = to_reference(VQTokenizer(VQConfig()).state_dict())
    found = read_llamagen(Path("vq_ds16_c2i.pt"), {"model": state}, image_size=(288, 512))
    assert found.config == VQConfig(image_size=(288, 512))


def test_what_is_written_is_read_back_and_has_all_their_names(
    released: Path, tmp_path: Path
) -> None:
    found = read_llamagen(released)
    write_llamagen(tmp_path / "again.pt", found.state)
    theirs, again = (
        torch.load(p, weights_only=True)["model"] for p in (released, tmp_path / "again.pt")
    )
    assert set(theirs) == set(again)
    assert all(torch.equal(theirs[name], again[name]) for name in theirs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.pt", "vq.pt"]


def test_the_command_line_converts_both_ways(released: Path, tmp_path: Path) -> None:
    run(["weights", "convert", str(released), "--out", str(tmp_path / "ours"), "--grid", "4", "6"])
    assert load_checkpoint(tmp_path / "ours").family == "vq"
    run(
        [
            "weights",
            "convert",
            str(tmp_path / "ours"),
            "--out",
            str(tmp_path / "back.pt"),
            "--to",
            "reference",
        ]
    )
    theirs, back = (
        torch.load(p, weights_only=True)["model"] for p in (released, tmp_path / "back.pt")
    )
    assert theirs.keys() == back.keys()
    assert all(torch.equal(theirs[name], back[name]) for name in theirs)


def test_names_go_there_and_back_for_any_number_of_levels() -> None:
    for multipliers in [(1,), (1, 2), (1, 2, 2, 4)]:
        with torch.device("meta"):
            ours = VQTokenizer(VQConfig(multipliers=multipliers, blocks=1)).state_dict()
        back = to_native(to_reference(ours))
        assert set(back) == set(ours)
        assert all(back[name] is ours[name] for name in ours)


def test_it_becomes_a_checkpoint_of_ours(released: Path, tmp_path: Path) -> None:
    found = read_llamagen(released, image_size=(16, 24))
    save_checkpoint(tmp_path / "ours", family="vq", config=found.config, state=found.state)
    built = build(load_checkpoint(tmp_path / "ours"))
    assert isinstance(built, VQTokenizer)
    expected = VQTokenizer(found.config).eval()
    expected.load_state_dict(found.state)
    assert torch.equal(built.encode(frames()), expected.encode(frames()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update({"encoder.conv_blocks.0.res.0.conv3.weight": torch.zeros(1)}), "conv3"),
        (
            lambda s: s.update({"encoder.conv_blocks.0.upsample.conv.weight": torch.zeros(1)}),
            "upsample",
        ),
        (
            lambda s: s.pop("decoder.mid.1.proj_out.bias"),
            "1 missing.*decoder.middle.attention.out.bias",
        ),
        (lambda s: s.pop("quantize.embedding.weight"), "lacks what we call quantizer.weight"),
        (lambda s: s.update({"quant_conv.bias": torch.zeros(5)}), "another shape.*to_code.bias"),
    ],
)
def test_a_file_that_is_not_whole_is_told(
    released: Path, change: Callable[[State], object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        read_llamagen(rewritten(released, change))


def test_other_files_are_no_llamagen(tmp_path: Path) -> None:
    for payload in (
        {"model": {"decoder.up.0.block.0.norm1.weight": torch.zeros(1)}},
        {"model": 3},
        [1],
        {},
    ):
        assert not is_llamagen(payload)
        with pytest.raises(UserError, match="under the key 'model'"):
            read_llamagen(tmp_path / "other.pt", payload)
    with pytest.raises(UserError, match="no file"):
        read_llamagen(tmp_path / "absent.pt")


# --- TorchScript ----------------------------------------------------------------------------------


class Half(nn.Module):
    """One side of a tokenizer, or any other function, to be traced."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def script(
    path: Path, function: Callable[[Tensor], Any], example: Tensor, module: nn.Module | None = None
) -> Path:
    traced: Any = torch.jit.trace(
        Half(module or nn.Identity(), function).eval(), example, check_trace=False
    )
    traced.save(str(path))
    return path


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, VQTokenizer]:
    """Encoder and decoder as files, which no test changes."""
    native, folder = tokenizer(), tmp_path_factory.mktemp("scripts")
    tokens = torch.zeros(2, 4, 6, dtype=torch.long)
    encoder = script(
        folder / "encoder.jit",
        lambda x: native.quantizer.encode(native.latents(x)),
        frames()[:, 0],
        native,
    )
    decoder = script(
        folder / "decoder.jit", lambda z: native.draw(native.quantizer.lookup(z)), tokens, native
    )
    return encoder, decoder, native


def opened(encoder: Path, decoder: Path | None = None) -> TorchScriptTokenizer:
    return TorchScriptTokenizer(encoder, decoder, vocab=40, stride=4)


def test_torchscript_files_do_what_the_network_does(
    scripts: tuple[Path, Path, VQTokenizer],
) -> None:
    encoder, decoder, native = scripts
    released = opened(encoder, decoder)
    assert isinstance(released, Tokenizer)
    assert released.vocab == 40
    video = frames(1, 2)
    tokens = released.encode(video)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, native.encode(video))
    torch.testing.assert_close(released.decode(tokens), native.decode(tokens))


def test_the_hash_names_the_encoders_content(
    scripts: tuple[Path, Path, VQTokenizer], tmp_path: Path
) -> None:
    encoder, decoder, _ = scripts
    renamed = tmp_path / "renamed.jit"
    renamed.write_bytes(encoder.read_bytes())
    assert opened(encoder, decoder).hash == opened(renamed).hash != opened(decoder).hash
    assert opened(encoder).hash.startswith("sha256:")


def test_without_a_decoder_there_are_only_tokens(scripts: tuple[Path, Path, VQTokenizer]) -> None:
    half = opened(scripts[0])
    with pytest.raises(UserError, match="without a decoder"):
        half.decode(half.encode(frames(1, 2)))


def test_swapped_files_are_told(scripts: tuple[Path, Path, VQTokenizer]) -> None:
    encoder, decoder, _ = scripts
    swapped = opened(decoder, encoder)
    with pytest.raises(UserError, match="swapped"):
        swapped.encode(frames(1, 2))
    with pytest.raises(UserError, match="swapped"):
        swapped.decode(torch.zeros(1, 2, 4, 6, dtype=torch.long))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x[:, 0, ::4, ::4], "integers"),
        (lambda x: x[:, 0, ::8, ::8].long(), r"\(2, 4, 6\), found torch.int64 \(2, 2, 3\)"),
        (lambda x: x[:, 0, ::4, ::4].long().flatten(), "found torch.int64"),
        (lambda x: x[:, 0, ::4, ::4].long() + 40, r"0\.\.39, found 40"),
        (lambda x: (x, x), "one tensor, found tuple"),
    ],
)
def test_an_encoder_that_returns_no_tokens_is_told(
    function: Callable[[Tensor], Any], said: str, tmp_path: Path
) -> None:
    path = script(tmp_path / "odd.jit", function, torch.zeros(2, 3, 16, 24))
    with pytest.raises(UserError, match=said):
        opened(path).encode(torch.zeros(1, 2, 3, 16, 24))


def test_a_decoder_that_returns_no_pictures_is_told(
    scripts: tuple[Path, Path, VQTokenizer], tmp_path: Path
) -> None:
    tokens = torch.zeros(2, 4, 6, dtype=torch.long)
    path = script(tmp_path / "odd.jit", lambda z: z[:, None].float(), tokens)
    with pytest.raises(UserError, match=r"\(2, 3, 16, 24\)"):
        opened(scripts[0], path).decode(tokens[None])


def test_wrong_input_is_told(scripts: tuple[Path, Path, VQTokenizer]) -> None:
    released = opened(*scripts[:2])
    with pytest.raises(ValueError, match=r"\(B, T, 3, H, W\)"):
        released.encode(frames()[0])
    with pytest.raises(ValueError, match=r"\(B, T, h, w\)"):
        released.decode(torch.zeros(1, 1, 4, 6))
    with pytest.raises(UserError, match="found 40"):
        released.decode(torch.full((1, 2, 4, 6), 40))


def test_files_that_are_no_torchscript_are_told(
    scripts: tuple[Path, Path, VQTokenizer], tmp_path: Path
) -> None:
    encoder, decoder, _ = scripts
    (tmp_path / "text.jit").write_text("hello")
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.jit")
    (tmp_path / "cut.jit").write_bytes(encoder.read_bytes()[:-2000])
    for name in ("text.jit", "weights.jit", "cut.jit"):
        with pytest.raises(UserError, match=f"{name} is damaged or no TorchScript file") as error:
            opened(tmp_path / name, decoder)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no file"):
        opened(encoder, tmp_path / "absent.jit")
