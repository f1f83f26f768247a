"""`ros_discovery_info` and the endpoints themselves: what `ros2 node info` shows."""

from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication, BuiltinTopicDcpsSubscription

from definitions import definition
from stage import NAME
from waiting import dds_topic, service_base, until

PUBLISHED = {
    "~/tokens": "std_msgs/msg/String",
    "~/answer": "std_msgs/msg/String",
    "~/status": "std_msgs/msg/String",
    "~/stream": "takt_msgs/msg/Token",
    "~/sentence": "takt_msgs/msg/Token",
    "~/reply": "takt_msgs/msg/Reply",
    "~/generate/_action/feedback": "takt_msgs/action/Generate_FeedbackMessage",
    "~/generate/_action/status": "action_msgs/msg/GoalStatusArray",
    "~/transition_event": "lifecycle_msgs/msg/TransitionEvent",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    "/parameter_events": "rcl_interfaces/msg/ParameterEvent",
    "/rosout": "rcl_interfaces/msg/Log",
}
HEARD = {"~/ask": "std_msgs/msg/String", "~/prompt": "takt_msgs/msg/Prompt"}
SERVICES = {
    "~/ask": "takt_msgs/srv/Ask",
    "~/engine_info": "takt_msgs/srv/EngineInfo",
    "~/generate/_action/send_goal": "takt_msgs/action/Generate_SendGoal",
    "~/generate/_action/cancel_goal": "action_msgs/srv/CancelGoal",
    "~/generate/_action/get_result": "takt_msgs/action/Generate_GetResult",
    "~/get_parameters": "rcl_interfaces/srv/GetParameters",
    "~/get_parameter_types": "rcl_interfaces/srv/GetParameterTypes",
    "~/describe_parameters": "rcl_interfaces/srv/DescribeParameters",
    "~/list_parameters": "rcl_interfaces/srv/ListParameters",
    "~/set_parameters": "rcl_interfaces/srv/SetParameters",
    "~/set_parameters_atomically": "rcl_interfaces/srv/SetParametersAtomically",
    "~/change_state": "lifecycle_msgs/srv/ChangeState",
    "~/get_state": "lifecycle_msgs/srv/GetState",
    "~/get_available_states": "lifecycle_msgs/srv/GetAvailableStates",
    "~/get_available_transitions": "lifecycle_msgs/srv/GetAvailableTransitions",
    "~/get_transition_graph": "lifecycle_msgs/srv/GetAvailableTransitions",
}


def announced(robot, node: str = NAME):
    """What the participant of `node` says of that node."""
    listener = robot.listen("ros_discovery_info", "rmw_dds_common/msg/ParticipantEntitiesInfo", depth=100, is_late=True)
    namespace, _, name = node.rpartition("/")
    while True:
        for info in listener.next().node_entities_info_seq:
            # A node claims its name first, without endpoints.
            if (info.node_namespace, info.node_name) == (namespace or "/", name) and info.reader_gid_seq:
                return info


def the_node_and_all_its_endpoints_are_in_the_graph(stage):
    with stage.robot() as robot:
        info = announced(robot)
    assert len(info.reader_gid_seq) == len(HEARD) + len(SERVICES), info
    assert len(info.writer_gid_seq) == len(PUBLISHED) + len(SERVICES), info
    identities = {bytes(gid.data) for gid in info.reader_gid_seq + info.writer_gid_seq}
    assert len(identities) == len(info.reader_gid_seq) + len(info.writer_gid_seq), "each once"


def every_endpoint_has_the_name_and_type_that_ros_gives_it(stage):
    def topics(names: dict) -> set:
        return {(dds_topic(NAME, name), definition(kind).dds_name) for name, kind in names.items()}

    def halves(prefix: str, topic_end: str, type_end: str) -> set:
        names = SERVICES.items()
        return {(f"{prefix}{service_base(NAME, name)}{topic_end}", definition(f"{kind}_{type_end}").dds_name) for name, kind in names}

    with stage.robot() as robot:
        info = announced(robot)
        for kind, gids, expected in [
            (BuiltinTopicDcpsSubscription, info.reader_gid_seq, topics(HEARD) | halves("rq", "Request", "Request")),
            (BuiltinTopicDcpsPublication, info.writer_gid_seq, topics(PUBLISHED) | halves("rr", "Reply", "Response")),
        ]:
            own, found = {bytes(gid.data) for gid in gids}, set()
            endpoints = BuiltinDataReader(robot.participant, kind)

            def all_found():
                found.update((each.topic_name, each.type_name) for each in endpoints.take(1000) if each.key.bytes in own)
                return len(found) >= len(own)

            until("the node's endpoints", all_found)
            assert found == expected, f"not expected: {found - expected}; not found: {expected - found}"


CASES = [the_node_and_all_its_endpoints_are_in_the_graph]
# Fast DDS's peer does not look at what others offer.
CYCLONEDDS_CASES = [every_endpoint_has_the_name_and_type_that_ros_gives_it]
