"""The simulators that come with us, as plugs; importing this loads none of them."""

from foreact.plugs import Simulator

PUSHT = Simulator(
    name="pusht", make="foreact.envs.pusht:make_pusht", collect="foreact.commands.collect:pusht"
)
PUSHT_M = Simulator(
    name="pusht-m", make="foreact.envs.pusht:make_pusht_m", collect="foreact.commands.collect:pusht"
)
DMC = Simulator(name="dmc", collect="foreact.commands.collect:deepmind_control")
LIFT, CAN, SQUARE = (
    Simulator(
        name=name,
        make=f"foreact.envs.robosuite:make_{name}",
        expert=f"foreact.envs.robosuite_experts:{name}_expert",
        success_at=1.0,
    )
    for name in ("lift", "can", "square")
)
