"""VOC and its tokenizer in one module: who learns from what, the
freeze, and taking the two apart again.
"""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from foreact.errors import UserError
from foreact.families.voc.config import VOCConfig
from foreact.families.voc.from_pixels import JointVOC
from foreact.families.voc.model import VOC
from foreact.tokenizers.images import prepare
from foreact.tokenizers.musik import Musik, MusikConfig
from foreact.tokenizers.vq import VQConfig, VQTokenizer
from foreact.types import Batch, Trainable

T, N = 2, 1
SHAPE: dict[str, Any] = {
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "features": 6,
    "codes": 12,
    "code_dim": 4,
    "norm_groups": 4,
    "image_size": (8, 8),
}
MUSIK = MusikConfig(actions=2, frames=T, summary=5, hidden=7, negatives=9, **SHAPE)
VQ = VQConfig(normalized=True, **SHAPE)
CONFIG = VOCConfig(
    width=8,
    heads=2,
    layers=1,
    dropout=0.0,
    attention_dropout=0.0,
    vocab=12,
    code_dim=4,
    grid=(4, 4),
    frames=T,
    gammas=(0.5,),
    bootstrap_steps=N,
    camera="cam",
    reward_hidden=8,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def joint(
    kind: str = "vq", config: VOCConfig = CONFIG, freeze_after: int | None = None
) -> JointVOC:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(VQ) if kind == "vq" else Musik(MUSIK)
    return JointVOC(
        VOC(config), tokenizer, partial(prepare, size=(8, 8)), freeze_after=freeze_after
    )


def batch(frames: int = T + N + T) -> Batch:
    video = torch.randint(0, 256, (6, frames, 3, 8, 8), generator=generator(1), dtype=torch.uint8)
    actions = torch.rand(6, 2, 2, generator=generator(2)) * 2 - 1
    return Batch(
        video={"cam": video}, actions=actions, rewards=torch.rand(6, N, generator=generator(3))
    )


def step(model: JointVOC, **changes: Any) -> dict[str, Tensor]:
    """One optimiser step on the batch, as the training loop makes it; returns the logs."""
    optimizer = torch.optim.AdamW(model.param_groups(1e-2, 0.1))
    out = model(dataclasses.replace(batch(), **changes), rng=generator())
    out.loss.backward()
    optimizer.step()
    model.after_step()
    return out.logs


@pytest.mark.parametrize("kind", ["vq", "musik"])
def test_both_learn_and_their_losses_are_added(kind: str) -> None:
    model = joint(kind)
    assert isinstance(model, Trainable)
    assert model.used_parameters == "all"
    alone, data = copy.deepcopy(model), batch()
    out = model(data, rng=generator())
    codes = alone.tokenizer.encode(prepare(data.video["cam"][:, : T + N], (8, 8)))
    rng = generator()  # VOC draws first
    found = alone.voc(dataclasses.replace(data, tokens={"cam": codes}), rng=rng)
    own = alone.tokenizer(data, rng=rng)
    torch.testing.assert_close(out.loss, found.loss + own.loss)
    assert {*found.logs, *own.logs, "codes_in_use"} == set(out.logs)
    assert out.logs["codes_in_use"] == pytest.approx(len(codes.unique()) / 12)
    out.loss.backward()
    own.loss.backward()
    for name, p in alone.tokenizer.named_parameters():
        torch.testing.assert_close(model.tokenizer.get_parameter(name).grad, p.grad, msg=name)
    unmoved = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unmoved


def test_the_reward_head_reads_the_codebook_of_the_moment() -> None:
    model = joint()
    torch.testing.assert_close(model.voc.codebook, model.tokenizer.codebook.detach())
    step(model)
    moved = model.tokenizer.codebook.detach()
    assert not torch.allclose(model.voc.codebook, moved)
    model(batch(), rng=generator())
    assert torch.equal(model.voc.codebook, moved)


def test_the_target_network_follows_after_every_step() -> None:
    model = joint()
    before = model.voc.target.token_embedding.weight.clone()
    step(model)
    online, target = model.voc.gpt.token_embedding.weight, model.voc.target.token_embedding.weight
    torch.testing.assert_close(target, 0.9 * before + 0.1 * online)
    assert model.steps == 1


@pytest.mark.parametrize("kind", ["vq", "musik"])
def test_a_frozen_tokenizer_stays_as_it_is_while_voc_learns_on(kind: str) -> None:
    model = joint(kind, freeze_after=2)
    assert model.used_parameters == "varying"

    def moves() -> tuple[bool, bool]:
        before = copy.deepcopy(model.state_dict())
        logs = step(model)
        after = model.state_dict()
        changed = {
            name.split(".")[0] for name, t in after.items() if not torch.equal(t, before[name])
        }
        assert "codes_in_use" in logs
        model.zero_grad()
        return "voc" in changed, "tokenizer" in changed

    assert [moves() for _ in range(4)] == [(True, True), (True, True), (True, False), (True, False)]


def test_a_resumed_model_knows_that_it_is_frozen() -> None:
    model = joint(freeze_after=1)
    step(model)
    resumed = joint(freeze_after=1)
    resumed.load_state_dict(model.state_dict())
    assert resumed.frozen


def test_a_state_is_taken_apart_into_two_checkpoints_that_belong_together() -> None:
    model = joint()
    step(model)  # the buffer still holds the rows from before the step
    voc_state, tokenizer_state = model.split_state(model.state_dict())
    voc, tokenizer = VOC(CONFIG), VQTokenizer(VQ)
    voc.load_state_dict(voc_state)
    tokenizer.load_state_dict(tokenizer_state)
    assert torch.equal(voc.codebook, tokenizer.codebook)
    assert torch.equal(voc.codebook, model.tokenizer.codebook)
    assert torch.equal(voc.gpt.token_embedding.weight, model.voc.gpt.token_embedding.weight)


def test_actions_reach_the_model_that_is_conditioned_on_them() -> None:
    model = joint(config=dataclasses.replace(CONFIG, actions=2))
    logs = step(model)
    assert logs["nats_per_code"] > 0
    with pytest.raises(UserError, match="conditioned on actions"):
        model(dataclasses.replace(batch(), actions=None), rng=generator())


def test_padding_teaches_the_tokenizer_nothing() -> None:
    model, data = joint(), batch(T + N)
    data.valid["cam"] = torch.tensor([[False, True, True]]).expand(6, -1)
    loss = model(data, rng=generator()).logs["l1"]
    shown = Batch(video={"cam": data.video["cam"][:, 1:]})
    torch.testing.assert_close(loss, model.tokenizer(shown, rng=generator()).logs["l1"])


def test_parts_that_do_not_fit_are_told() -> None:
    with pytest.raises(UserError, match=r"\(2, 2\) codes a frame.*\(4, 4\)"):
        joint(config=dataclasses.replace(CONFIG, grid=(2, 2)))
    with pytest.raises(UserError, match="codebook of 13"):
        joint(config=dataclasses.replace(CONFIG, vocab=13))
    with pytest.raises(UserError, match=r"--freeze-after should be a number of steps .*, found -1"):
        joint(freeze_after=-1)
