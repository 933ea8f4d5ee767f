"""`foreact tokenize` on one process, many, and Ray: the same stream,
checked, resumed by shard, loud when it fails.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import Forked
from torch import Tensor, nn

from foreact.checkpoints.format import load_checkpoint, save_checkpoint
from foreact.checkpoints.tokenizers import LoadedTokenizer, open_tokenizer
from foreact.cli import main
from foreact.data.stores import layout
from foreact.data.stores.store import StoreWriter, open_store
from foreact.errors import UserError
from foreact.families.codes.tokenize import own_device, tokenize
from foreact.families.codes.tokenize_ray import connected, encode_with_ray, import_ray
from foreact.runs.encoding import StreamEncoder, encode_stream
from foreact.runs.ranks import Ranks
from foreact.tokenizers.kl_vae import KLVAE, KLVAEConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.types import StreamSpec

SPEC = StreamSpec(cameras={"img": (16, 24)}, fps=10.0)
LENGTHS = (30, 50, 23)
TOTAL = sum(LENGTHS)
KL = KLVAEConfig(
    channels=4,
    multipliers=(1, 1, 1),
    blocks=1,
    latent_channels=4,
    norm_groups=4,
    image_size=(8, 8),
    scale=0.5,
)
VQ = VQConfig(
    channels=4,
    multipliers=(1, 1, 1),
    blocks=1,
    features=4,
    codes=300,
    code_dim=4,
    norm_groups=4,
    image_size=(8, 12),
)


class Toy(nn.Module):
    """Tokens that say which frame they come from."""

    vocab: int | None

    def __init__(
        self, vocab: int | None = 4096, *, fail_after: int | None = None, pause: float = 0.0
    ) -> None:
        super().__init__()
        self.vocab, self.fail_after, self.pause, self.calls = vocab, fail_after, pause, 0

    def encode(self, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        self.calls += 1
        time.sleep(self.pause)
        if self.fail_after is not None and self.calls > self.fail_after:
            raise UserError("The toy is broken.")
        cells = ((video.mean(2) + 1.0) * 127.5).round().long()[..., ::4, ::4]
        return cells * 16 if self.vocab is not None else cells[:, :, None].float()

    def decode(self, z: Tensor) -> Tensor:
        return z.float()


def toy_codes(frames: np.ndarray) -> np.ndarray:
    return (frames[:, ::4, ::4, 0].astype(np.uint16) * 16)[: len(frames)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "foreact.data.stores.layout.CHUNK_BYTES", 8 * 2 * 24
    )  # 8 rows of 4 x 6 tokens


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Grey, one value per cell of 4 x 4 pixels."""
    cells = np.random.default_rng(0).integers(0, 256, (TOTAL, 4, 6, 1), dtype=np.uint8)
    return np.broadcast_to(cells.repeat(4, 1).repeat(4, 2), (TOTAL, 16, 24, 3)).copy()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, frames: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("empty") / "s.zarr"
    with StoreWriter(path, SPEC) as writer:
        for episode in np.split(frames, np.cumsum(LENGTHS)[:-1]):
            writer.append({"img": episode})
    return path


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty, tmp_path / "s.zarr"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_checkpoint(root / "kl_vae", family="kl_vae", config=KL, state=KLVAE(KL).state_dict())
    save_checkpoint(root / "vq", family="vq", config=VQ, state=VQTokenizer(VQ).state_dict())
    return {name: root / name for name in ("kl_vae", "vq")}


def read(path: Path, stream: str) -> np.ndarray:
    return open_store(path).gather(stream, np.arange(TOTAL))


def notes(path: Path, stream: str) -> dict:
    return open_store(path)._array(f"data/{stream}").attrs.asdict()


def toy_encoder(path: Path, toy: Toy, **options: object) -> StreamEncoder:
    given: dict = {"batch_size": 5, **options}
    return StreamEncoder(open_store(path), "img", LoadedTokenizer(toy, "sha256:toy", None), **given)


# --- one process ----------------------------------------------------------------------------------


