"""What a training of UVA learns from: one data set or a mixture, with videos of no robot beside.

Sets of windows that are mixed have the same entries; what one lacks is marked in `Batch.valid`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreact.data.stores.companion import accompanied
from foreact.data.stores.episodes import EpisodeStore
from foreact.data.stores.opening import open_episodes
from foreact.data.stores.text_features import TextFeatures, text_features
from foreact.data.windows.augment import Augment, CropAndBlur
from foreact.data.windows.choosing import read_episode_lists
from foreact.data.windows.hand_windows import HandWindows
from foreact.data.windows.loader import WindowDataset, Windows
from foreact.data.windows.mixing import Concat, weighted
from foreact.data.windows.mixture import Mixture, open_mixture
from foreact.data.windows.normalize import Normalizer
from foreact.data.windows.window import Window
from foreact.errors import UserError
from foreact.families.uva.action_free import ActionFree, WithMasks
from foreact.families.uva.recipes import UVARun
from foreact.families.uva.windows import window_of
from foreact.runs.inputs import Inputs, Split
from foreact.runs.stores import MEMORY_LIMIT, hands_of, open_task_store, statistics_of
from foreact.types import StreamSpec, TextEncoder
from foreact.worlds import Task

SAMPLE = 4096
"""Windows from which statistics of computed poses are taken; they scale nothing."""


@dataclass(frozen=True)
class Member:
    """One data set: its store, its split, how often it is drawn, and its stride in recorded steps.

    `weight` is None where windows are drawn as often as there are any.
    """

    store: EpisodeStore
    split: Split
    weight: float | None = None
    stride: int = 1


@dataclass(frozen=True)
class Data:
    """What a run learns from.

    Attributes:
        stores: the data sets that are read, and the cameras of each whose frames are encoded.
        training, validation: windows.
        normalizer: of actions and states.
        spec: what the windows hold, which is what the weights are for.
        text: features of all instructions, where the model is told any.
        label: the data in words.
    """

    stores: list[tuple[EpisodeStore, tuple[str, ...]]]
    training: Windows
    validation: Windows
    normalizer: Normalizer
    spec: StreamSpec
    text: TextFeatures | None
    label: str


def load_data(run: UVARun, task: Task, inputs: Inputs, encoder: TextEncoder | None = None) -> Data:
    """Open the data, fit statistics on the training side, and cut windows.

    Raises:
        UserError: data that do not fit the task, or options that do not fit the data.
    """
    members, mixture = _members(run, task, inputs)
    hands = hands_of(task)
    spec = members[0].store.spec
    if hands is not None:
        spec = hands.spec(spec) if mixture is None else mixture.spec(hands)
    window = window_of(run.model, pixels=run.pixels)
    texts = [_texts(member.store, run, encoder) for member in members]

    def cut(
        chosen: Sequence[np.ndarray], normalizer: Normalizer | None, augment: Augment | None
    ) -> list[WindowDataset]:
        sets: list[WindowDataset] = []
        for member, episodes, text in zip(members, chosen, texts, strict=True):
            rest = (window, episodes, normalizer, augment)
            if hands is None:
                sets.append(WindowDataset(member.store, *rest, text=text))
            else:
                own = dataclasses.replace(hands, stride=member.stride)
                sets.append(HandWindows(member.store, own, *rest, text=text))
        return sets

    training_episodes = [member.split.training for member in members]
    if hands is None:
        normalizer = _fit(members, task)
    else:
        normalizer = _describe_hands(cut(training_episodes, None, None))
    augment = CropAndBlur() if run.pixels else None
    training = _drawn(cut(training_episodes, normalizer, augment), members, run.train.seed)
    validation = cut([member.split.validation for member in members], normalizer, None)
    stores = [(member.store, tuple(run.model.views.values())) for member in members]
    label = ", ".join(str(member.store.label) for member in members)
    if run.video_data:
        training, videos = _with_videos(run, spec, window, training, inputs)
        stores += videos
        label += f"; {run.video_share:g} of the windows from videos without actions"
    return Data(
        stores=stores,
        training=training,
        validation=validation[0] if len(validation) == 1 else Concat(validation),
        normalizer=normalizer,
        spec=spec,
        text=_joined([text for text in texts if text is not None]),
        label=label,
    )


def _members(run: UVARun, task: Task, inputs: Inputs) -> tuple[list[Member], Mixture | None]:
    if run.data is None or run.data.suffix != ".json":
        store = open_task_store(task, run.data)
        hands = hands_of(task)
        stride = 1 if hands is None else hands.stride
        return [Member(store, inputs.split(store, run.val_ratio), stride=stride)], None
    lists = None if run.episode_lists is None else read_episode_lists(run.episode_lists)
    mixture = open_mixture(run.data, task.spec, lists)
    members = []
    for member, plain, episodes in zip(
        mixture.members, mixture.stores, mixture.episodes, strict=True
    ):
        store = accompanied(plain)
        split = inputs.split(store, run.val_ratio)
        kept = Split(
            training=np.intersect1d(split.training, episodes),
            validation=np.intersect1d(split.validation, episodes),
            fitted=np.intersect1d(split.fitted, episodes),
        )
        if not len(kept.training) or not len(kept.validation):
            raise UserError(
                f"The chosen episodes of '{member.name}' leave {len(kept.training)} to train on "
                f"and {len(kept.validation)} to validate; choose more, or another --val-ratio."
            )
        members.append(Member(store, kept, member.weight, member.stride))
    return members, mixture


def _texts(store: EpisodeStore, run: UVARun, encoder: TextEncoder | None) -> TextFeatures | None:
    if run.model.text_dim is None:
        return None
    assert encoder is not None
    if encoder.dim != run.model.text_dim:
        raise UserError(
            f"The text encoder '{encoder.name}' makes {encoder.dim} numbers, the model reads "
            f"{run.model.text_dim}; set --model.text-dim {encoder.dim}."
        )
    if not store.spec.has_text:
        raise UserError(
            f"{store.label} carries no instructions; leave out --text-encoder, or name data that "
            "do."
        )
    return text_features(store, encoder)


def _fit(members: Sequence[Member], task: Task) -> Normalizer:
    """Statistics over the training episodes of all members."""
    modes = statistics_of(task, members[0].store)
    if len(members) == 1:
        return Normalizer.fit_store(members[0].store, members[0].split.fitted, modes)
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in modes}
    for member in members:
        lengths, starts = member.store.lengths, member.store.starts
        fitted = member.split.fitted.tolist()
        rows = np.concatenate([starts[e] + np.arange(int(lengths[e])) for e in fitted])
        for name, parts in arrays.items():
            parts.append(member.store.all_rows(name)[rows])
    return Normalizer.fit({name: np.concatenate(parts) for name, parts in arrays.items()}, modes)


def _describe_hands(sets: Sequence[WindowDataset]) -> Normalizer:
    """Statistics that scale nothing: numbers relative to now keep their units, as in UVA's UMI."""
    arrays: dict[str, list[np.ndarray]] = {}
    for windows in sets:
        assert isinstance(windows, HandWindows)
        chosen = np.linspace(0, len(windows) - 1, min(SAMPLE, len(windows))).astype(np.int64)
        for name, values in windows.numbers(chosen).items():
            arrays.setdefault(name, []).append(values.reshape(-1, values.shape[-1]))
    joined = {name: np.concatenate(parts) for name, parts in arrays.items()}
    return Normalizer.fit(joined, "identity")


