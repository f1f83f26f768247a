"""A robot on Fast DDS: topics and services as rmw_fastrtps has them, with messages encoded by `cdr.py`.

The same classes and methods as in `cyclone/robot.py`. The Fast DDS part is a program of its own (`peer.cpp`), which is told what to do a
line at a time; here is what the lines mean.
"""

import os
import queue
import subprocess
import threading
import time
from dataclasses import dataclass

import cdr
from definitions import definition
from interfaces import LONG, interface, question
from waiting import PATIENCE_S, dds_topic, service_base

# Built by `build.sh`.
PEER = os.environ.get("TAKT_FASTDDS_PEER", "")
# How long before its first call a ROS 2 process has been on the network.
SETTLE_S = 0.3
END_PATIENCE_S = 5.0


@dataclass
class Answer:
    """A reply, the call that it is to, and the time between the two."""

    sequence: int
    reply: object
    elapsed_ms: float


class Robot:
    """One process with one participant beside the node `node`; a context.

    What it hears is kept deeper than ROS 2's 10: replies to every client come to each, and a slow machine is no reason to lose one.
    """

    vendor = "Fast DDS"
    # Raw messages may have any length.
    raw_step = 1

    def __init__(self, domain: int, node: str, networks: str = "loopback"):
        self.domain, self.node, self.inboxes, self.num_endpoints = domain, node, {}, 0
        self.process = subprocess.Popen(
            [PEER, str(domain), networks], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.ready, self.errors = self.inbox("ready"), self.inbox("error")
        threading.Thread(target=self._sort_lines, daemon=True).start()
        self.ready.get(timeout=PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is not None:
            return
        self.process.stdin.close()
        try:
            self.process.wait(timeout=END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            # After a failure it may wait for a match that never comes.
            self.kill()

    def kill(self):
        """As when a robot's process dies: nothing is told to anybody."""
        self.process.kill()
        self.process.wait(timeout=PATIENCE_S)

    def settle(self):
        """What a ROS 2 process does before it makes its client: it is known, has endpoints of its own, and knows the node."""
        self.talk("/parameter_events", "rcl_interfaces/msg/ParameterEvent")
        self.listen("/parameter_events", "rcl_interfaces/msg/ParameterEvent")
        self.talk("/rosout", "rcl_interfaces/msg/Log")
        time.sleep(SETTLE_S)

    @classmethod
    def call_once(cls, domain: int, node: str, is_settled: bool = True) -> float:
        """A process that calls as soon as it sees the node, and ends; milliseconds to the reply."""
        with cls(domain, node) as robot:
            if is_settled:
                robot.settle()
            client = robot.client("~/ask", "takt_msgs/srv/Ask")
            client.send(question("What is your battery level?", "takt_msgs/srv/Ask_Request"), command="call")
            answer = client.next()
            assert answer.reply.status == "complete", answer
            return answer.elapsed_ms

    def crash_in_calls(self, num: int):
        """Another process makes `num` long calls and is killed before it has its replies."""
        robot = Robot(self.domain, self.node)
        try:
            client = robot.client("~/ask", "takt_msgs/srv/Ask").wait()
            for _ in range(num):
                client.send(question("Tell me all.", "takt_msgs/srv/Ask_Request", **LONG))
        finally:
            robot.kill()

    def inbox(self, key: str) -> queue.Queue:
        return self.inboxes.setdefault(key, queue.Queue())

    def _sort_lines(self):
        """Gives every line to the inbox of its kind and endpoint."""
        for line in self.process.stdout:
            kind, _, rest = line.rstrip("\n").partition(" ")
            key = kind if kind in ("ready", "error") else f"{kind} {rest.partition(' ')[0]}"
            self.inbox(key).put(rest.partition(" ")[2] if " " in key else rest)

    def tell(self, line: str):
        self.process.stdin.write(line + "\n")

    def hear(self, key: str, patience_s: float = PATIENCE_S) -> str:
        try:
            return self.inbox(key).get(timeout=patience_s)
        except queue.Empty:
            said = "" if self.errors.empty() else f"; the peer: {self.errors.get()}"
            raise AssertionError(f"{key}: nothing within {patience_s} s{said}") from None

    def endpoint(self) -> str:
        self.num_endpoints += 1
        return f"e{self.num_endpoints}"

    def listen(self, name: str, kind: str, depth: int = 100, is_reliable: bool = True, is_late: bool = False) -> "Listener":
        """Without waiting for a publisher."""
        return Listener(self, name, kind, depth, qos_words(is_reliable, is_late))

    def talk(self, name: str, kind: str, depth: int = 10) -> "Talker":
        return Talker(self, name, kind, depth)

    def client(self, name: str, kind: str, depth: int = 100) -> "Client":
        return Client(self, name, kind, depth)


def qos_words(is_reliable: bool, is_late: bool) -> str:
    return f"{'reliable' if is_reliable else 'best_effort'} {'transient_local' if is_late else 'volatile'}"


class Endpoint:
    """What the peer knows by an identifier."""

    def __init__(self, robot: Robot):
        self.robot, self.id = robot, robot.endpoint()

    def wait(self):
        """Until the node is matched, a client both ways."""
        self.robot.tell(f"wait {self.id}")
        self.robot.hear(f"matched {self.id}")
        return self

    def is_matched(self) -> bool:
        self.robot.tell(f"count {self.id}")
        return int(self.robot.hear(f"counted {self.id}")) > 0

    def send_bytes(self, message: bytes, command: str = "send"):
        """Any bytes, encapsulation header included."""
        self.robot.tell(f"{command} {self.id} {message.hex()}")


class Listener(Endpoint):
    def __init__(self, robot: Robot, name: str, kind: str, depth: int, qos: str):
        super().__init__(robot)
        self.name, self.kind = name, interface(kind)
        robot.tell(f"read {self.id} {dds_topic(robot.node, name)} {definition(kind).dds_name} {depth} {qos}")

    def next(self, patience_s: float = PATIENCE_S):
        return cdr.decode(self.kind, bytes.fromhex(self.robot.hear(f"data {self.id}", patience_s)))


class Talker(Endpoint):
    def __init__(self, robot: Robot, name: str, kind: str, depth: int):
        super().__init__(robot)
        robot.tell(f"write {self.id} {dds_topic(robot.node, name)} {definition(kind).dds_name} {depth}")

    def send(self, message, command: str = "send"):
        """Publishes; with the command `call`, as soon as somebody is there."""
        self.send_bytes(cdr.encode(message), command)


class Client(Endpoint):
    """A service client in rmw_fastrtps's mapping."""

    def __init__(self, robot: Robot, name: str, kind: str, depth: int):
        super().__init__(robot)
        self.name, self.kind = name, interface(f"{kind}_Response")
        base, request, response = service_base(robot.node, name), definition(f"{kind}_Request"), self.kind.definition
        robot.tell(f"client {self.id} rq{base}Request rr{base}Reply {request.dds_name} {response.dds_name} {depth}")

    def send(self, request, command: str = "send") -> int:
        """Sends a request; with the command `call`, as soon as the server is there."""
        self.send_bytes(cdr.encode(request), command)
        return int(self.robot.hear(f"sent {self.id}"))

    def next(self, patience_s: float = PATIENCE_S) -> Answer:
        sequence, elapsed_ms, message = self.robot.hear(f"reply {self.id}", patience_s).split()
        return Answer(int(sequence), cdr.decode(self.kind, bytes.fromhex(message)), float(elapsed_ms))

    def answer(self, request, patience_s: float = PATIENCE_S) -> Answer:
        sequence = self.send(request)
        answer = self.next(patience_s)
        assert answer.sequence == sequence, f"reply {answer.sequence} to call {sequence}"
        return answer

    def call(self, request, patience_s: float = PATIENCE_S):
        return self.answer(request, patience_s).reply