def test_latents_of_an_autoencoder(
    store: Path, weights: dict[str, Path], capsys: pytest.CaptureFixture[str], frames: np.ndarray
) -> None:
    main(
        [
            "tokenize",
            "--store",
            str(store),
            "--tokenizer",
            str(weights["kl_vae"]),
            "--batch-size",
            "7",
        ]
    )
    latents = read(store, "latents_img")
    assert latents.dtype == np.float16
    assert latents.shape == (TOTAL, 4, 2, 2)
    digest = load_checkpoint(weights["kl_vae"]).hash
    assert open_store(store).tokenizer_hash("latents_img") == digest
    assert notes(store, "latents_img") == {"tokenizer": digest, "precision": "fp32"}
    loaded = open_tokenizer(weights["kl_vae"])
    assert loaded.image_size == (8, 8)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(frames[40:43]).permute(0, 3, 1, 2).float() / 127.5 - 1,
        (8, 8),
        mode="bilinear",
    )
    with torch.no_grad():
        expected = loaded.tokenizer.encode(small[None])[0].numpy()
    np.testing.assert_allclose(latents[40:43], expected, atol=2e-3)
    said = capsys.readouterr().out
    assert "latents_img: 103 rows, checked; 103 frames in" in said
    assert "frames/s" in said
    main(["tokenize", "--store", str(store), "--tokenizer", str(weights["kl_vae"])])
    assert "nothing was left to encode" in capsys.readouterr().out


def test_tokens_of_a_codebook(store: Path, weights: dict[str, Path]) -> None:
    main(["tokenize", "--store", str(store), "--tokenizer", str(weights["vq"]), "--camera", "img"])
    tokens = read(store, "tokens_img")
    assert tokens.dtype == np.uint16
    assert tokens.shape == (TOTAL, 2, 3)
    assert len(np.unique(tokens)) > 3
    assert tokens.max() < 300
    assert "latents_img" not in os.listdir(store / "data")


def test_tokens_of_a_torchscript_encoder(store: Path, tmp_path: Path) -> None:
    class Encoder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return ((images.mean(1) + 1.0) * 127.5).round().long()[:, ::16, ::16]

    file = tmp_path / "encoder.jit"
    torch.jit.script(Encoder()).save(str(file))
    with pytest.raises(
        UserError, match="should return integers"
    ):  # 24 pixels are no multiple of the stride 16
        StreamEncoder(open_store(store), "img", open_tokenizer(file))
    with StoreWriter(
        tmp_path / "wide.zarr", StreamSpec(cameras={"img": (16, 32)}, fps=10.0)
    ) as writer:
        writer.append({"img": np.full((5, 16, 32, 3), 9, np.uint8)})
    main(["tokenize", "--store", str(tmp_path / "wide.zarr"), "--tokenizer", str(file)])
    tokens = open_store(tmp_path / "wide.zarr").gather("tokens_img", np.arange(5))
    np.testing.assert_array_equal(tokens, np.full((5, 1, 2), 9, np.uint16))


def test_precision_is_recorded_and_another_one_encodes_anew(
    store: Path, weights: dict[str, Path]
) -> None:
    words = ["tokenize", "--store", str(store), "--tokenizer", str(weights["kl_vae"])]
    main(words)
    full = read(store, "latents_img")
    main([*words, "--precision", "bf16"])
    half = read(store, "latents_img")
    assert notes(store, "latents_img")["precision"] == "bf16"
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(full, half, atol=0.05)
    assert not [name for name in os.listdir(store / "data") if "partial" in name]


def test_shards_are_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "0_walker.hdf5").touch()
    with pytest.raises(UserError, match="not written to; `foreact data import` makes a store"):
        tokenize(tmp_path)


