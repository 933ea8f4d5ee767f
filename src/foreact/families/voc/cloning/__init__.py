"""Behaviour cloning on the codes of occupancy models: proposes actions to their planner."""

from foreact.plugs import Family

FAMILY = Family(
    name="bc",
    title="behaviour cloning on codes",
    config="foreact.families.voc.cloning.model:CloningConfig",
    module="foreact.families.voc.cloning.model:Cloning",
    train="foreact.families.voc.cloning.train:command",
    policy="foreact.families.voc.cloning.policy:open_policy",
    policy_options="foreact.families.voc.cloning.policy:CloningOptions",
)
