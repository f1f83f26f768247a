"""A robot on CycloneDDS: the topics and the service of a Takt node, as rmw_cyclonedds would use them."""

import random
import time

from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

import interfaces

PATIENCE_S = 30.0


def qos(depth: int = 10, *more, durability=Policy.Durability.Volatile) -> Qos:
    """Reliable, keep last, plain CDR: what ROS 2 uses."""
    return Qos(
        Policy.Reliability.Reliable(duration(seconds=1)),
        durability,
        Policy.History.KeepLast(depth),
        Policy.DataRepresentation(use_cdrv0_representation=True, use_xcdrv2_representation=False),
        *more,
    )


def until(what: str, condition, patience_s: float = PATIENCE_S):
    """The first true value of `condition()`; fails after `patience_s`."""
    end = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: nothing within {patience_s} s")
        time.sleep(0.0002)
    return value


class Robot:
    """One participant with readers and writers matched to the node `name`."""

    def __init__(self, domain: int, name: str):
        self.participant = DomainParticipant(domain)
        self.name = name

    def listen(self, suffix: str, kind=interfaces.Text, depth: int = 10) -> DataReader:
        reader = DataReader(self.participant, Topic(self.participant, f"rt{self.name}/{suffix}", kind), qos(depth))
        until(f"a publisher of ~/{suffix}", reader.get_matched_publications)
        return reader

    def talk(self, suffix: str, kind=interfaces.Text) -> DataWriter:
        writer = DataWriter(self.participant, Topic(self.participant, f"rt{self.name}/{suffix}", kind), qos())
        until(f"a subscriber of ~/{suffix}", writer.get_matched_subscriptions)
        return writer

    def client(self, service: str = "ask", key: str = "") -> "Client":
        return Client(self, service, key)


class Client:
    """A service client in rmw_cyclonedds's mapping; `key` is what rmw puts in USER_DATA, nothing without one."""

    def __init__(self, robot: Robot, service: str, key: str):
        more = [Policy.Userdata(f"clientid={key};".encode())] if key else []
        participant, base = robot.participant, f"{robot.name}/{service}"
        requests = Topic(participant, f"rq{base}Request", interfaces.AskRequest)
        replies = Topic(participant, f"rr{base}Reply", interfaces.AskReply)
        self.reader = DataReader(participant, replies, qos(10, *more))
        self.writer = DataWriter(participant, requests, qos(10, *more))
        self.identity = random.getrandbits(63)
        self.num_calls = 0
        # As rclpy's wait_for_service.
        until("a server", lambda: self.writer.get_matched_subscriptions() and self.reader.get_matched_publications())

    def send(self, prompt: str, system: str = "", deadline_s: float = 60.0, max_tokens: int = 0, **form) -> int:
        """Sends a request; `form` has `schema`, `regex`, `choices` or `closing`."""
        self.num_calls += 1
        sec = int(deadline_s // 1)
        deadline = interfaces.Duration(sec=sec, nanosec=round((deadline_s - sec) * 1e9))
        self.writer.write(
            interfaces.AskRequest(
                client=self.identity,
                sequence=self.num_calls,
                prompt=prompt,
                system=system,
                deadline=deadline,
                max_tokens=max_tokens,
                **{"schema": "", "regex": "", "choices": [], "closing": "", **form},
            )
        )
        return self.num_calls

    def receive(self, patience_s: float = PATIENCE_S):
        """The next reply to this client; replies to others come here too and are passed over."""

        def next_own():
            return next((reply for reply in self.reader.take(1) if reply.client == self.identity), None)

        return until("a reply", next_own, patience_s)

    def call(self, prompt: str, patience_s: float = PATIENCE_S, **demands):
        sequence = self.send(prompt, **demands)
        reply = self.receive(patience_s)
        assert reply.sequence == sequence, f"reply {reply.sequence} to call {sequence}"
        return reply


def take_all(reader: DataReader, num: int, what: str) -> list:
    """The next `num` messages."""
    messages = []
    while len(messages) < num:
        messages += until(what, lambda: reader.take(num - len(messages)))
    return messages
