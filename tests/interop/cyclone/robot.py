"""A robot on CycloneDDS: topics, services and messages as rmw_cyclonedds has them.

The same classes and methods as in `fastdds/robot.py`, so that every case is written once.
"""

import functools
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import make_idl_struct
from cyclonedds.idl import types as idl
from cyclonedds.internal import InvalidSample
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from definitions import definition
from interfaces import interface, with_header
from waiting import PATIENCE_S, dds_topic, service_base, until

CALLER = Path(__file__).with_name("caller.py")


def qos(depth: int, is_reliable: bool = True, is_late: bool = False, more: tuple = ()) -> Qos:
    """Keep last, plain CDR; reliable and volatile unless said otherwise: what ROS 2 uses."""
    return Qos(
        Policy.Reliability.Reliable(duration(seconds=1)) if is_reliable else Policy.Reliability.BestEffort,
        Policy.Durability.TransientLocal if is_late else Policy.Durability.Volatile,
        Policy.History.KeepLast(depth),
        Policy.DataRepresentation(use_cdrv0_representation=True, use_xcdrv2_representation=False),
        *more,
    )


@dataclass
class Answer:
    """A reply and the call that it is to."""

    sequence: int
    reply: object


class Robot:
    """One participant beside the node `node`; a context.

    What it hears is kept deeper than ROS 2's 10: replies to every client come to each, and a slow machine is no reason to lose one.
    """

    vendor = "CycloneDDS"
    # Raw messages of the same length share a writer: with few lengths there are few.
    raw_step = 64

    def __init__(self, domain: int, node: str):
        self.participant, self.domain, self.node = DomainParticipant(domain), domain, node
        self.topics = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.topics.clear()
        del self.participant

    def topic(self, name: str, kind: type) -> Topic:
        if name not in self.topics:
            self.topics[name] = Topic(self.participant, name, kind)
        return self.topics[name]

    def listen(self, name: str, kind: str, depth: int = 100, is_reliable: bool = True, is_late: bool = False) -> "Listener":
        """Without waiting for a publisher."""
        topic = self.topic(dds_topic(self.node, name), interface(kind))
        return Listener(DataReader(self.participant, topic, qos(depth, is_reliable, is_late)), name)

    def talk(self, name: str, kind: str, depth: int = 10) -> "Talker":
        topic = self.topic(dds_topic(self.node, name), interface(kind))
        raw = RawTopic(self, dds_topic(self.node, name), definition(kind).dds_name, depth)
        return Talker(DataWriter(self.participant, topic, qos(depth)), name, raw)

    def client(self, name: str, kind: str, depth: int = 100, has_key: bool = True) -> "Client":
        return Client(self, name, kind, depth, has_key)

    @staticmethod
    def call_once(domain: int, node: str) -> float:
        """A process that calls as soon as it sees the node, and ends; milliseconds to the reply."""
        command = [sys.executable, str(CALLER), str(domain), node, "once"]
        caller = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert caller.returncode == 0, caller.stderr[-500:]
        return float(caller.stdout)

    def crash_in_calls(self, num: int):
        """Another process makes `num` long calls and is killed before it has its replies."""
        command = [sys.executable, str(CALLER), str(self.domain), self.node, str(num)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "sent\n", "the process that is to be killed has ended"
        finally:
            process.kill()
            process.wait()


class Listener:
    def __init__(self, reader: DataReader, name: str):
        self.reader, self.name, self.taken = reader, name, []

    def wait(self) -> "Listener":
        until(f"a publisher of {self.name}", self.is_matched)
        return self

    def is_matched(self) -> bool:
        return has_match(self.reader.get_matched_publications)

    def next(self, patience_s: float = PATIENCE_S):
        if not self.taken:
            self.taken = until(f"a message on {self.name}", lambda: take(self.reader), patience_s)
        return self.taken.pop(0)


class Talker:
    def __init__(self, writer: DataWriter, name: str, raw: "RawTopic"):
        self.writer, self.name, self.raw = writer, name, raw

    def wait(self) -> "Talker":
        until(f"a subscriber of {self.name}", lambda: has_match(self.writer.get_matched_subscriptions))
        return self

    def send(self, message):
        self.writer.write(message)

    def send_bytes(self, message: bytes):
        """Any bytes behind an encapsulation header."""
        self.raw.send(message[4:])


class Client:
    """A service client in rmw_cyclonedds's mapping; with a key in USER_DATA, by which its two ends are known to belong together."""

    def __init__(self, robot: Robot, name: str, kind: str, depth: int, has_key: bool):
        key = ".".join(f"{byte:x}" for byte in random.randbytes(16))
        more = (Policy.Userdata(f"clientid={key};".encode()),) if has_key else ()
        base = service_base(robot.node, name)
        self.kind = with_header(f"{kind}_Request")
        requests = robot.topic(f"rq{base}Request", self.kind)
        replies = robot.topic(f"rr{base}Reply", with_header(f"{kind}_Response"))
        self.reader = DataReader(robot.participant, replies, qos(depth, more=more))
        self.writer = DataWriter(robot.participant, requests, qos(depth, more=more))
        self.raw = RawTopic(robot, f"rq{base}Request", self.kind.definition.dds_name, depth)
        self.name, self.identity, self.num_calls, self.taken = name, random.getrandbits(63), 0, []

    def is_matched(self) -> bool:
        return has_match(self.writer.get_matched_subscriptions) and has_match(self.reader.get_matched_publications)

    def wait(self) -> "Client":
        """As rclpy's wait_for_service."""
        until(f"a server of {self.name}", self.is_matched)
        return self

    def send(self, request) -> int:
        self.num_calls += 1
        self.writer.write(self.kind(client=self.identity, sequence=self.num_calls, **vars(request)))
        return self.num_calls

    def send_bytes(self, message: bytes):
        """Any bytes behind an encapsulation header, with the service mapping's header put before them."""
        self.raw.send(self.identity.to_bytes(8, "little") + bytes(8) + message[4:])

    def next(self, patience_s: float = PATIENCE_S) -> Answer:
        """The next reply to this client; replies to others come here too and are passed over."""

        def take_own():
            return [reply for reply in take(self.reader) if reply.client == self.identity and reply.sequence]

        if not self.taken:
            self.taken = until(f"a reply of {self.name}", take_own, patience_s)
        reply = self.taken.pop(0)
        return Answer(reply.sequence, reply)

    def call(self, request, patience_s: float = PATIENCE_S):
        sequence = self.send(request)
        answer = self.next(patience_s)
        assert answer.sequence == sequence, f"reply {answer.sequence} to call {sequence}"
        return answer.reply


def has_match(get_matched) -> bool:
    """Whether `get_matched` of a reader or writer gives any."""
    try:
        return bool(get_matched())
    except IndexError:
        # The binding asks how many there are, then for that many: one more came between.
        return True


def take(reader: DataReader) -> list:
    """Messages that have come; without the news that their writer is gone."""
    return [sample for sample in reader.take(100) if not isinstance(sample, InvalidSample)]


class RawTopic:
    """Sends any bytes on a topic. CycloneDDS sends nothing that is not of the topic's type, so the type is an array of just as many bytes."""

    def __init__(self, robot: Robot, name: str, type_name: str, depth: int):
        self.robot, self.name, self.type_name, self.depth, self.writers = robot, name, type_name, depth, {}

    def send(self, body: bytes):
        """What follows the encapsulation header, which is CycloneDDS's own; padded to 4 bytes, as all it sends, and never empty."""
        body = body.ljust(max(4, len(body) + -len(body) % 4), b"\0")
        if len(body) not in self.writers:
            kind = array_of(len(body), self.type_name)
            topic = Topic(self.robot.participant, self.name, kind)
            writer = self.writers[len(body)] = DataWriter(self.robot.participant, topic, qos(self.depth))
            until(f"a reader of {self.name}", functools.partial(has_match, writer.get_matched_subscriptions))
        writer = self.writers[len(body)]
        writer.write(writer.data_type(data=body))


@functools.cache
def array_of(num_bytes: int, type_name: str) -> type:
    return make_idl_struct(f"Bytes{num_bytes}", type_name.replace("::", "."), {"data": idl.array[idl.uint8, num_bytes]})
