"""VaViM and VaVAM (arXiv 2502.15672): a video model of driving, and an expert that drives by it."""

from foreact.plugs import Family

VAVIM = Family(
    name="vavim",
    title="VaViM, the video model of driving",
    config="foreact.families.driving.vavim:VaViMConfig",
    module="foreact.families.driving.vavim:VaViM",
    train="foreact.families.driving.train_vavim:command",
    generate="foreact.families.driving.imagine:generate",
    video="foreact.families.driving.evaluate_video:driving_video",
    layouts="foreact.families.driving.released.read:LAYOUTS",
    write="foreact.families.driving.released.write:write_vavam_checkpoint",
)
VAVAM = Family(
    name="vavam",
    title="VaVAM, which drives from a VaViM",
    config="foreact.families.driving.vavam:VaVAMConfig",
    module="foreact.families.driving.vavam:VaVAM",
    train="foreact.families.driving.train_vavam:command",
    policy="foreact.families.driving.policy:open_policy",
    policy_options="foreact.families.driving.policy:DrivingOptions",
    generate="foreact.families.driving.imagine:generate",
    video="foreact.families.driving.evaluate_video:driving_video",
    write="foreact.families.driving.released.write:write_vavam_checkpoint",
)
