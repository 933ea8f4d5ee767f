"""UVA by meaning: what each question shows and asks, masks, draws,
losses, sizes, names in the reference.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.tiny_uva import FULL, SMALL, ask, build, make_batch
from torch import Tensor

from foreact.checkpoints.configs import config_from_json, config_to_json
from foreact.errors import UserError
from foreact.families.uva.draws import pick_mode
from foreact.families.uva.model import MODES, UVA, Question, UVAConfig, uva_config
from foreact.families.uva.released.names import reference_names, to_native, to_reference
from foreact.families.uva.tokens import first_places, patchify, take, token_mask, unpatchify
from foreact.types import Batch

# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "millions"),
    [("tiny", 133.5), ("small", 176.0), ("base", 261.1), ("large", 509.5), ("huge", 913.1)],
)
def test_published_sizes_have_the_published_parameter_counts(size: str, millions: float) -> None:
    with torch.device("meta"):
        model = UVA(uva_config(size, video_head_depth=6, video_head_width=1024))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    heads = uva_config(size).video_head_depth, uva_config(size).video_head_width
    assert heads == {"large": (8, 1280), "huge": (12, 1536)}.get(size, (6, 1024))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patch": 1, "grid": (1, 1), "horizon": 2},
        {"patch": 2, "grid": (4, 6), "horizon": 5},
        {"grid": (7, 5), "frames": 3, "horizon": 7},
        {"readout": "conv_ori"},
        {"readout": "conv"},
        {"readout": "fc"},
        {"head": "flow", "flow_solver": "midpoint", "flow_time": "beta"},
        FULL,
        FULL | {"head": "flow", "wrist_context": False},
        FULL | {"wrist_prediction": False, "proprioception_prediction": {}},
    ],
)
def test_every_option_trains_and_samples(options: dict[str, Any]) -> None:
    c = UVAConfig(**(SMALL | options))
    assert config_from_json(UVAConfig, config_to_json(c), complete=True) == c
    batch = make_batch(c)
    for mode in MODES:
        model = build(dataclasses.replace(c, modes={mode: 1.0}))
        out = model(batch, rng=torch.Generator().manual_seed(0))
        out.loss.backward()
        assert torch.isfinite(out.loss)
        assert {n.removesuffix("_loss") for n in out.logs} == set(model.heads_of(mode))
        torch.testing.assert_close(out.loss.detach(), torch.stack(list(out.logs.values())).sum())
        got = model.sample(ask(c, batch, mode), rng=torch.Generator().manual_seed(0))
        if MODES[mode].video:
            assert got.latents is not None
            assert set(got.latents) == {c.camera} | ({"wrist"} if c.predicts_wrist else set())
            for latents in got.latents.values():
                assert latents.shape == (3, c.frames, c.latent_channels, *c.grid)
                assert torch.isfinite(latents).all()
        if MODES[mode].action:
            assert got.actions is not None
            assert got.actions.shape == (3, c.horizon, c.action_dim)
            assert got.actions.abs().max() <= 1
        assert (got.latents is None, got.actions is None) == (
            not MODES[mode].video,
            not MODES[mode].action,
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": (3, 5), "patch": 2}, "multiple of --model.patch"),
        ({"horizon": 25}, "only 24"),
        ({"width": 15}, "multiple of --model.heads"),
        ({"heads": 0}, "heads should be at least 1"),
        ({"horizon": 5, "readout": "conv_ori"}, "multiple"),
        ({"readout": "mean"}, "conv_fc"),
        ({"modes": {"fly": 1.0}}, "no mode 'fly'"),
        ({"modes": {"video": 0.0}}, "not all 0"),
        ({"modes": {"policy": 1.0}, "predict_action": False}, "--model.predict-action"),
        ({"predict_video": False}, "--model.predict-video"),
        ({"mask_ratio_min": 1.0}, "--model.mask-ratio-min"),
        ({"text_drop": 1.5}, "--model.text-drop"),
        ({"wrist_camera": "img"}, "two streams"),
        ({"wrist_camera": "w", "wrist_context": False, "wrist_prediction": False}, "neither"),
        ({"action_sampling_steps": "2000"}, r"1\.\.1000"),
        ({"head": "flow", "video_sampling_steps": "ddim4"}, "flow head"),
        ({"head": "gan"}, "diffusion or flow"),
        ({"proprioception": {"pos": 0}}, "at least 1 dimension"),
        ({"proprioception": {"pos": 1}, "proprioception_steps": 99}, "proprioception-steps"),
        ({"text_dim": 0}, "--model.text-dim"),
    ],
)
def test_impossible_configs_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        UVAConfig(**(SMALL | options))


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="tiny, small, base"):
        uva_config("enormous")


# --- what a question shows ------------------------------------------------------------------------

# Which inputs may change the features, per mode; the rest is shown by all.
SHOWN = {
    "video": {"context", "visible future"},
    "dynamics": {"context", "visible future", "actions"},
    "policy": {"context"},
    "inverse": {"visible future", "masked future"},
    "joint": {"context", "visible future"},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_shows_what_it_says_and_nothing_else(mode: str) -> None:
    c = UVAConfig(**(FULL | {"modes": {mode: 1.0}, "mask_ratio_min": 0.5}))
    model, seen = build(c), []
    model.transformer.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    batch = make_batch(c)
    draws = model.draw(batch, torch.Generator().manual_seed(3))
    assert 0 < draws.masked < c.frame_tokens
    draws = dataclasses.replace(draws, past_keep=torch.ones(3, c.horizon, dtype=torch.bool))
    draws = dataclasses.replace(draws, text_keep=torch.ones(3, dtype=torch.bool))
    masked = token_mask(
        first_places(draws.order, 0, draws.masked, 1, c.frame_tokens), c.frame_tokens
    )
    masked = masked.reshape(3, 1, 1, *c.grid)

    def changes(change: Any) -> bool:
        other = batch.map(torch.clone)
        change(other)
        seen.clear()
        model.loss(batch, draws)
        model.loss(other, draws)
        return not torch.allclose(seen[0], seen[1], atol=1e-6)

    def future(camera: str, where: Tensor) -> Any:
        return lambda b: b.latents[camera][:, c.frames :].add_(where.float())

    def add(get: Any) -> Any:
        return lambda b: get(b).add_(0.5)

    for camera in ("img", "wrist"):
        assert changes(future(camera, ~masked)) == ("visible future" in SHOWN[mode])
        assert changes(future(camera, masked)) == ("masked future" in SHOWN[mode])
    assert changes(add(lambda b: b.latents["img"][:, : c.frames])) == ("context" in SHOWN[mode])
    assert changes(add(lambda b: b.actions)) == ("actions" in SHOWN[mode])
    assert changes(add(lambda b: b.latents["wrist"][:, : c.frames]))
    assert changes(add(lambda b: b.past_actions))
    assert changes(add(lambda b: b.text))
    assert changes(add(lambda b: b.state["grip"][:, : c.proprioception_steps]))
    assert not changes(add(lambda b: b.state["pos"][:, c.proprioception_steps :]))


def test_hidden_past_actions_and_instructions_do_not_matter() -> None:
    c = UVAConfig(**(FULL | {"modes": {"policy": 1.0}, "past_action_keep": 0.0, "text_drop": 1.0}))
    model, batch = build(c), make_batch(c)
    draws = model.draw(batch, torch.Generator().manual_seed(0))
    assert draws.past_keep is not None
    assert draws.text_keep is not None
    assert not draws.past_keep.any()
    assert not draws.text_keep.any()
    assert batch.text is not None
    assert batch.past_actions is not None
    other = dataclasses.replace(batch, text=batch.text + 1, past_actions=batch.past_actions + 1)
    assert torch.equal(model.loss(batch, draws).loss, model.loss(other, draws).loss)
    shown = dataclasses.replace(draws, text_keep=~draws.text_keep)
    assert not torch.equal(model.loss(batch, shown).loss, model.loss(other, shown).loss)
    # No past actions yet is the same as all of them hidden.
    before = dataclasses.replace(batch, past_actions=None)
    torch.testing.assert_close(model.loss(before, draws).loss, model.loss(batch, draws).loss)


def test_tokens_and_latents_are_each_others_inverse() -> None:
    c = UVAConfig(**(SMALL | {"patch": 2, "grid": (4, 6), "horizon": 6}))
    latents = torch.arange(2 * 2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 2, 3, 4, 6)
    tokens = patchify(latents, c)
    assert tokens.shape == (2, 2 * 6, 12)
    # Second frame, second row, third column of patches; channels first, then rows and columns
    # inside the patch.
    assert torch.equal(tokens[1, 6 + 3 + 2], latents[1, 1, :, 2:4, 4:6].flatten())
    assert torch.equal(unpatchify(tokens, c), latents)


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["video", "policy", "joint"])
def test_padded_steps_give_no_loss(mode: str) -> None:
    c = UVAConfig(**FULL, modes={mode: 1.0})
    model, batch = build(c), make_batch(c)
    draws = model.draw(batch, torch.Generator().manual_seed(0))
    plain = model.loss(batch, draws)
    everywhere = {
        "action": torch.ones(3, c.horizon, dtype=torch.bool),
        "pos": torch.ones(3, c.proprioception_steps + c.horizon, dtype=torch.bool),
        **{camera: torch.ones(3, 2 * c.frames, dtype=torch.bool) for camera in ("img", "wrist")},
    }
    torch.testing.assert_close(
        model.loss(dataclasses.replace(batch, valid=everywhere), draws).loss, plain.loss
    )

    valid = {k: v.clone() for k, v in everywhere.items()}
    for v in valid.values():
        v[:, -1] = False
    masked = dataclasses.replace(batch, valid=valid)
    loss = model.loss(masked, draws)
    other = masked.map(torch.clone)
    assert other.actions is not None
    other.actions[:, -1] += 1
    other.state["pos"][:, -1] += 1
    if mode == "policy":  # in the others, the last frame's visible tokens are shown
        for latents in other.latents.values():
            latents[:, -1] += 1
    changed = model.loss(other, draws)
    for name, value in loss.logs.items():
        assert not torch.isclose(value, plain.logs[name]), name
        assert torch.equal(value, changed.logs[name]), name


def test_masked_video_losses_leave_out_padded_frames_exactly() -> None:
    """With all places masked, hiding the last frame's loss must
    equal the mean over the other frames' rows.
    """
    c = UVAConfig(**(SMALL | {"modes": {"video": 1.0}, "mask_ratio_min": 0.999}))
    model, batch = build(c), make_batch(c, rows=2)
    draws = model.draw(batch, torch.Generator().manual_seed(0))
    assert draws.masked == c.frame_tokens
    rows = []
    original = model.heads["video"].loss
    model.heads["video"].loss = lambda *a: rows.append(original(*a)) or rows[-1]
    batch.valid[c.camera] = torch.tensor([[True, True, True, False], [True, True, True, True]])
    got = model.loss(batch, draws).loss
    expected = torch.cat([rows[0][0, : c.frame_tokens], rows[0][1]]).mean()
    torch.testing.assert_close(got, expected)


def test_a_batch_of_padding_alone_gives_zero() -> None:
    c = UVAConfig(**SMALL, modes={"policy": 1.0})
    model, batch = build(c), make_batch(c)
    batch.valid["action"] = torch.zeros(3, c.horizon, dtype=torch.bool)
    assert model(batch, rng=torch.Generator().manual_seed(0)).loss.item() == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_only_the_heads_of_the_mode_learn(mode: str) -> None:
    model = build(UVAConfig(**SMALL, modes={mode: 1.0}))
    model(make_batch(model.config), rng=torch.Generator().manual_seed(0)).loss.backward()
    for name in ("video", "action"):
        trained = [p.grad is not None for p in model.heads[name].parameters()]
        assert all(trained) == any(trained) == getattr(MODES[mode], name)


def test_the_same_seed_gives_the_same_loss() -> None:
    model, batch = build(UVAConfig(**FULL)), make_batch(UVAConfig(**FULL))
    losses = [model(batch, rng=torch.Generator().manual_seed(s)).loss.item() for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_modes_are_drawn_by_weight() -> None:
    weights = {"video": 1.0, "dynamics": 0.0, "policy": 3.0}
    picks = [pick_mode((i + 0.5) / 400, weights) for i in range(400)]
    assert {m: picks.count(m) for m in set(picks)} == {"video": 100, "policy": 300}
    assert pick_mode(0.999999999, {"video": 0.1, "policy": 0.2}) == "policy"


def test_masks_are_random_places_the_same_in_every_frame() -> None:
    c = UVAConfig(**SMALL, modes={"video": 1.0})
    model, batch, g = build(c), make_batch(c, rows=4), torch.Generator().manual_seed(0)
    masks = []
    for _ in range(50):
        draws = model.draw(batch, g)
        assert 0.7 * c.frame_tokens <= draws.masked <= c.frame_tokens
        tokens = first_places(draws.order, 0, draws.masked, c.frames, c.frame_tokens)
        assert draws.heads["video"].noise.shape == (4, tokens.shape[1], c.token_channels)
        assert (tokens.diff(dim=1) > 0).all()
        mask = token_mask(tokens, c.tokens).unflatten(1, (c.frames, -1))
        assert (mask == mask[:, :1]).all()
        assert (mask[:, 0].sum(1) == draws.masked).all()
        masks.append(mask[:, 0].float())
    share = torch.cat(masks).mean(0)
    assert share.min() > 0.7
    assert share.max() < 1.0


def test_take_picks_rows() -> None:
    values = torch.randn(2, 5, 3)
    tokens = torch.tensor([[0, 4], [3, 3]])
    expected = torch.stack([values[0, [0, 4]], values[1, [3, 3]]])
    assert torch.equal(take(values, tokens), expected)


def test_bfloat16_autocast_stays_near_float32() -> None:
    c = UVAConfig(**FULL)
    model, batch = build(c).train(), make_batch(c)
    for mode in MODES:
        model.config = dataclasses.replace(c, modes={mode: 1.0})
        draws = model.draw(batch, torch.Generator().manual_seed(0))
        exact = model.loss(batch, draws).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model.loss(batch, draws).loss
        assert rough.dtype == torch.float32
        assert rough.item() == pytest.approx(exact.item(), rel=0.05)
        model.zero_grad()
        rough.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_checkpointing_changes_memory_not_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        c = UVAConfig(
            **(SMALL | {"checkpointing": recompute, "modes": {"joint": 1.0}, "dropout": 0.3})
        )
        model = build(c).train()
        torch.manual_seed(5)
        model(make_batch(c), rng=torch.Generator().manual_seed(0)).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_weight_decay_spares_biases_norms_and_embeddings() -> None:
    model = build(UVAConfig(**FULL))
    groups = model.param_groups(1e-4, 0.02)
    assert [g["weight_decay"] for g in groups] == [0.02, 0.0]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(
        id(p) for p in model.parameters()
    )
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for p in groups[0]["params"]}
    assert "transformer.join.weight" in decayed
    assert "heads.action.readout.conv.weight" in decayed
    assert not any(
        n.endswith("bias") or "norm" in n or "position" in n or ".no_" in n for n in decayed
    )
    reference = build(UVAConfig(**FULL, decay_embeddings=True)).param_groups(1e-4, 0.02)
    assert len(reference[0]["params"]) - len(decayed) == sum(
        1 for n in names.values() if "position" in n or ".no_" in n
    )


@pytest.mark.parametrize("head", ["diffusion", "flow"])
def test_a_policy_is_learned(head: Any) -> None:
    """The action is the sign of the context: after a few steps, sampled actions have it."""
    c = UVAConfig(
        **(
            SMALL
            | {
                "head": head,
                "modes": {"policy": 1.0},
                "action_sampling_steps": "20",
                "action_dim": 1,
            }
        )
    )
    torch.manual_seed(0)
    model, g = UVA(c), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.param_groups(5e-3, 0.0))

    def batch(rows: int) -> Batch:
        sign = torch.randint(0, 2, (rows,), generator=g) * 2.0 - 1.0
        latents = sign[:, None, None, None, None] * torch.ones(
            2 * c.frames, c.latent_channels, *c.grid
        )
        return Batch(
            latents={"img": latents}, actions=0.5 * sign[:, None, None].expand(rows, c.horizon, 1)
        )

    for _ in range(150):
        optimizer.zero_grad()
        model(batch(32), rng=g).loss.backward()
        optimizer.step()
    test = batch(16)
    got = (
        model.eval()
        .sample(Question(mode="policy", context=test.latents["img"][:, : c.frames]), rng=g)
        .actions
    )
    assert got is not None
    assert test.actions is not None
    assert (got - test.actions).abs().mean() < 0.2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latents": {}}, "latents of 'img'"),
        (
            {"latents": {"img": torch.zeros(3, 2, 3, 3, 4), "wrist": torch.zeros(3, 4, 3, 3, 4)}},
            r"\(3, 4, 3, 3, 4\)",
        ),
        ({"actions": None}, "actions of shape"),
        ({"actions": torch.zeros(3, 28, 2)}, r"\(3, 6, 2\), found \(3, 28, 2\)"),
        ({"text": None}, "text features"),
        ({"state": {}}, "state of 'pos'"),
        ({"past_actions": torch.zeros(3, 7, 2)}, "past actions"),
    ],
)
def test_batches_that_lack_something_are_refused(change: dict[str, Any], words: str) -> None:
    c = UVAConfig(**FULL, modes={"policy": 1.0})
    batch = dataclasses.replace(make_batch(c), **change)
    with pytest.raises(UserError, match=words):
        build(c)(batch, rng=torch.Generator().manual_seed(0))


# --- names in the reference -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, FULL, {"readout": "conv_ori"}, FULL | {"wrist_prediction": False}]
)
def test_names_map_one_to_one(options: dict[str, Any]) -> None:
    c = UVAConfig(**(SMALL | options))
    state = build(c).state_dict()
    names = reference_names(c)
    assert set(names) == set(state)
    assert len(set(names.values())) == len(names)
    back = to_native(to_reference(state, c), c)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_foreign_states_that_do_not_fit_are_refused() -> None:
    c = UVAConfig(**SMALL)
    state = to_reference(build(c).state_dict(), c)
    lacking = {k: v for k, v in state.items() if k != "z_proj.weight"}
    more = state | {"fake_latent": torch.zeros(1, 16)}
    other = state | {"z_proj.weight": torch.zeros(16, 9)}
    for wrong, words in (
        (lacking, "lacks z_proj.weight"),
        (more, "unknown fake_latent"),
        (other, r"\(16, 9\)"),
    ):
        with pytest.raises(UserError, match=words):
            to_native(wrong, c)
    with pytest.raises(UserError, match="diffusion heads only"):
        to_native(state, dataclasses.replace(c, head="flow"))
    with pytest.raises(UserError, match="not known"):
        to_native(state, dataclasses.replace(c, readout="fc"))
