"""Episodes of other projects: readers of what opens as it is, and importers of the rest."""

from foreact.plugs import Format

# Before V-D4RL's, which takes any other HDF5 file.
LIBERO = Format(
    name="libero",
    recognise="foreact.data.formats.libero:is_libero",
    open="foreact.data.formats.libero:open_format",
    options=("text", "pairing", "flip"),
)
ROBOMIMIC = Format(
    name="robomimic",
    recognise="foreact.data.formats.robomimic:is_robomimic",
    open="foreact.data.formats.robomimic:open_format",
    options=("mask", "flip"),
)
LIBERO_CACHE = Format(
    name="libero-cache",
    recognise="foreact.data.formats.libero_cache:is_libero_cache",
    open="foreact.data.formats.libero_cache:refuse_to_open",
)
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
LEROBOT = Format(
    name="lerobot",
    recognise="foreact.data.formats.lerobot.info:is_lerobot",
    open="foreact.data.formats.lerobot.store:open_format",
)
VIDEO_FOLDER = Format(
    name="video-folder",
    recognise="foreact.data.formats.video_folder:is_video_folder",
    open="foreact.data.formats.video_folder:open_format",
)
PACKED = Format(
    name="packed",
    recognise="foreact.data.formats.packed:is_packed",
    open="foreact.data.formats.packed:refuse_to_open",
)
