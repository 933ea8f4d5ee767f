"""UVA, the Unified Video Action model (arXiv 2503.00200): robot manipulation."""

from foreact.plugs import Family

FAMILY = Family(
    name="uva",
    title="the Unified Video Action model",
    config="foreact.families.uva.config:UVAConfig",
    module="foreact.families.uva.model:UVA",
    train="foreact.families.uva.train:command",
    policy="foreact.families.uva.opening:open_policy",
    policy_options="foreact.families.uva.policy:UVAOptions",
    generate="foreact.families.uva.imagine:generate",
    video="foreact.families.uva.imagine:video",
    layouts="foreact.families.uva.released.read:LAYOUTS",
)
