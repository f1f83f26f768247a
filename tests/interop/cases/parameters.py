"""The six parameter services and `/parameter_events`."""

from cases.service import client_of, request
from interfaces import interface
from stage import NAME
from waiting import PATIENCE_S, introduce, until

RCL = "rcl_interfaces/srv"
DEADLINE = "scheduler.default_deadline_ms"
BOOL, INTEGER, DOUBLE, STRING, STRINGS = 1, 2, 3, 4, 9


def make(kind: str, **fields):
    return interface(f"rcl_interfaces/{kind}")(**fields)


def integer(name: str, value: int):
    return make("Parameter", name=name, value=make("ParameterValue", type=INTEGER, integer_value=value))


def call(robot, service: str, kind: str, **fields):
    """One call of `~/service`."""
    return robot.client(f"~/{service}", f"{RCL}/{kind}").wait().call(interface(f"{RCL}/{kind}_Request")(**fields))


def set_one(robot, parameter):
    (result,) = call(robot, "set_parameters", "SetParameters", parameters=[parameter]).results
    return result


def parameters_are_listed_read_and_described(stage):
    with stage.robot() as robot:
        listed = call(robot, "list_parameters", "ListParameters").result
        assert {DEADLINE, "engine.lanes", "use_sim_time"} <= set(listed.names), listed.names
        assert "scheduler" in listed.prefixes, listed.prefixes
        below = call(robot, "list_parameters", "ListParameters", prefixes=["sampling"], depth=2).result.names
        assert below and all(name.startswith("sampling.") for name in below), below
        names = [DEADLINE, "ros.system_prompt", "sampling.temperature", "engine.speculate", "ros.namespace", "no.such"]
        values = call(robot, "get_parameters", "GetParameters", names=names).values
        types = call(robot, "get_parameter_types", "GetParameterTypes", names=names).types
        assert list(types) == [value.type for value in values] == [INTEGER, STRING, DOUBLE, BOOL, STRING, 0], types
        assert values[0].integer_value == 60_000 and "fetch-1" in values[1].string_value, values
        assert values[3].bool_value and values[4].string_value == "/interop", values
        deadline, _, temperature, _, namespace, unknown = call(
            robot, "describe_parameters", "DescribeParameters", names=names
        ).descriptors
        assert deadline.name == DEADLINE and deadline.type == INTEGER and deadline.description, deadline
        assert deadline.integer_range[0].to_value > 60_000 and not deadline.read_only, deadline
        assert temperature.floating_point_range[0].to_value == 10 and namespace.read_only, (temperature, namespace)
        assert unknown.type == 0, unknown


def what_may_not_be_set_is_refused_with_the_reason(stage):
    with stage.robot() as robot:
        text = make("ParameterValue", type=STRING, string_value="/elsewhere")
        for parameter, word in [
            (integer(DEADLINE, -1), "from 0"),
            (integer(DEADLINE, 10**15), "from 0"),
            (make("Parameter", name=DEADLINE, value=text), ""),
            (make("Parameter", name=DEADLINE), "deleted"),
            (make("Parameter", name="ros.namespace", value=text), "read-only"),
            (integer("engine.lanes", 2), "unconfigured"),
            (integer("scheduler.default_deadline", 1), DEADLINE),
        ]:
            result = set_one(robot, parameter)
            assert not result.successful and result.reason and word in result.reason, (parameter, result)
        both = [integer(DEADLINE, 1234), integer("engine.lanes", 0)]
        result = call(robot, "set_parameters_atomically", "SetParametersAtomically", parameters=both).result
        assert not result.successful, result
        (value,) = call(robot, "get_parameters", "GetParameters", names=[DEADLINE]).values
        assert value.integer_value == 60_000, "all or none"


def a_change_holds_for_the_next_request_and_is_told_to_everybody(stage):
    with stage.robot() as robot, stage.robot() as listener:
        events = listener.listen("/parameter_events", "rcl_interfaces/msg/ParameterEvent", depth=100).wait()
        introduce(listener)
        client = client_of(robot)

        def next_change(patience_s=PATIENCE_S):
            event = events.next(patience_s)
            while event.node != NAME or not event.changed_parameters:
                event = events.next(patience_s)
            return event

        def is_heard():
            """A volatile topic may lose what is said while reader and writer are still agreeing on where to begin."""
            said.append(50_000 + len(said))
            set_one(robot, integer(DEADLINE, said[-1]))
            try:
                return next_change(1.0)
            except AssertionError:
                return None

        said = []
        try:
            until("a first event", is_heard)
            for value_ms in (54_321, 60_000):
                result = set_one(robot, integer(DEADLINE, value_ms))
                assert result.successful and not result.reason, result
                event = next_change()
                (changed,) = event.changed_parameters
                assert (changed.name, changed.value.integer_value) == (DEADLINE, value_ms), event
                reply = client.call(request(deadline_s=0.0))
                assert reply.status == "complete" and reply.deadline_ms == value_ms, reply
        finally:
            set_one(robot, integer(DEADLINE, 60_000))


CASES = [
    parameters_are_listed_read_and_described,
    what_may_not_be_set_is_refused_with_the_reason,
    a_change_holds_for_the_next_request_and_is_told_to_everybody,
]
