"""VOC, Video Occupancy Models (arXiv 2407.09533): the discounted future in one step."""

from foreact.plugs import Family

FAMILY = Family(
    name="voc",
    title="a Video Occupancy Model: the discounted future",
    config="foreact.families.voc.config:VOCConfig",
    module="foreact.families.voc.model:VOC",
    train="foreact.families.voc.train:command",
    policy="foreact.families.voc.policy:open_policy",
    policy_options="foreact.families.voc.policy:OccupancyOptions",
    generate="foreact.families.voc.imagine:generate",
    layouts="foreact.families.voc.released.voc:LAYOUTS",
    write="foreact.families.voc.released.voc:write",
)
