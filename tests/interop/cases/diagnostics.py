"""`/diagnostics` and `/rosout`."""

import time

from interfaces import interface
from stage import NAME
from waiting import introduce

PARTS = {"lifecycle", "deadlines", "queue", "costs", "engine", "speculation", "hardware"}


def every_part_says_how_it_is_again_and_again(stage):
    with stage.robot() as robot:
        listener = robot.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray").wait()
        for _ in range(2):
            array = listener.next()
            assert abs(array.header.stamp.sec - time.time()) < 3600, array.header
            parts = {status.name: status for status in array.status}
            assert set(parts) == {f"{NAME[1:]}: {part}" for part in PARTS}, set(parts)
            assert all(status.level in (0, 1, 2) and status.message for status in array.status), array
        figures = {part.partition(": ")[2]: {value.key: value.value for value in parts[part].values} for part in parts}
        assert figures["lifecycle"]["state"] == "active", figures
        assert figures["engine"]["architecture"] == "qwen3" and figures["queue"]["open requests"].isdigit(), figures


def what_the_node_logs_is_on_rosout(stage):
    with stage.robot() as robot:
        log = robot.listen("/rosout", "rcl_interfaces/msg/Log", depth=1000, is_late=True).wait()
        introduce(robot)
        kind = "lifecycle_msgs/srv/ChangeState"
        transition = interface("lifecycle_msgs/Transition")(label=f"sing {time.monotonic_ns()}")
        robot.client("~/change_state", kind).wait().call(interface(f"{kind}_Request")(transition=transition))
        record = log.next()
        while transition.label not in record.msg:
            record = log.next()
        assert (record.name, record.level) == (NAME[1:].replace("/", "."), 30), record
        assert abs(record.stamp.sec - time.time()) < 3600 and record.file and record.function, record


CASES = [every_part_says_how_it_is_again_and_again, what_the_node_logs_is_on_rosout]
