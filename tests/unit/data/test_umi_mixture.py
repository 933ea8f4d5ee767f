"""Mixtures of UMI's sets: mirrors, instructions, lists of episodes, weights; every bad file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.umi_files import SIZE, who, write_umi

from foreact.data.stores.store import open_store
from foreact.data.windows.choosing import listed_episodes, read_episode_lists
from foreact.data.windows.hand_poses import umi_hands
from foreact.data.windows.members import MemberStore
from foreact.data.windows.mirror import blacken, mirror_coverage
from foreact.data.windows.mixing import Concat, weighted
from foreact.data.windows.mixture import Member, Mixture, open_mixture
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.tasks.umi import umi_spec

CAMERA = "camera0_rgb"
SPEC = umi_spec(size=SIZE)
WINDOW = Window(video={CAMERA: (0,)}, actions=(1, 2))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_umi(root / "cup.zarr", (12, 8, 5, 9))
    write_umi(root / "towel.zarr", (7, 6))
    return root


# --- mirrors --------------------------------------------------------------------------------------


def test_mirrors_cover_what_the_corners_say() -> None:
    """At 224 the corners are (22, 188), (38, 160), (28, 118), (-5, 125), (-5, 196), (23, 196)."""
    covered = mirror_coverage(224, 224)
    assert covered.dtype == np.float32
    rows, columns = np.nonzero(covered == 1.0)
    assert (rows.min(), rows.max()) == (118, 196)
    assert columns[columns < 112].max() == 38
    assert columns[columns >= 112].min() == 186
    assert covered[160, [0, 20, 38, 40, 112, 184, 186, 200]].tolist() == [1, 1, 1, 0, 0, 0, 1, 1]
    assert covered[[110, 116, 140, 196, 198], 10].tolist() == [0, 0, 1, 1, 0]
    # Half way between the corners (38, 160) and (28, 118) the edge is at 33.
    assert covered[139, 33] == 1.0
    assert covered[139, 35] == 0.0
    # The right mirror is the left one's image: about the middle, x and 224 - x.
    np.testing.assert_allclose(covered[:, 1:], covered[:, :0:-1], atol=1e-6)
    between = (covered > 0.0) & (covered < 1.0)
    assert 50 < between.sum() < 600  # smooth edges, no more than a pixel wide


def test_mirrors_of_whole_pictures_lie_at_the_published_corners() -> None:
    covered = mirror_coverage(2028, 2704)
    assert covered[1450, 680] == covered[1130, 290] == covered[1769, 549] == 1.0
    assert covered[1450, 682] == covered[1129, 288] == covered[1773, 400] == 0.0
    assert covered[1450, 2704 - 680] == 1.0


def test_blackening_changes_nothing_else_and_copies() -> None:
    images = np.full((2, 224, 224, 3), 201, np.uint8)
    masked = blacken(images)
    assert images.min() == 201
    covered = mirror_coverage(224, 224)
    for image in masked:
        assert (image[covered == 1.0] == 0).all()
        assert (image[covered == 0.0] == 201).all()
        np.testing.assert_allclose(image[..., 1], 201 * (1.0 - covered), atol=0.5)


# --- lists of episodes ----------------------------------------------------------------------------


def test_lists_name_episodes_by_member(tmp_path: Path) -> None:
    path = tmp_path / "used.json"
    path.write_text(json.dumps({"cup": [2, 0], "towel": [1]}))
    lists = read_episode_lists(path)
    assert listed_episodes(lists, "cup", 4).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        ({"towel": [0]}, r"name \['towel'\], not 'cup'; add a list"),
        ({"cup": [0, 4]}, r"of 'cup' names episode 4, and the data set has 0\.\.3"),
        ({"cup": [-1]}, r"names episode -1, and the data set has 0\.\.3"),
        ({"cup": [1, 2, 1]}, "names episode 1 twice; name it once"),
        ({"cup": []}, "should be a list of at least one number"),
        ({"cup": "01"}, "should be a list of at least one number, found '01'"),
        ({"cup": [1.5]}, r"should hold whole numbers, found 1\.5"),
        ({"cup": [True]}, "should hold whole numbers, found True"),
    ],
)
def test_wrong_lists(lists: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        listed_episodes(lists, "cup", 4)


@pytest.mark.parametrize("text", ["[1, 2]", "{", ""])
def test_files_that_are_no_lists(tmp_path: Path, text: str) -> None:
    (tmp_path / "used.json").write_text(text)
    with pytest.raises(UserError, match=r"used\.json should hold"):
        read_episode_lists(tmp_path / "used.json")


# --- members --------------------------------------------------------------------------------------


def test_a_member_has_its_instruction_and_its_mirrors(root: Path) -> None:
    store = open_store(root / "cup.zarr", SPEC)
    plain = MemberStore(store)
    assert not plain.spec.has_text
    member = MemberStore(store, instruction="place the cup", mirror_mask=True)
    assert member.spec.has_text
    assert member.instructions == ["place the cup"]
    assert member.instruction_of(np.array([[0, 33]])).tolist() == [[0, 0]]
    rows = np.array([3, 14])
    np.testing.assert_array_equal(plain.gather(CAMERA, rows), store.gather(CAMERA, rows))
    for frames in (
        member.gather(CAMERA, rows),
        member.peek(CAMERA, rows),
        member.read(0, 3, 4, [CAMERA])[CAMERA],
    ):
        expected = blacken(store.gather(CAMERA, rows))[: len(frames)]
        np.testing.assert_array_equal(frames, expected)
    name = "robot0_eef_pos"
    np.testing.assert_array_equal(member.gather(name, rows), store.gather(name, rows))


# --- weights --------------------------------------------------------------------------------------


class Numbered:
    """Windows that are their own numbers."""

    augments = False

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def load(self) -> None:
        pass

    def batch(self, chosen: np.ndarray, rngs: object = None) -> Any:
        from foreact.types import Batch

        return Batch(index=torch.from_numpy(chosen))


@pytest.mark.parametrize(
    ("sizes", "weights", "shares"),
    [
        ((10, 10), (1, 1), (0.5, 0.5)),
        ((100, 10), (1, 3), (0.25, 0.75)),
        ((3, 1000, 7), (0.2, 0.4, 0.4), (0.2, 0.4, 0.4)),
    ],
)
def test_a_pass_has_the_shares_and_every_window(
    sizes: tuple[int, ...], weights: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    parts: list[Any] = [Numbered(size) for size in sizes]
    mixed = weighted(parts, weights, seed=4)
    counts = np.diff(mixed.ends, prepend=0)
    np.testing.assert_allclose(counts / counts.sum(), shares, atol=2 / counts.sum())
    for part, size in zip(mixed.parts, sizes, strict=True):
        index = part.batch(np.arange(len(part))).index
        assert index is not None
        times = np.bincount(index.numpy(), minlength=size)
        assert times.min() >= 1
        assert times.max() <= times.min() + 1


def test_weights_are_above_zero() -> None:
    parts: list[Any] = [Numbered(2), Numbered(2)]
    for weights in ((1.0, 0.0), (1.0, float("nan")), (1.0,)):
        with pytest.raises(UserError, match="Expected 2 weights above 0"):
            weighted(parts, weights, seed=0)


# --- mixtures -------------------------------------------------------------------------------------


def mixture_file(root: Path, members: Any) -> Path:
    path = root / "mixture.json"
    path.write_text(json.dumps({"members": members} if isinstance(members, list) else members))
    return path


def test_a_mixture_from_a_file(root: Path) -> None:
    members = [
        {
            "path": "cup.zarr",
            "weight": 1,
            "instruction": "place the cup",
            "mirror_mask": True,
            "episodes": [0, 1, 3],
        },
        {"path": "towel.zarr", "weight": 3, "instruction": "fold the towel", "stride": 3},
    ]
    mixture = open_mixture(mixture_file(root, members), SPEC)
    assert [member.name for member in mixture.members] == ["cup", "towel"]
    assert [store.instructions for store in mixture.stores] == [
        ["place the cup"],
        ["fold the towel"],
    ]
    hands = umi_hands()
    spec = mixture.spec(hands)
    assert spec.has_text
    assert spec.fps == pytest.approx(19.98)
    training = mixture.windows("training", hands, WINDOW, used=0.7, seed=1)
    assert isinstance(training, Concat)
    counts = np.diff(training.ends, prepend=0)
    assert counts[1] / counts.sum() == pytest.approx(0.75, abs=0.03)
    batch = training.batch(np.array([0, len(training) - 1]))
    cup, towel = batch.video[CAMERA][:, 0].permute(0, 2, 3, 1).numpy()
    assert cup[int(0.7 * SIZE), 0].max() == 0  # the left mirror
    assert towel[int(0.7 * SIZE), 0].max() > 20
    validation = mixture.windows("validation", hands, WINDOW, used=0.7, seed=1)
    index = validation.batch(np.arange(len(validation))).index
    assert index is not None
    # Of the cup's listed three episodes int(3 * 0.7) = 2 train; of the towel's two, one.
    assert len({episode for episode, _ in index.tolist()}) in (1, 2)
    used = {e for e, _ in training.batch(np.arange(int(counts[0]))).index.tolist()}  # pyright: ignore
    held = {e for e, _ in validation.batch(np.arange(len(validation.parts[0]))).index.tolist()}  # pyright: ignore
    assert used | held == {0, 1, 3}
    assert not used & held


def test_members_without_weights_count_as_often_as_they_have_windows(root: Path) -> None:
    members = [Member(path=root / "cup.zarr"), Member(path=root / "towel.zarr")]
    lists = {"cup": [0, 2], "towel": [1]}
    mixture = Mixture(members, SPEC, lists)
    windows = mixture.windows("training", umi_hands(), WINDOW, used=1.0)
    assert len(windows) == 12 + 5 + 6
    last = windows.batch(np.array([22])).video[CAMERA][0, 0].permute(1, 2, 0).numpy()
    assert who(last) == (1, 5, 0)
    with pytest.raises(UserError, match="no episode is left for validation; lower it"):
        mixture.windows("validation", umi_hands(), WINDOW, used=1.0)


def test_a_member_of_another_rate_has_its_own_stride(root: Path) -> None:
    members = [
        Member(path=root / "cup.zarr"),
        Member(path=root / "towel.zarr", fps=20.0, stride=1),
    ]
    mixture = Mixture(members, SPEC)
    assert mixture.spec(umi_hands()).fps == pytest.approx(19.98)
    windows = mixture.windows(
        "training", umi_hands(), Window(video={CAMERA: (0, 1)}, actions=(1,)), used=1.0
    )
    frames = windows.batch(np.array([2, 34 + 2])).video[CAMERA].permute(0, 1, 3, 4, 2).numpy()
    assert [[who(frame)[1] for frame in pair] for pair in frames] == [[2, 5], [2, 3]]
    slow = Mixture([members[0], Member(path=root / "towel.zarr", fps=20.0)], SPEC)
    with pytest.raises(UserError, match=r"6\.667 Hz in 'towel' and at 19\.98 Hz in 'cup'"):
        slow.spec(umi_hands())


CUP = {"path": "cup.zarr"}


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([], "at least one member"),
        ({"member": [CUP]}, "at least one member"),
        ([["cup.zarr"]], 'Member 0 of .* an object with at least a "path"'),
        ([{"weight": 1}], 'an object with at least a "path"'),
        ([{**CUP, "wieght": 1}], "entry 'wieght'; did you mean 'weight'"),
        ([{**CUP, "weight": "1"}], "'weight' of Member 0 .* should be int or float, found '1'"),
        ([{**CUP, "stride": True}], "'stride' of Member 0 .* should be int, found True"),
        ([{**CUP, "mirror_mask": 1}], "'mirror_mask' of .* should be bool, found 1"),
        ([{**CUP, "weight": 0}], "weight of 'cup' should be above 0, found 0"),
        ([{**CUP, "fps": -1}], "rate of 'cup' should be above 0, found -1"),
        ([{**CUP, "episodes": [0, 9]}], r"list of 'cup' names episode 9.* 0\.\.3"),
        ([CUP, CUP], "Two members of the mixture are called 'cup'"),
        ([{**CUP, "weight": 1}, {"path": "towel.zarr"}], "members towel have no weight"),
        ([{**CUP, "instruction": "a"}, {"path": "towel.zarr"}], "members towel have no instruc"),
        ([{"path": "mouse.zarr.zip"}], r"no store at .*mouse\.zarr\.zip"),
    ],
)
def test_wrong_mixtures(root: Path, members: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_mixture(mixture_file(root, members), SPEC)


def test_a_mixture_that_is_no_json(root: Path) -> None:
    (root / "broken.json").write_text('{"members": [')
    with pytest.raises(UserError, match=r"broken\.json should describe a mixture as JSON"):
        open_mixture(root / "broken.json", SPEC)
