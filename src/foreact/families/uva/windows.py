"""Which steps UVA learns from: frames, states, actions and the instruction of one sample."""

from __future__ import annotations

from foreact.data.windows.window import Window
from foreact.families.uva.config import UVAConfig, state_offsets
from foreact.families.uva.timing import (
    action_offsets,
    context_offsets,
    frame_stride,
    future_offsets,
    past_action_offsets,
)


def window_of(config: UVAConfig, *, pixels: bool) -> Window:
    """Steps of one sample: F context frames up to now, F frames ahead, K actions from now on.

    As in the reference, frames lie K / F steps apart and a window may reach 1 step before an
    episode and K / 2 - 1 beyond it. Unlike there it may also begin with an episode: the context of
    the first steps is filled with the first frame, as it is when acting.

    Args:
        config: of the model; with an uneven context, all K past steps come along, of which training
            shows some.
        pixels: frames as pictures, not as stored latents.
    """
    c, stride = config, frame_stride(config.horizon, config.frames)
    past = list(range(1 - c.horizon, 1)) if c.uneven_context else None
    frames = (*(past or context_offsets(c.frames, stride)), *future_offsets(c.frames, stride))
    past_states = (past or state_offsets(c)) if c.proprioception else []
    future_states = range(1, c.horizon + 1) if c.foreseen_states else ()
    streams = dict.fromkeys([*c.proprioception, *c.foreseen_states])
    cameras = dict.fromkeys(c.views.values(), frames)
    actions: list[int] = []
    past_actions: list[int] = []
    if c.predict_action:
        actions = action_offsets(c.horizon, first_now=c.first_now)
    if c.past_actions:
        past_actions = past_action_offsets(c.horizon, first_now=c.first_now)
    return Window(
        video=cameras if pixels else {},
        latents={} if pixels else cameras,
        actions=tuple(actions),
        past_actions=tuple(past_actions),
        state=dict.fromkeys(streams, (*past_states, *future_states)),
        text=c.text_dim is not None,
        span=(frames[0], max([frames[-1], *actions, *future_states])),
        pad_before=-frames[0],
        pad_after=max(c.horizon // 2 - 1, 0),
    )
