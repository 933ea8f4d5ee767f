"""Episodes of other projects: readers of what opens as it is, and importers of the rest."""

from foreact.plugs import Format

D4RL = Format(
    name="d4rl",
    recognise="foreact.data.formats.d4rl:is_d4rl",
    open="foreact.data.formats.d4rl:open_shards",
)
DREAMER = Format(
    name="dreamer",
    recognise="foreact.data.formats.dreamer:is_dreamer",
    open="foreact.data.formats.dreamer:refuse_to_open",
)
PACKED = Format(
    name="packed",
    recognise="foreact.data.formats.packed:is_packed",
    open="foreact.data.formats.packed:refuse_to_open",
)
