"""VQ-KD: the codebook on the sphere, the transformer around it,
learning from a teacher, and the released file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from foreact.checkpoints.format import build, load_checkpoint
from foreact.checkpoints.verify import verify
from foreact.errors import UserError
from foreact.families.codes.released.vqkd import read_vqkd
from foreact.families.codes.released.vqkd_names import to_native
from foreact.families.driving.evals.driving_video import Imaginer
from foreact.released.convert import convert
from foreact.tokenizers.cosine_codebook import CosineCodebook
from foreact.tokenizers.images import to_legacy_range
from foreact.tokenizers.vit import ViT
from foreact.tokenizers.vqkd import VQKD, VQKDConfig
from foreact.types import Batch, Codes, Tokenizer, to_model_range

TINY = VQKDConfig(
    patch=4,
    width=16,
    depth=2,
    heads=2,
    mlp_ratio=2,
    codes=12,
    code_dim=4,
    features=3,
    position_grid=(2, 3),
    image_size=(8, 12),
)
RNG = torch.Generator()


def mean_colours(images: Tensor) -> Tensor:
    """A teacher that sees the mean colour of each patch, in [1,
    3] so that it always has a direction.
    """
    return (avg_pool2d(images, 4) + 2.0).flatten(2).transpose(1, 2)


def tiny(seed: int = 0, **changes: Any) -> VQKD:
    torch.manual_seed(seed)
    return VQKD(dataclasses.replace(TINY, **changes), teacher=mean_colours)


def pictures(n: int, seed: int = 0) -> Tensor:
    """uint8 (n, 1, 3, 8, 12): patches of random plain colours."""
    colours = torch.randint(0, 256, (n, 1, 3, 2, 3), generator=torch.Generator().manual_seed(seed))
    return colours.to(torch.uint8).repeat_interleave(4, -1).repeat_interleave(4, -2)


def on_sphere(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


# --- the codebook ---------------------------------------------------------------------------------


def plane_book() -> CosineCodebook:
    """East, north and west in the plane."""
    book = CosineCodebook(3, 2, decay=0.75)
    book.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    return book


def test_rows_turn_towards_their_latents_after_the_look_up() -> None:
    book = plane_book()
    latents = torch.tensor([[2.0, 0.0], [6.0, 8.0], [0.6, 0.8]]).T.view(1, 2, 1, 3)
    found = book(latents)
    assert found.codes.flatten().tolist() == [0, 1, 1]
    assert found.values[0, :, 0, 2].tolist() == [0.0, 1.0], "the row from before the step"
    book.after_step()
    north = normalize(0.75 * torch.tensor([0.0, 1.0]) + 0.25 * torch.tensor([0.6, 0.8]), dim=0)
    torch.testing.assert_close(
        book.weight, torch.stack([torch.tensor([1.0, 0.0]), north, torch.tensor([-1.0, 0.0])])
    )
    torch.testing.assert_close(book.cluster_size, 0.25 * torch.tensor([1.0, 2.0, 0.0]))


def test_micro_batches_of_a_step_count_as_one_batch() -> None:
    z = torch.randn(4, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    books = []
    for parts in ((z,), z.split(1), z.split(3)):
        torch.manual_seed(0)
        book = CosineCodebook(5, 4, decay=0.9)
        for _ in range(2):
            for part in parts:
                book(part)
            book.after_step()
        books.append(book)
    for other in books[1:]:
        torch.testing.assert_close(other.state_dict(), books[0].state_dict())


def test_nothing_changes_in_evaluation_or_before_the_step_ends() -> None:
    book = CosineCodebook(5, 4, decay=0.9)
    before = {name: value.clone() for name, value in book.state_dict().items()}
    z = torch.randn(2, 4, 2, 3)
    book.eval()(z)
    assert not book.step_sums
    book.train()(z)
    assert sum(total.sum() for total in book.step_sums[:1]) == 12
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())


@given(
    codes=st.integers(1, 9), n=st.integers(1, 5), decay=st.floats(0, 0.99), seed=st.integers(0, 99)
)
@settings(max_examples=25, deadline=None)
def test_rows_stay_on_the_sphere_and_counts_follow_the_latents(
    codes: int, n: int, decay: float, seed: int
) -> None:
    torch.manual_seed(seed)
    book = CosineCodebook(codes, 3, decay=decay)
    for _ in range(3):
        book(torch.randn(n, 3, 2, 2))
        book.after_step()
    torch.testing.assert_close(book.weight.norm(dim=1), torch.ones(codes))
    torch.testing.assert_close(book.cluster_size.sum(), torch.tensor(4.0 * n * (1 - decay**3)))


def test_the_gradient_goes_to_the_latents_and_never_to_the_rows() -> None:
    book = plane_book()
    z = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).requires_grad_(True)
    found = book(z)
    found.commitment.backward()
    assert not list(book.parameters())
    assert z.grad is not None
    # Along the circle towards north, (0, 1); its length is the slope of the squared distance over
    # |z|.
    assert (z.grad.flatten() @ torch.tensor([3.0, 4.0])).abs() < 1e-6
    assert z.grad[0, 0, 0, 0] > 0 > z.grad[0, 1, 0, 0]


def test_kmeans_puts_rows_into_the_middle_of_clusters() -> None:
    centres = torch.eye(4)[:3]
    spread = 0.1 * torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    vectors = normalize(centres[:, None] + spread, dim=-1)
    means = normalize(vectors.mean(dim=1), dim=-1)
    book = CosineCodebook(3, 4, decay=0.9)
    order = torch.tensor([0, 60, 140])  # one of each cluster
    hits = book.initialise(vectors.view(1, 150, 4).transpose(1, 2).unflatten(2, (15, 10)), order)
    torch.testing.assert_close(book.weight, means)
    assert hits.tolist() == [50, 50, 50]
    assert book.initialised
    with pytest.raises(ValueError, match="3 rows cannot start from 2 latents"):
        book.initialise(torch.randn(1, 4, 1, 2), torch.arange(2))


# --- the transformer ------------------------------------------------------------------------------


def vit(grid: tuple[int, int] = (2, 3), **changes: int) -> ViT:
    torch.manual_seed(0)
    return ViT(
        **{
            "channels": 3,
            "patch": 4,
            "width": 8,
            "depth": 2,
            "heads": 2,
            "mlp_ratio": 2,
            **changes,
        },
        grid=grid,
    )


def test_patches_come_row_by_row() -> None:
    model = vit(depth=0)
    images = torch.randn(1, 3, 8, 12)
    tokens = model(images)
    with torch.no_grad():
        images[..., 4:, 8:] += 1.0  # row 1, column 2 of the 2 x 3 patches
    changed = (model(images) != tokens).any(dim=-1).flatten()
    assert changed.tolist() == [False] * 5 + [True]


def test_positions_of_another_grid_lie_between_those_of_the_table() -> None:
    model = vit(grid=(3, 3), width=2)
    row, column = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
    with torch.no_grad():
        model.positions[0, 1:] = torch.stack([row, column], dim=-1).flatten(0, 1)
    assert model.positions_of((3, 3)) is model.positions
    found = model.positions_of((6, 4))
    assert torch.equal(found[:, 0], model.positions[:, 0]), "the class token has no place"
    rows, columns = found[0, 1:].unflatten(0, (6, 4)).unbind(-1)
    assert (rows.diff(dim=0) > 0).all()
    assert (columns.diff(dim=1) > 0).all()
    torch.testing.assert_close(rows, rows[:, :1].expand(-1, 4))
    # The middle of the table is the middle of the picture, but for the tenth of a patch in the
    # scale.
    assert abs(rows.mean() - 1.0) < 0.1


def test_the_published_size_is_the_published_size() -> None:
    with torch.device("meta"):
        model = VQKD(VQKDConfig())
    assert sum(p.numel() for p in model.parameters()) == 94_851_872
    # Of the file's 194 tensors we leave two buffers that nobody reads, as large as codebook and
    # cluster sizes.
    assert len(model.state_dict()) == 192
    unread = 8192 * 32 + 8192
    assert round(4 * (sum(t.numel() for t in model.state_dict().values()) + unread) / 1e6) == 382


# --- the tokenizer --------------------------------------------------------------------------------


def test_it_is_an_encoder_without_a_way_back() -> None:
    model = tiny().eval()
    assert isinstance(model, Codes)
    assert not isinstance(model, Tokenizer)
    assert (model.vocab, model.grid, tuple(model.codebook.shape)) == (12, (2, 3), (12, 4))
    codes = model.encode(torch.rand(2, 5, 3, 8, 12) * 2 - 1)
    assert (codes.dtype, tuple(codes.shape)) == (torch.int64, (2, 5, 2, 3))
    assert tuple(model.encode(torch.rand(1, 1, 3, 16, 4)).shape) == (1, 1, 4, 1)


def test_every_frame_is_encoded_by_itself() -> None:
    model = tiny().eval()
    video = torch.rand(2, 3, 3, 8, 12) * 2 - 1
    alone = torch.stack(
        [torch.stack([model.encode(f[None, None])[0, 0] for f in clip]) for clip in video]
    )
    assert torch.equal(model.encode(video), alone)


def test_legacy_preprocessing_shows_the_network_legacy_values() -> None:
    video = to_model_range(pictures(4))
    plain, legacy = tiny().eval(), tiny(preprocessing="legacy").eval()
    torch.testing.assert_close(
        legacy.latents(video[:, 0]), plain.latents(to_legacy_range(video[:, 0]))
    )
    assert (legacy.latents(video[:, 0]) - plain.latents(video[:, 0])).abs().max() > 1e-3


@pytest.mark.parametrize(
    "video",
    [
        torch.zeros(1, 1, 3, 8, 12, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 12),
        torch.zeros(1, 1, 3, 9, 12),
    ],
)
def test_what_cannot_be_encoded_is_refused(video: Tensor) -> None:
    with pytest.raises(ValueError, match="multiples of 4, found"):
        tiny().encode(video)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 3}, "divide its width 16"),
        ({"image_size": (8, 10)}, "multiples of its patch of 4"),
        ({"codes": 0}, "codes should be at least 1"),
        ({"preprocessing": "sideways"}, "'symmetric' or 'legacy'"),
        ({"codebook_decay": 1.0}, r"in \[0, 1\)"),
        ({"commitment_weight": -1.0}, ">= 0"),
        ({"position_grid": (0, 3)}, "at least 1 x 1"),
    ],
)
def test_impossible_sizes_are_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dataclasses.replace(TINY, **changes)


# --- learning -------------------------------------------------------------------------------------


def test_it_learns_what_the_teacher_sees() -> None:
    model = tiny(codes=32)
    batch = Batch(video={"front": pictures(16)})
    optimizer = torch.optim.AdamW(model.param_groups(3e-3, 0.0))
    model.quantizer.initialise(model.latents(model.frames(batch)).detach(), torch.randperm(96))
    distances = []
    for _ in range(80):
        out = model(batch, rng=RNG)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        model.after_step()
        distances.append(out.logs["distance"].item())
    assert distances[-1] < 0.5 * distances[0]
    assert set(out.logs) == {"distance", "commitment", "codebook_usage", "perplexity"}
    assert 0 < out.logs["codebook_usage"] <= 1 <= out.logs["perplexity"] <= 32


def test_every_parameter_learns_in_every_forward() -> None:
    model = tiny()
    model(Batch(video={"front": pictures(8)}), rng=RNG).loss.backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ] == []
    groups = model.param_groups(1e-3, 0.1)
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters()}
    decayed = {id(p) for p in groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "encoder.blocks.0.attention.qkv.weight" in names
    assert not [n for n in names if "position" in n or "token" in n or "bias" in n or "norm" in n]


def test_the_teacher_sees_frames_in_the_model_range_and_stays_outside() -> None:
    seen = []

    class Watching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(3))

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return mean_colours(images) * self.gain

    teacher = Watching()
    model = VQKD(dataclasses.replace(TINY, preprocessing="legacy"), teacher=teacher)
    video = pictures(3)
    model(Batch(video={"front": video}), rng=RNG).loss.backward()
    torch.testing.assert_close(seen[0], to_model_range(video[:, 0]))
    assert teacher.gain.grad is None
    assert not [
        name for name in (*model.state_dict(), *dict(model.named_parameters())) if "teacher" in name
    ]


def test_padding_takes_no_part() -> None:
    video = pictures(4).view(2, 2, 3, 8, 12)
    valid = torch.tensor([[True, False], [True, True]])
    model = tiny().eval()
    masked = model(Batch(video={"front": video}, valid={"front": valid}), rng=RNG).loss
    chosen = model(Batch(video={"front": video[valid][:, None]}), rng=RNG).loss
    torch.testing.assert_close(masked, chosen)
    with pytest.raises(UserError, match="no valid frame"):
        model(
            Batch(video={"front": video}, valid={"front": torch.zeros(2, 2, dtype=torch.bool)}),
            rng=RNG,
        )


def test_a_teacher_that_does_not_fit_is_told() -> None:
    batch = Batch(video={"front": pictures(2)})
    with pytest.raises(UserError, match="learns from a teacher"):
        VQKD(TINY)(batch, rng=RNG)
    wrong: list[tuple[Any, str]] = [
        (lambda images: images.flatten(1), r"\(2, 288\)"),
        (lambda images: mean_colours(images)[:, 1:], r"\(2, 5, 3\)"),
        (lambda images: (images,), "tuple"),
    ]
    for teacher, found in wrong:
        with pytest.raises(UserError, match=rf"= \(2, 6, 3\) .*found {found};"):
            VQKD(TINY, teacher=teacher)(batch, rng=RNG)


# --- files ----------------------------------------------------------------------------------------

REFERENCE = dataclasses.replace(
    TINY, width=64, heads=1, position_grid=(2, 2), image_size=(8, 8), mlp_ratio=3
)

_THEIRS = (  # our names -> BEiT v2's, in the order to replace them
    ("attention.qkv", "attn.qkv"),
    ("attention.query_bias", "attn.q_bias"),
    ("attention.value_bias", "attn.v_bias"),
    ("attention.out", "attn.proj"),
    (".up.", ".mlp.fc1."),
    (".down.", ".mlp.fc2."),
    ("class_token", "cls_token"),
    ("positions", "pos_embed"),
    ("patches.", "patch_embed.proj."),
    ("coder.norm.", "coder.fc_norm."),
    ("to_code.", "encode_task_layer."),
    ("to_features.", "decode_task_layer."),
    ("quantizer.weight", "quantize.embedding.weight"),
    ("quantizer.cluster_size", "quantize.cluster_size"),
    ("quantizer.initialised", "quantize.embedding.initted"),
)


def released(model: VQKD, *, drop: str = "") -> dict[str, Tensor]:
    """The tensors of a model as the release has them, with the leftovers of its training."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        for ours, theirs in _THEIRS:
            name = name.replace(ours, theirs)
        state[name] = value.clone()
    state["quantize.embedding.initted"] = torch.ones(1)
    state["quantize.embedding.cluster_size"] = torch.zeros(len(model.codebook))
    state["quantize.embedding.embed_avg"] = torch.zeros_like(model.codebook)
    extra = {
        "teacher_model.blocks.0.weight": torch.zeros(2),
        "scaling_layer.shift": torch.zeros(3),
        "loss.ratio": torch.zeros(1),
    }
    return {name: value for name, value in (state | extra).items() if name != drop}


