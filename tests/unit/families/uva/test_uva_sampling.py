"""Inference of UVA: independence of rows, rounds of unmasking, guidance, refusals."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_uva import FULL, SMALL, ask, build, make_batch, rngs
from torch import Tensor

from foreact.errors import UserError
from foreact.families.uva.model import MODES, Question, Sampling, UVAConfig
from foreact.families.uva.sampling import masked_after
from foreact.families.uva.tokens import patchify
from foreact.types import Batch


@pytest.mark.parametrize("mode", ["policy", "joint", "dynamics"])
def test_a_row_with_its_own_generator_does_not_depend_on_the_others(mode: str) -> None:
    c = UVAConfig(**FULL)
    model, batch = build(c), make_batch(c)
    sampling = Sampling(iterations=2 if MODES[mode].video else 1)

    def row(i: int) -> Batch:
        return batch.map(lambda t: t[i : i + 1])

    together = model.sample(ask(c, batch, mode), sampling, rng=rngs(5, 6, 7))
    for i in range(3):
        alone = model.sample(ask(c, row(i), mode), sampling, rng=rngs(5 + i))
        for a, b in (
            (together.actions, alone.actions),
            *zip(*((s.latents or {}).values() for s in (together, alone)), strict=True),
        ):
            if a is not None:
                torch.testing.assert_close(a[i : i + 1], b, atol=1e-4, rtol=1e-4)


def test_sampling_is_repeatable_and_changes_no_input() -> None:
    c = UVAConfig(**FULL)
    model, batch = build(c), make_batch(c)
    before = batch.map(torch.clone)
    a, b, other = (
        model.sample(ask(c, batch, "joint"), rng=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    )
    assert a.latents is not None
    assert b.latents is not None
    assert a.actions is not None
    assert b.actions is not None
    assert other.actions is not None
    for camera in a.latents:
        assert torch.equal(a.latents[camera], b.latents[camera])
    assert torch.equal(a.actions, b.actions)
    assert not torch.equal(a.actions, other.actions)
    assert not torch.equal(a.latents["img"], a.latents["wrist"])
    assert before.actions is not None
    assert batch.actions is not None
    assert torch.equal(before.actions, batch.actions)
    assert torch.equal(before.state["pos"], batch.state["pos"])


@given(st.integers(1, 300), st.data())
@settings(max_examples=50)
def test_every_round_unmasks_and_the_last_leaves_nothing(places: int, data: st.DataObject) -> None:
    iterations = data.draw(st.integers(1, places))
    masked = places
    for i in range(iterations):
        left = masked_after(i, iterations, masked, places)
        assert left < masked
        assert left == 0 if i == iterations - 1 else left >= 1
        masked = left


def test_later_rounds_see_earlier_ones() -> None:
    """Every token is written once, and never shown before; what is shown is what was drawn."""
    c = UVAConfig(**SMALL)
    model, shown = build(c), []
    model.transformer.register_forward_pre_hook(lambda _m, args: shown.append(args[0]))
    batch = make_batch(c)
    got = model.sample(
        ask(c, batch, "video"), Sampling(iterations=4), rng=torch.Generator().manual_seed(0)
    )
    assert len(shown) == 4
    assert shown[0].hidden.all()
    assert got.latents is not None
    tokens = patchify(got.latents["img"], c)
    for earlier, later in itertools.pairwise(shown):
        assert (later.hidden <= earlier.hidden).all()
        assert later.hidden.sum() < earlier.hidden.sum()
        assert torch.equal(later.future[~later.hidden], tokens[~later.hidden])


def test_guidance() -> None:
    c = UVAConfig(**SMALL, text_dim=5)
    model, batch = build(c), make_batch(c)

    def video(guidance: float) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        got = model.sample(ask(c, batch, "video"), Sampling(guidance=guidance), rng=rng)
        assert got.latents is not None
        return got.latents["img"]

    assert not torch.allclose(video(3.0), video(1.0), atol=1e-3)
    # Where the instruction is the learned empty one, there is no direction to follow.
    with torch.no_grad():
        model.transformer.text_in.weight.zero_()
        model.transformer.text_in.bias.copy_(model.transformer.no_text[0])
    torch.testing.assert_close(video(3.0), video(1.0), atol=1e-4, rtol=1e-4)


def test_temperature_and_steps_are_heard() -> None:
    c = UVAConfig(**SMALL)
    model, batch = build(c), make_batch(c)

    def actions(**how: Any) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        got = model.sample(ask(c, batch, "policy"), Sampling(**how), rng=rng).actions
        assert got is not None
        return got

    assert torch.equal(actions(), actions(temperature=0.95, steps=3))
    assert not torch.equal(actions(), actions(temperature=0.1))
    assert not torch.equal(actions(), actions(steps="ddim4"))


@pytest.mark.parametrize(
    ("mode", "change", "words"),
    [
        ("fly", {}, "no mode 'fly'"),
        ("policy", {"actions": torch.zeros(3, 6, 2)}, "takes no `actions`"),
        ("dynamics", {"actions": None}, "takes `actions`"),
        ("dynamics", {"actions": torch.zeros(3, 5, 2)}, r"\(3, 6, 2\), found \(3, 5, 2\)"),
        ("inverse", {"future": None}, "takes `future`"),
        ("inverse", {"wrist_future": None}, "takes `wrist_future`"),
        ("video", {"text": None}, "takes `text`"),
        ("video", {"text": torch.zeros(3, 4)}, r"text features of shape \(3, 5\)"),
        ("video", {"context": torch.zeros(3, 1, 3, 3, 4)}, "context of shape"),
        ("video", {"proprioception": {}}, "takes `proprioception`"),
        ("video", {"proprioception": {"pos": torch.zeros(3, 4, 3)}}, "'grip'"),
    ],
)
def test_impossible_questions_are_refused(mode: str, change: dict[str, Any], words: str) -> None:
    c = UVAConfig(**FULL)
    question = dataclasses.replace(ask(c, make_batch(c), mode), **change)
    with pytest.raises(UserError, match=words):
        build(c).sample(question, rng=torch.Generator())


@pytest.mark.parametrize(
    ("mode", "how", "words"),
    [
        ("video", {"iterations": 0}, r"1\.\.12"),
        ("video", {"iterations": 13}, r"1\.\.12"),
        ("video", {"temperature": float("nan")}, "temperature"),
        ("video", {"steps": 0}, r"1\.\.1000"),
        ("policy", {"iterations": 2}, "foresees no video"),
        ("policy", {"guidance": 2.0}, "foresees no video"),
    ],
)
def test_impossible_ways_to_sample_are_refused(mode: str, how: dict[str, Any], words: str) -> None:
    c = UVAConfig(**FULL)
    with pytest.raises(UserError, match=words):
        build(c).sample(ask(c, make_batch(c), mode), Sampling(**how), rng=torch.Generator())


def test_models_without_an_input_or_head_refuse_it() -> None:
    c = UVAConfig(**(SMALL | {"predict_action": False, "modes": {"video": 1.0}}))
    model, context = build(c), torch.zeros(1, 2, 3, 3, 4)
    video = Question(mode="video", context=context)
    with pytest.raises(UserError, match="no instruction"):
        model.sample(video, Sampling(guidance=2.0), rng=torch.Generator())
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("policy", {}, "without the head"),
        ("video", {"text": torch.zeros(1, 5)}, "takes no `text`"),
        ("video", {"past_actions": torch.zeros(1, 6, 2)}, "takes no `past_actions`"),
        ("video", {"wrist_context": context}, "takes no `wrist_context`"),
    ]
    for mode, known, words in cases:
        with pytest.raises(UserError, match=words):
            model.sample(Question(mode=mode, context=context, **known), rng=torch.Generator())
    with pytest.raises(ValueError, match="2 generators for 1 rows"):
        model.sample(video, rng=rngs(1, 2))
