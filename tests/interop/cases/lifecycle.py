"""The lifecycle services and `~/transition_event`."""

from cases.service import check_complete, client_of, request
from interfaces import LONG, interface
from waiting import introduce

UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = 1, 2, 3, 4
CONFIGURE, ACTIVATE, DEACTIVATE, SHUTDOWN_INACTIVE = 1, 3, 4, 6


def ask_for(robot, service: str, kind: str):
    kind = f"lifecycle_msgs/srv/{kind}"
    return robot.client(f"~/{service}", kind).wait().call(interface(f"{kind}_Request")())


def state(robot) -> tuple:
    current = ask_for(robot, "get_state", "GetState").current_state
    return current.id, current.label


def change(robot, transition_id: int, label: str = "") -> bool:
    kind = "lifecycle_msgs/srv/ChangeState"
    transition = interface("lifecycle_msgs/Transition")(id=transition_id, label=label)
    client = robot.client("~/change_state", kind).wait()
    return bool(client.call(interface(f"{kind}_Request")(transition=transition)).success)


def the_state_machine_is_that_of_ros(stage):
    with stage.robot() as robot:
        assert state(robot) == (ACTIVE, "active")
        states = {each.id: each.label for each in ask_for(robot, "get_available_states", "GetAvailableStates").available_states}
        assert len(states) == 11 and states[0] == "unknown" and states[13] == "activating", states
        possible = ask_for(robot, "get_available_transitions", "GetAvailableTransitions").available_transitions
        found = {(each.transition.id, each.transition.label, each.goal_state.label) for each in possible}
        assert found == {(4, "deactivate", "deactivating"), (7, "shutdown", "shuttingdown")}, found
        graph = ask_for(robot, "get_transition_graph", "GetAvailableTransitions").available_transitions
        assert len(graph) == 25, [each.transition for each in graph]
        assert not change(robot, CONFIGURE), "it is configured"
        assert not change(robot, 0, "fly"), "no such transition"


def a_node_at_rest_refuses_and_answers_what_was_open(stage):
    with stage.robot() as robot:
        events = robot.listen("~/transition_event", "lifecycle_msgs/msg/TransitionEvent").wait()
        client = client_of(robot)
        introduce(robot)
        long = request("Tell me all.", priority_class="interactive", **LONG)
        # Its form is known from then on: the next are at work at once.
        client.call(long)
        for _ in range(6):
            client.send(long)
        try:
            assert change(robot, DEACTIVATE) and state(robot) == (INACTIVE, "inactive")
            replies = [client.next().reply for _ in range(6)]
            assert "cancelled" in {reply.status for reply in replies}, replies
            assert {reply.status for reply in replies} <= {"cancelled", "complete"}, replies
            told = [(event.transition.label, event.goal_state.label) for event in (events.next(), events.next())]
            assert told == [("deactivate", "deactivating"), ("transition_success", "inactive")], told
            refused = client.call(request())
            assert refused.status == "rejected" and "not active" in refused.reason, refused
        finally:
            assert change(robot, 0, "activate") and state(robot) == (ACTIVE, "active")
        check_complete(client.call(request()))


def a_manager_brings_a_node_up_and_down(stage):
    """As a launch file does it that starts nodes without `autostart`."""
    name = "/interop/managed"
    arguments = ["-r", "__node:=managed", "-p", "autostart:=false"]
    with stage.start_node(*arguments, name=name, up="is unconfigured") as node, stage.robot(name) as robot:
        client = client_of(robot)
        assert state(robot) == (UNCONFIGURED, "unconfigured")
        info = robot.client("~/engine_info", "takt_msgs/srv/EngineInfo").wait()
        told = info.call(interface("takt_msgs/srv/EngineInfo_Request")())
        assert told.lifecycle_state == "unconfigured" and not told.architecture and told.num_lanes == 0, told
        assert "configure" in client.call(request()).reason
        assert not change(robot, ACTIVATE), "there is no engine"
        assert change(robot, CONFIGURE) and state(robot) == (INACTIVE, "inactive")
        assert client.call(request()).status == "rejected"
        assert change(robot, ACTIVATE) and state(robot) == (ACTIVE, "active")
        check_complete(client.call(request()))
        assert change(robot, DEACTIVATE) and change(robot, SHUTDOWN_INACTIVE)
        assert state(robot) == (FINALIZED, "finalized")
        assert client.call(request()).status == "rejected"
        node.stop()


CASES = [
    the_state_machine_is_that_of_ros,
    a_node_at_rest_refuses_and_answers_what_was_open,
    a_manager_brings_a_node_up_and_down,
]
