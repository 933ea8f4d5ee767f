"""The GPT-2 of Video Occupancy Models: loss, gradients, decay
groups, greedy and top-k generation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from parity.registry import Case, adapter
from torch import Tensor
from torch.nn import functional

from foreact.families.voc.network import draw_codes
from foreact.families.voc.released.gpt2 import config_of, reference_key, to_native, to_reference
from foreact.nn.gpt import KVCache
from foreact.nn.gpt2 import GPT2, GPT2Config


def gpt2(case: Case) -> GPT2:
    raw: dict[str, Any] = case.config["gpt2"]
    state = to_native(case.weights)
    config = GPT2Config(
        vocab=raw["vocab_size"],
        positions=raw["n_positions"],
        width=raw["n_embd"],
        heads=raw["n_head"],
        layers=raw["n_layer"],
        dropout=raw["resid_pdrop"],
        attention_dropout=raw["attn_pdrop"],
    )
    assert config_of(state, heads=config.heads) == config, "sizes from shapes"
    model = GPT2(config)
    model.load_state_dict(state, strict=True)
    back = to_reference(model.state_dict())
    assert back.keys() == case.weights.keys()
    assert all(torch.equal(t, case.weights[k]) for k, t in back.items())
    return model


@torch.no_grad()
def decode(model: GPT2, context: Tensor, length: int, choose: Any) -> tuple[Tensor, Tensor]:
    """`choose(logits (B, V), i)` picks code i from the cache's
    logits: codes (B, length), logits (B, length, V).
    """
    caches = [KVCache(context.shape[1] + length) for _ in model.blocks]
    codes, seen = [], []
    tokens = context
    for i in range(length):
        seen.append(model.readout(model.last(model.embed(tokens), caches)))
        codes.append(choose(seen[-1], i))
        tokens = codes[-1][:, None]
    return torch.stack(codes, dim=1), torch.stack(seen, dim=1)


@adapter("voc", "gpt2_lm")
def gpt2_lm(case: Case) -> None:
    model = gpt2(case)
    context, target = case.io["in.context"], case.io["in.target"]
    length = case.config["L"]
    tokens = torch.cat([context, target], dim=1)
    logits = model.logits(tokens)
    case.check("out.logits", logits)
    losses = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    losses = losses.view(len(tokens), -1)
    case.check("out.per_position_loss", losses)
    case.check("out.loss", losses.mean())
    case.check("out.target_logprob", -losses[:, -length:])
    case.check("out.greedy", decode(model, context, length, lambda logits, _: logits.argmax(-1))[0])

    losses.mean().backward()
    gradients = to_reference(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    )
    expected = [name for name in case.io if name.startswith("out.grad.")]
    assert expected
    for name in expected:
        case.check(name, gradients[gradient_key(name.removeprefix("out.grad."), gradients)])

    names = {id(p): reference_key(name) for name, p in model.named_parameters()}
    decaying, others = (
        [names[id(p)] for p in group["params"]] for group in model.param_groups(1e-3, 0.1)
    )
    assert sorted(decaying) == sorted(case.config["decay_params"])
    assert sorted(others) == sorted(case.config["no_decay_params"])


def gradient_key(short: str, keys: Iterable[str]) -> str:
    """The parameter that "wte", "wpe" or "h0_c_attn" stands for."""
    layer, _, leaf = short.partition("_")
    start, end = (
        (f"transformer.h.{layer[1:]}.", f"{leaf}.weight")
        if leaf
        else (f"transformer.{layer}.", "weight")
    )
    (key,) = [k for k in keys if k.startswith(start) and k.endswith(end)]
    return key


@adapter("voc", "generate_topk")
def generate_topk(case: Case) -> None:
    model = gpt2(case)
    context, top_k = case.io["in.context"], case.config["effective_top_k"]
    uniform = case.io["draw.uniform"]
    samples, logits = decode(
        model,
        context,
        case.config["L"],
        lambda logits, i: draw_codes(logits, uniform[:, i], top_k=top_k),
    )
    case.check("out.samples", samples)
    case.check("out.untruncated_logits", logits)
    least = logits.topk(top_k, dim=-1).values[..., -1:]
    case.check("out.kept_mask", logits >= least)
    case.check("out.step_probs", logits.masked_fill(logits < least, -torch.inf).softmax(-1))