def test_a_cut_run_goes_on_with_the_missing_shards(store: Path, frames: np.ndarray) -> None:
    broken = Toy(fail_after=8)
    with pytest.raises(UserError, match="The toy is broken"):
        encode_stream(toy_encoder(store, broken), shard_steps=8)
    whole = Toy()
    done = encode_stream(toy_encoder(store, whole), shard_steps=8)
    assert done.frames == TOTAL - 3 * 8  # two batches per shard, one call to learn the shape
    assert whole.calls == 1 + 2 * (-(-TOTAL // 8) - 3)
    np.testing.assert_array_equal(read(store, "tokens_img"), toy_codes(frames))


@pytest.mark.parametrize(
    ("vocab", "sentence"),
    [(2**16 + 1, "65537 does not fit"), (4000, r"in 0\.\.3999, found 40\d\d at step")],
)
def test_tokens_that_do_not_fit_are_refused(store: Path, vocab: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        encode_stream(toy_encoder(store, Toy(vocab), batch_size=64), shard_steps=TOTAL)
    assert "tokens_img" not in os.listdir(store / "data")


@pytest.mark.parametrize("value", [float("nan"), 1e5])
def test_latents_that_are_no_numbers_are_refused(
    store: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Toy, "encode", lambda self, video, rng=None: torch.full((1, video.shape[1], 2, 2, 2), value)
    )
    with pytest.raises(UserError, match=r"numbers within the range of float16, found .* at step 0"):
        toy_encoder(store, Toy(None))


def test_what_the_disk_lost_is_found_before_readers_see_it(store: Path, frames: np.ndarray) -> None:
    encoder = toy_encoder(store, Toy())
    for shard in encoder.stream.shards(16):
        encoder.fill(shard, lambda n: None)
    (encoder.stream.notes.parent / "3.0.0").write_bytes(b"")
    with pytest.raises(UserError, match=r"Rows 16..32 .* cannot be read back"):
        encoder.finish(16)
    assert "tokens_img" not in os.listdir(store / "data")
    again = encode_stream(toy_encoder(store, Toy()), shard_steps=16)
    assert again.frames == 16
    np.testing.assert_array_equal(read(store, "tokens_img"), toy_codes(frames))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--camera", "rear"], "has cameras ['img'], not 'rear'"),
        (["--shard-steps", "0"], "--shard-steps should be at least 1, found 0"),
        (["--batch-size", "0"], "--batch-size should be at least 1, found 0"),
        (
            ["--tokenizer", "uva-pusht"],
            "a 'uva', is no tokenizer; give a kl_vae, a vq, a vqkd or a musik",
        ),
        (["--tokenizer", "there-is-none.jit"], "There is no file there-is-none.jit"),
    ],
)
def test_bad_options(
    store: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["tokenize", "--store", str(store), *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len([line for line in said.splitlines() if line.startswith("foreact: ")]) == 1
    assert sorted(p for p in os.listdir(store / "data") if not p.startswith(".")) == ["img"]


# --- many processes -------------------------------------------------------------------------------


def in_threads(path: Path, toys: list[Toy], *, patience: float = 60.0) -> list[BaseException | int]:
    """What each of several ranks ends with: an error, or the number of frames."""
    ends: list[BaseException | int] = [0] * len(toys)

    def work(rank: int) -> None:
        ranks = Ranks(rank, len(toys), patience=patience)
        try:
            ends[rank] = encode_stream(
                toy_encoder(path, toys[rank]), shard_steps=8, ranks=ranks
            ).frames
        except BaseException as error:
            ends[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(toys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_ranks_share_the_shards(store: Path, frames: np.ndarray) -> None:
    toys = [Toy(), Toy(pause=0.02), Toy()]
    ends = in_threads(store, toys)
    assert all(isinstance(end, int) for end in ends)
    assert sum(toy.calls for toy in toys) == 3 + sum(
        -(-n // 5) for n in [8] * 12 + [7]
    )  # no frame twice
    np.testing.assert_array_equal(read(store, "tokens_img"), toy_codes(frames))
    assert (
        sorted(
            p
            for p in os.listdir(store / "data" / "tokens_img")
            if not p[0].isdigit() and p[0] != "."
        )
        == []
    )


def test_one_rank_that_fails_makes_all_fail(store: Path, frames: np.ndarray) -> None:
    ends = in_threads(store, [Toy(pause=0.05), Toy(pause=0.05, fail_after=3), Toy(pause=0.05)])
    assert [str(end) for end in ends if str(end) == "The toy is broken."] == [str(ends[1])]
    assert str(ends[0]) == str(ends[2]) == "Process 1 failed: The toy is broken."
    assert "tokens_img" not in os.listdir(store / "data")
    encode_stream(toy_encoder(store, Toy()), shard_steps=8)
    np.testing.assert_array_equal(read(store, "tokens_img"), toy_codes(frames))


def test_a_lost_rank_is_given_up(store: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"48 frames of the other 1 processes are not done, .* for 0.5 s; start again",
    ):
        encode_stream(toy_encoder(store, Toy()), shard_steps=16, ranks=Ranks(0, 2, patience=0.5))
    # Whoever comes next, in whatever number, does the rest.
    assert encode_stream(toy_encoder(store, Toy()), shard_steps=16).frames == 48


def test_each_process_of_a_machine_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_device(torch.device("cuda")) == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device(torch.device("cuda")) == torch.device("cuda:3")
    assert own_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert own_device(torch.device("cpu")) == torch.device("cpu")


def tokenize_slowly(pause: float, words: list[str]) -> None:
    """As a process: the command line, with a tokenizer that pauses before each batch."""
    layout.CHUNK_BYTES = 8 * 2 * 6
    encode = VQTokenizer.encode

    def slow(self: VQTokenizer, video: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        time.sleep(pause)
        return encode(self, video, rng=rng)

    VQTokenizer.encode = slow
    main(["tokenize", *words])


def launch(pause: float, *words: object, rank: int = 0, world: int = 1) -> Forked:
    env = {"RANK": str(rank), "WORLD_SIZE": str(world)}
    return Forked(tokenize_slowly, pause, list(map(str, words)), env=env)


def test_kill_9_of_one_of_two_processes_then_one_alone(
    store: Path, weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--store",
        store,
        "--tokenizer",
        weights["vq"],
        "--device",
        "cpu",
        "--shard-steps",
        8,
        "--patience",
        1,
    ]
    first, second = launch(0.0, *words, world=2), launch(0.2, *words, rank=1, world=2)
    second_mark = "8-16"  # shard 1 belongs to the second process
    deadline = time.monotonic() + 60
    while not any(
        (p / "done" / second_mark).exists() for p in (store / "data").glob("tokens_img.partial-*")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second.kill()
    assert first.wait() == 2
    assert "gave a sign of life for 1 s; start again, what was done is kept." in first.errors
    assert "tokens_img" not in os.listdir(store / "data")
    whole = Path(shutil.copytree(store, tmp_path / "whole.zarr"))
    main(["tokenize", *map(str, words)])
    frames = int(capsys.readouterr().out.split("checked; ")[1].split()[0])
    assert 0 < frames < TOTAL // 2  # at most what the killed process had left
    shutil.rmtree(next((whole / "data").glob("tokens_img.partial-*")))
    main(["tokenize", *map(str, ["--store", whole, *words[2:]])])
    np.testing.assert_array_equal(read(store, "tokens_img"), read(whole, "tokens_img"))


# --- Ray ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray, as the engine starts it, for all tests."""
    ray = import_ray()
    with connected(ray):
        assert ray.util.get_node_ip_address() == "127.0.0.1"
        yield
    assert not ray.is_initialized()


@pytest.mark.usefixtures("cluster")
def test_ray_goes_on_where_another_engine_stopped(
    store: Path, weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Path(shutil.copytree(store, tmp_path / "alone.zarr"))
    words = ["--tokenizer", str(weights["vq"]), "--device", "cpu", "--shard-steps", "16"]
    main(["tokenize", "--store", str(alone), *words])
    begun = StreamEncoder(open_store(store), "img", open_tokenizer(weights["vq"]))
    begun.fill(begun.stream.shards(16)[1], lambda n: None)
    capsys.readouterr()
    main(["tokenize", "--store", str(store), *words, "--engine", "ray"])
    assert (
        f"{TOTAL} rows, checked; {TOTAL - len(begun.stream.shards(16)[1])} frames in"
        in capsys.readouterr().out
    )
    np.testing.assert_array_equal(read(store, "tokens_img"), read(alone, "tokens_img"))
    main(["tokenize", "--store", str(store), *words, "--engine", "ray"])
    assert "nothing was left to encode" in capsys.readouterr().out


@pytest.mark.usefixtures("cluster")
def test_an_actor_that_fails_says_why(store: Path, weights: dict[str, Path]) -> None:
    encoder = StreamEncoder(open_store(store), "img", open_tokenizer(weights["vq"]))
    chunk = next(p for p in (store / "data" / "img").iterdir() if p.name.startswith("1."))
    chunk.unlink()
    with pytest.raises(UserError, match=r"An actor failed: The store .* is truncated: its chunk"):
        encode_with_ray(encoder, str(weights["vq"]), shard_steps=TOTAL)  # one shard, one actor
    assert "tokens_img" not in os.listdir(store / "data")


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_the_device_is_refused(store: Path, weights: dict[str, Path]) -> None:
    encoder = StreamEncoder(open_store(store), "img", open_tokenizer(weights["vq"]))
    with pytest.raises(UserError, match="The Ray cluster has no GPU; choose another --device"):
        encode_with_ray(encoder, str(weights["vq"]), device="cuda")


def test_without_ray_one_sentence(
    store: Path, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UserError, match=r"`--engine ray` needs Ray Data; run `pip install \"foreact\[ray\]\"`"
    ):
        tokenize(store, str(weights["vq"]), engine="ray")
