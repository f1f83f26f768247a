"""Starts the node `takt`, brings its lifecycle up, and starts it again when it fails.

    ros2 launch takt_bringup takt.launch.py engine:=/var/lib/takt/engines/qwen3-1.7b board:=orin-nano-8gb

The binary is not built by colcon: it comes from the Debian package, the installer or `cargo install`, and must be in PATH.
"""

import asyncio
import os
import time
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueCoroutine, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessStart
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.ros_adapters import get_ros_node
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

# Seconds: between two looks at the node; until it is asked again. A transition that takes longer (opening an engine) shows in the state meanwhile.
PAUSE, PATIENCE = 0.2, 5.0

NEXT_TRANSITION = {
    State.PRIMARY_STATE_UNCONFIGURED: Transition.TRANSITION_CONFIGURE,
    State.PRIMARY_STATE_INACTIVE: Transition.TRANSITION_ACTIVATE,
}

# As `takt doctor` looks for them, without what only makes sense beside the binary.
BOARD_FOLDERS = ["jetson-configs", "/etc/takt", "/usr/share/takt/jetson-configs", "/opt/takt/jetson-configs"]

ARGUMENTS = [
    DeclareLaunchArgument("engine", description="engine directory, written by `takt build`"),
    DeclareLaunchArgument(
        "board", default_value="", description="board file, or the name of a shipped one, as orin-nano-8gb; empty: built-in values"
    ),
    DeclareLaunchArgument("namespace", default_value="/", description="ROS namespace"),
    DeclareLaunchArgument("node_name", default_value="takt", description="node name"),
    DeclareLaunchArgument(
        "log_level", default_value="warn", choices=["debug", "info", "warn", "error"], description="least severe message that is logged"
    ),
    DeclareLaunchArgument(
        "params_file",
        default_value=PathJoinSubstitution([FindPackageShare("takt_bringup"), "config", "takt.params.yaml"]),
        description="ROS parameters; they win over the board file",
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="node",
        choices=["node", "launch", "off"],
        description="who configures and activates: the node itself, this launch file, or somebody else (a lifecycle manager)",
    ),
    DeclareLaunchArgument("respawn", default_value="true", choices=["true", "false"], description="start the node again when it ends"),
    DeclareLaunchArgument("respawn_delay", default_value="2.0", description="seconds before it is started again"),
]


def board_file(name):
    """The path of a board file given as a path or as a shipped file's name."""
    if os.path.isfile(name):
        return name
    if os.sep not in name:
        for folder in BOARD_FOLDERS:
            path = Path(folder) / f"{name}.toml"
            if path.is_file():
                return str(path)
        known = sorted({path.stem for folder in BOARD_FOLDERS for path in Path(folder).glob("*.toml")})
        raise RuntimeError(f"no board file {name!r} in {', '.join(BOARD_FOLDERS)}; there are: {', '.join(known) or 'none'}")
    raise RuntimeError(f"no board file {name}")


def launch_node(context):
    """The node with its arguments, and what brings its lifecycle up."""
    value = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in ARGUMENTS}
    config = ["--config", board_file(value["board"])] if value["board"] else []
    node = LifecycleNode(
        executable="takt",  # no package: looked up in PATH
        name=value["node_name"],
        namespace=value["namespace"],
        arguments=["serve", "--engine", value["engine"], *config],
        ros_arguments=["--log-level", value["log_level"]],
        parameters=[value["params_file"], {"autostart": value["autostart"] == "node"}],
        respawn=value["respawn"] == "true",
        respawn_delay=float(value["respawn_delay"]),
        output="screen",
        emulate_tty=False,  # plain lines, without colours, in the log
    )
    return [*lifecycle_handlers(node, is_driven=value["autostart"] == "launch"), node]


def lifecycle_handlers(node, is_driven):
    """Says when the node is active; where this file drives it, brings it there whenever its process starts, also again."""
    on_active = OnStateTransition(
        target_lifecycle_node=node, goal_state="active", entities=[LogInfo(msg="takt is active: it takes requests")]
    )
    if not is_driven:
        return [RegisterEventHandler(on_active)]
    running = {}

    def drive(event, _context):
        running["pid"] = event.pid
        return OpaqueCoroutine(coroutine=bring_up, args=[node, event.pid, running])

    return [RegisterEventHandler(OnProcessStart(target_action=node, on_start=drive)), RegisterEventHandler(on_active)]


async def bring_up(context, node, pid, running):
    """Configures and activates the node of process `pid`, asking again until it answers, and stopping at the first refusal.

    An event of launch_ros would ask once: after a crash the middleware still knows the dead process's service, so that the request is sent before
    the new process can hear it, and its answer is waited for in vain.
    """
    ros_node = get_ros_node(context)
    state_of = ros_node.create_client(GetState, f"{node.node_name}/get_state")
    change = ros_node.create_client(ChangeState, f"{node.node_name}/change_state")
    asked, quiet_since = None, 0.0  # the transition that is waited for; since when the node has stood where it would begin
    try:
        while running["pid"] == pid:
            if asked and asked.done():
                if not asked.result().success:
                    return tell_refusal(node.node_name)
                asked = None
            state = await ask(state_of, GetState.Request())
            state_id = state.current_state.id if state else None
            if state_id in (State.PRIMARY_STATE_ACTIVE, State.PRIMARY_STATE_FINALIZED):
                return
            if state_id not in NEXT_TRANSITION:
                quiet_since = time.monotonic()  # a transition runs; its answer comes after it
            elif (not asked or time.monotonic() > quiet_since + PATIENCE) and change.service_is_ready():
                if asked:
                    change.remove_pending_request(asked)
                asked = change.call_async(ChangeState.Request(transition=Transition(id=NEXT_TRANSITION[state_id])))
                quiet_since = time.monotonic()
            await asyncio.sleep(PAUSE)
    except asyncio.CancelledError:
        pass  # shutting down: passed on, it would end `ros2 launch` before it has ended the node
    finally:
        ros_node.destroy_client(state_of)
        ros_node.destroy_client(change)


def tell_refusal(name):
    """Asked again it would refuse again: an engine that does not open opens no better in a moment."""
    get_logger("takt.launch").error(
        f"{name} refused to be configured or activated and is not asked again; its log says why. Mend it, then start this launch file again, "
        f"or: ros2 lifecycle set {name} configure && ros2 lifecycle set {name} activate"
    )


async def ask(client, request):
    """The response, or None when there is none in time."""
    if not client.service_is_ready():
        return None
    future = client.call_async(request)
    end = time.monotonic() + PATIENCE
    while not future.done() and time.monotonic() < end:
        await asyncio.sleep(PAUSE)
    if future.done():
        return future.result()
    client.remove_pending_request(future)
    return None


def generate_launch_description():
    """Called by `ros2 launch`."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=launch_node)])
