from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from foreact.errors import UserError
from foreact.families.driving.evals.dense import (
    Memory,
    ProbeConfig,
    build_memory,
    choose_patches,
    open_search,
    predict,
    probe,
)
from foreact.families.driving.evals.dense_metrics import Confusion, DepthErrors
from foreact.families.driving.evals.neighbours import ExactSearch, FaissSearch

PATCH = 4
COLOURS = torch.eye(3) * 2 - 0.5


def worlds(n: int, seed: int, grid: tuple[int, int] = (3, 4)) -> tuple[Tensor, Tensor]:
    """Pictures whose patches have the colour of their class, with
    noise: float (n, 3, H, W), uint8 (n, 1, H, W).
    """
    rng = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (n, 1, *grid), generator=rng)
    masks = classes.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    images = COLOURS[masks[:, 0]].movedim(-1, 1) + 0.05 * torch.randn(
        n, 3, *masks.shape[2:], generator=rng
    )
    return images, masks.to(torch.uint8)


def colours(images: Tensor) -> Tensor:
    """Mean colour of each patch, (B, P, 3)."""
    return functional.avg_pool2d(images, PATCH).flatten(2).mT


def draws(seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    return lambda n: torch.rand(n, generator=rng)


def config(**changes) -> ProbeConfig:
    return ProbeConfig(**{"classes": 3, "patch": PATCH, "neighbours": 3, **changes})


# --- the probe as a whole -------------------------------------------------------------------------


def test_features_that_tell_classes_apart_find_them_and_others_do_not() -> None:
    train, held_out = worlds(6, 0), worlds(4, 1)
    found = probe([train], [held_out], colours, config(), draws=draws())
    # Only the blend between neighbouring patches, which the upsampling makes, is uncertain.
    assert found.scores["mIoU"] > 0.6
    assert (found.memory, found.images) == (6 * 12, 4)
    blind = probe([train], [held_out], lambda x: torch.ones(len(x), 12, 3), config(), draws=draws())
    assert blind.scores["mIoU"] < 0.3
    assert json.loads(json.dumps(found.to_json()))["config"]["neighbours"] == 3


def test_a_picture_that_is_in_memory_gets_its_own_labels_back() -> None:
    images, masks = torch.randn(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    masks[0], masks[1] = 1, 2
    labels = []
    probe(
        [(images, masks)],
        [(images, masks)],
        colours,
        config(neighbours=1),
        draws=draws(),
        keep=lambda _images, _truth, predicted: labels.append(predicted),
    )
    assert torch.equal(torch.cat(labels), masks.long())


def test_depth_of_the_neighbours_is_found() -> None:
    images, masks = worlds(6, 0)
    depth = 0.2 + 0.3 * masks.float()
    found = probe(
        [(images, depth)], [(images, depth)], colours, config(task="depth"), draws=draws()
    )
    assert found.scores["abs_rel"] < 0.3
    assert found.scores["d3"] > 0.9
    assert found.iou == []
    blind = probe(
        [(images, depth)],
        [(images, depth)],
        lambda x: torch.ones(len(x), 12, 3),
        config(task="depth"),
        draws=draws(),
    )
    assert blind.scores["abs_rel"] > found.scores["abs_rel"]


@given(
    parts=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    per_image=st.sampled_from([None, 2]),
    task=st.sampled_from(["segmentation", "depth"]),
)
@settings(max_examples=20, deadline=None)
def test_batches_do_not_matter(parts, per_image, task) -> None:
    images, masks = worlds(sum(parts), 3)
    labels = masks if task == "segmentation" else masks.float() + images[:, :1] * 0.1
    settings_ = config(per_image=per_image, task=task)
    whole = build_memory([(images, labels)], colours, settings_, draws=draws(1))
    split = build_memory(
        zip(images.split(parts), labels.split(parts), strict=True),
        colours,
        settings_,
        draws=draws(1),
    )
    assert torch.equal(whole.features, split.features)
    assert torch.equal(whole.labels, split.labels)


# --- labels of patches ----------------------------------------------------------------------------


def half_labelled() -> tuple[Tensor, Tensor]:
    """One picture of 2 patches: the first half class 2 and
    half unlabelled, the second unlabelled.
    """
    mask = torch.full((1, 1, PATCH, 2 * PATCH), 255, dtype=torch.uint8)
    mask[..., : PATCH // 2] = 2
    return torch.randn(1, 3, PATCH, 2 * PATCH), mask


def test_pixels_without_a_class_count_as_nothing() -> None:
    memory = build_memory([half_labelled()], colours, config(), draws=draws())
    assert memory.labels.tolist() == [[0.0, 0.0, 1.0]]


def test_the_reference_counts_them_as_class_zero() -> None:
    memory = build_memory([half_labelled()], colours, config(reference=True), draws=draws())
    assert memory.labels.tolist() == [[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]


def test_memory_without_any_label_is_refused() -> None:
    images, mask = half_labelled()
    with pytest.raises(UserError, match="nothing to compare with"):
        build_memory([(images, torch.full_like(mask, 255))], colours, config(), draws=draws())
    with pytest.raises(UserError, match=r"0\.\.2, or be 255 for none, found 9"):
        build_memory([(images, torch.full_like(mask, 9))], colours, config(), draws=draws())
    with pytest.raises(UserError, match="do not fit features"):
        build_memory([(images, mask)], lambda x: torch.ones(1, 3, 5), config(), draws=draws())


# --- bounded memory -------------------------------------------------------------------------------


def test_rare_classes_are_kept_before_common_ones() -> None:
    # 7 patches of class 0 and one of class 1: with equal draws the rare one has the lowest score.
    kinds = torch.zeros(1, 8, 2, dtype=torch.bool)
    kinds[0, :, 0] = True
    kinds[0, 5] = torch.tensor([False, True])
    chosen = choose_patches(kinds, 2, lambda n: torch.full((n,), 0.5))
    assert chosen[0].tolist() == [5, 0]


def test_scores_are_draws_times_how_many_patches_share_the_classes() -> None:
    # class 0 in patches 0 1 2, class 1 in patches 2 3; patch 4 has none and costs no draw.
    kinds = torch.tensor([[[1, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]).bool()
    asked = []

    def draw(n: int) -> Tensor:
        asked.append(n)
        return torch.tensor([1.0, 0.2, 0.1, 0.2])

    # scores: 3 * 1, 3 * 0.2, 5 * 0.1, 2 * 0.2
    assert choose_patches(kinds, 9, draw)[0].tolist() == [3, 2, 1, 0]
    assert asked == [4]


@given(n=st.integers(1, 20), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_a_bounded_memory_keeps_labelled_patches_without_repeats(n, seed) -> None:
    kinds = torch.rand(3, 9, 4, generator=torch.Generator().manual_seed(seed)) < 0.2
    for image, chosen in zip(kinds, choose_patches(kinds, n, draws(seed)), strict=True):
        labelled = image.any(-1).nonzero()[:, 0].tolist()
        assert len(chosen) == min(n, len(labelled))
        assert set(chosen.tolist()) <= set(labelled)
        assert len(set(chosen.tolist())) == len(chosen)


# --- search ---------------------------------------------------------------------------------------


@given(m=st.integers(1, 40), n=st.integers(1, 9), block=st.integers(1, 50), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_search_in_blocks_finds_what_one_product_finds(m, n, block, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    memory, queries = torch.randn(m, 5, generator=rng), torch.randn(n, 5, generator=rng)
    k = min(m, 4)
    similarity, rows = ExactSearch(memory, block=block)(queries, k)
    expected = (queries @ memory.T).topk(k, dim=1)
    torch.testing.assert_close(similarity, expected.values)
    assert torch.equal(rows, expected.indices)


def test_faiss_finds_the_neighbours_of_clustered_features() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = functional.normalize(torch.randn(30, 8, generator=rng), dim=1).repeat_interleave(
        20, 0
    )
    memory = functional.normalize(centres + 0.02 * torch.randn(centres.shape, generator=rng), dim=1)
    exact, rows = ExactSearch(memory)(memory, 5)
    approximate, found = FaissSearch(memory)(memory, 5)
    assert torch.equal(found[:, 0], torch.arange(600))
    assert (found == rows).float().mean() > 0.8
    torch.testing.assert_close(approximate[:, 0], exact[:, 0])
    # More neighbours than the cells that are looked at hold: the rest is searched too.
    assert sorted(FaissSearch(memory[:30])(memory[:1], 30)[1][0].tolist()) == list(range(30))


def test_without_faiss_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    memory = Memory(torch.ones(4, 2), torch.ones(4, 3))
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        open_search(memory, config(search="faiss"))


def test_more_neighbours_than_patches_are_refused() -> None:
    with pytest.raises(UserError, match="4 patches and 5 neighbours"):
        open_search(Memory(torch.ones(4, 2), torch.ones(4, 3)), config(neighbours=5))


def test_votes_are_weighted_by_the_softmax_of_cosines() -> None:
    memory = Memory(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0], [3.0]]))
    settings_ = config(task="depth", neighbours=2, temperature=0.5)
    query = torch.tensor([[[1.0, 0.0]]])
    found = predict(query, (1, 1), memory, ExactSearch(memory.features), settings_)
    w = np.exp(np.array([1.0, 0.6]) / 0.5)
    assert found.shape == (1, 1, PATCH, PATCH)
    np.testing.assert_allclose(found, (w * [1.0, 3.0]).sum() / w.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    "bad", [{"neighbours": 0}, {"temperature": 0.0}, {"per_image": 0}, {"search": "scann"}]
)
def test_settings_that_make_no_sense_are_refused(bad) -> None:
    with pytest.raises(UserError, match="should be"):
        config(**bad)


# --- metrics --------------------------------------------------------------------------------------


def test_iou_by_hand() -> None:
    confusion = Confusion(4)
    confusion.add(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 255]))
    confusion.add(torch.tensor([2]), torch.tensor([0]))
    assert confusion.counts.tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert confusion.iou_list() == [pytest.approx(1 / 3), pytest.approx(2 / 3), 0.0, None]
    assert confusion.scores()["mIoU"] == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    with pytest.raises(UserError, match=r"0\.\.3, found 4"):
        confusion.add(torch.tensor([4]), torch.tensor([0]))
    with pytest.raises(UserError, match="one shape"):
        confusion.add(torch.tensor([1]), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="No pixel has a label"):
        Confusion(2).scores()


def test_depth_errors_by_hand() -> None:
    errors = DepthErrors()
    errors.add(torch.tensor([[[[1.0, 2.0, 5.0]]]]), torch.tensor([[[[1.0, 4.0, 0.0]]]]))
    errors.add(torch.tensor([[[[3.0, 3.0, 3.0]]]]), torch.tensor([[[[2.0, 2.0, 2.0]]]]))
    found = errors.scores()
    assert found["d1"] == pytest.approx((0.5 + 0) / 2)
    assert found["d2"] == pytest.approx((0.5 + 1) / 2)
    assert found["abs_rel"] == pytest.approx((0.25 + 0.5) / 2)
    assert found["sq_rel"] == pytest.approx((0.5 + 0.5) / 2)
    assert found["rmse"] == pytest.approx(((2.0 + 1.0) / 2) ** 0.5)
    with pytest.raises(UserError, match="No pixel has depth"):
        DepthErrors().scores()