def reference_model(**changes: Any) -> VQKD:
    torch.manual_seed(3)
    return VQKD(dataclasses.replace(REFERENCE, **changes)).eval()


@pytest.mark.parametrize("entry", ["model", "state_dict"])
def test_a_released_file_becomes_the_same_tokenizer(tmp_path: Path, entry: str) -> None:
    model = reference_model(preprocessing="legacy")
    torch.save({entry: released(model), "epoch": 99}, tmp_path / "vqkd.pth")
    found = read_vqkd(tmp_path / "vqkd.pth")
    assert found.config == model.config
    report = found.report.splitlines()
    assert report[0].startswith(
        f"tokenizer: {len(model.state_dict())} of {len(model.state_dict()) + 5} tensors used"
    )
    assert "3 tensors of training" in report[1]
    assert "2 buffers" in report[2]
    assert report[3] == "not read: epoch"
    convert(tmp_path / "vqkd.pth", tmp_path / "ours")
    ours = build(load_checkpoint(tmp_path / "ours"))
    assert isinstance(ours, VQKD)
    assert ours.quantizer.initialised
    video = to_model_range(pictures(5)[..., :8])
    assert torch.equal(ours.encode(video), model.encode(video))
    assert "family     vqkd" in verify(tmp_path / "ours")
    convert(
        tmp_path / "vqkd.pth",
        tmp_path / "half",
        preprocessing="symmetric",
        grid=(3, 1),
        dtype=torch.float16,
    )
    half = build(load_checkpoint(tmp_path / "half"))
    assert isinstance(half, VQKD)
    assert (half.config.preprocessing, half.grid) == ("symmetric", (3, 1))


