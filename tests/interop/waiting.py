"""Waiting for what others do. Bounds here are hang detectors: a slow machine is no reason to fail."""

import time

from interfaces import interface

PATIENCE_S = 30.0


def until(what: str, condition, patience_s: float = PATIENCE_S):
    """The first true value of `condition()`; fails after `patience_s`."""
    end = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: nothing within {patience_s} s")
        time.sleep(0.0005)
    return value


def dds_topic(node: str, name: str) -> str:
    """`~/name` and `/name` as DDS topics; any other name is one."""
    if name.startswith("~/"):
        return f"rt{node}/{name[2:]}"
    return f"rt{name}" if name.startswith("/") else name


def service_base(node: str, name: str) -> str:
    """A service's name without the prefix of its topics."""
    return f"{node}/{name[2:]}" if name.startswith("~/") else name


def introduce(robot):
    """After it the node knows all that `robot` listens to so far.

    Endpoints are announced in their order, and a reply comes only to a reader that the node knows.
    """
    client = robot.client("~/get_state", "lifecycle_msgs/srv/GetState").wait()
    client.call(interface("lifecycle_msgs/srv/GetState_Request")())