def _drawn(sets: Sequence[Windows], members: Sequence[Member], seed: int) -> Windows:
    """Windows of all members in the shares of their weights."""
    if len(sets) == 1:
        return sets[0]
    weights = [member.weight for member in members]
    if None in weights:
        return Concat(sets)
    return weighted(sets, [weight or 0.0 for weight in weights], seed=seed)


def _with_videos(
    run: UVARun, spec: StreamSpec, window: Window, robot: Windows, inputs: Inputs
) -> tuple[Windows, list[tuple[EpisodeStore, tuple[str, ...]]]]:
    """Windows of which a share is of videos without actions, and the videos."""
    if run.pixels:
        raise UserError(
            "--video-data is learned from as latents, since its pictures have a size of their own; "
            "leave out --pixels."
        )
    if not 0.0 < run.video_share < 1.0:
        raise UserError(f"--video-share should lie between 0 and 1, found {run.video_share:g}.")
    parts: list[Windows] = []
    videos: list[tuple[EpisodeStore, tuple[str, ...]]] = []
    for path in run.video_data:
        store = accompanied(open_episodes(path, memory_limit=MEMORY_LIMIT))
        cameras = sorted(store.spec.cameras)
        camera = run.model.camera if run.model.camera in cameras else cameras[0]
        episodes = inputs.split(store, run.val_ratio, both_sides=False).training
        parts.append(ActionFree(store, camera, window, run.model, spec, episodes))
        videos.append((store, (camera,)))
    together = parts[0] if len(parts) == 1 else Concat(parts)
    both = weighted(
        [WithMasks(robot, window), together],
        [1.0 - run.video_share, run.video_share],
        seed=run.train.seed,
    )
    return both, videos


def _joined(texts: Sequence[TextFeatures]) -> TextFeatures | None:
    """All texts of several stores, each once."""
    if not texts:
        return None
    rows = {text: row for t in texts for text, row in zip(t.texts, t.features, strict=True)}
    return TextFeatures(
        texts=tuple(rows),
        features=np.stack(list(rows.values())),
        encoder=texts[0].encoder,
        hash=texts[0].hash,
    )