def test_the_use_of_a_released_file_is_chosen() -> None:
    payload = {"model": released(reference_model())}
    there = Path("vqkd.pth")
    found = read_vqkd(there, payload, grid=(5, 3), preprocessing="symmetric")
    assert (found.config.preprocessing, found.config.image_size) == ("symmetric", (20, 12))
    assert found.config.position_grid == (2, 2)
    assert read_vqkd(there, payload, heads=4).config.heads == 4
    narrow = {"model": released(reference_model(width=16))}
    with pytest.raises(UserError, match="16 channels wide, which no published size is"):
        read_vqkd(there, narrow)
    assert read_vqkd(there, narrow, heads=2).config.width == 16


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (
            {"model": released(reference_model(), drop="encoder.blocks.1.attn.q_bias")},
            r"1 missing \(encoder.blocks.1.attention.query_bias\)",
        ),
        (
            {"model": released(reference_model(), drop="encoder.patch_embed.proj.weight")},
            "lacks .*encoder.patches",
        ),
        (
            {"model": released(reference_model()) | {"encoder.rel_pos": torch.zeros(1)}},
            "not belong.*encoder.rel_pos",
        ),
        ({"model": {"conv.weight": torch.zeros(1)}}, "should hold a VQ-KD tokenizer"),
        ([1, 2], "should hold a VQ-KD tokenizer"),
        ({"model": {"encode_task_layer.0.weight": 1}}, "should hold a VQ-KD tokenizer"),
        (
            {"model": released(reference_model()) | {"quantize.embedding.initted": torch.zeros(3)}},
            "1 of another shape .quantizer.initialised",
        ),
    ],
)
def test_a_file_that_is_not_all_of_a_tokenizer_is_refused(payload: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_vqkd(Path("vqkd.pth"), payload)


def test_no_released_tensor_is_lost_on_the_way() -> None:
    state = released(reference_model())
    assert len(to_native(state)) == len(state) - 5


def test_pictures_of_codes_without_a_way_back_are_refused() -> None:
    with pytest.raises(UserError, match="this tokenizer only encodes"):
        Imaginer(tokenizer=tiny(), camera="front", context=1, generate=None, device="cpu")
