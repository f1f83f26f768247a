"""A robot on Fast DDS: the topics and the service of a Takt node, as rmw_fastrtps would use them.

The Fast DDS part is a program of its own (`peer.cpp`), which is told what to do a line at a time; here is what the lines mean.
"""

import os
import queue
import subprocess
import threading
from dataclasses import dataclass

import interfaces

PATIENCE_S = 30.0
# Built by `build.sh`.
PEER = os.environ.get("TAKT_FASTDDS_PEER", "")
TEXT = "std_msgs::msg::dds_::String_"
ASK = "takt_msgs::srv::dds_::Ask"


@dataclass
class Answer:
    """A reply, the request it is to, and the time between the two."""

    sequence: int
    elapsed_ms: float
    reply: interfaces.PlainAskReply


class Robot:
    """One process with one participant; ends with `close` or as a context."""

    def __init__(self, domain: int, node: str, networks: str = "loopback"):
        self.node = node
        self.inboxes = {}
        self.num_endpoints = 0
        self.process = subprocess.Popen(
            [PEER, str(domain), networks], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.ready = self.inbox("ready")
        self.errors = self.inbox("error")
        threading.Thread(target=self._sort_lines, daemon=True).start()
        self.ready.get(timeout=PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=PATIENCE_S)

    def kill(self):
        """As when a robot's process dies: nothing is told to anybody."""
        self.process.kill()
        self.process.wait(timeout=PATIENCE_S)

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

    def name(self) -> str:
        self.num_endpoints += 1
        return f"e{self.num_endpoints}"

    def listen(self, suffix: str, depth: int = 10) -> "Listener":
        listener = Listener(self, self.name(), f"rt{self.node}/{suffix}", depth)
        listener.wait()
        return listener

    def talk(self, suffix: str) -> "Talker":
        return Talker(self, self.name(), f"rt{self.node}/{suffix}")

    def client(self, service: str = "ask") -> "Client":
        return Client(self, self.name(), service)


class Endpoint:
    """What the peer knows by a name."""

    def __init__(self, robot: Robot, name: str):
        self.robot, self.name = robot, name

    def wait(self):
        """Until the node is matched, a client both ways."""
        self.robot.tell(f"wait {self.name}")
        self.robot.hear(f"matched {self.name}")


class Listener(Endpoint):
    def __init__(self, robot: Robot, name: str, topic: str, depth: int):
        super().__init__(robot, name)
        robot.tell(f"read {name} {topic} {TEXT} {depth}")

    def next(self, patience_s: float = PATIENCE_S) -> str:
        message = bytes.fromhex(self.robot.hear(f"data {self.name}", patience_s))
        return interfaces.Text.deserialize(message).data


class Talker(Endpoint):
    def __init__(self, robot: Robot, name: str, topic: str):
        super().__init__(robot, name)
        robot.tell(f"write {name} {topic} {TEXT}")

    def say(self, text: str, command: str = "send"):
        """Publishes; with the command `call`, as soon as somebody is there."""
        message = interfaces.Text(data=text).serialize(use_version_2=False)
        self.robot.tell(f"{command} {self.name} {message.hex()}")


class Client(Endpoint):
    """A service client in rmw_fastrtps's mapping."""

    def __init__(self, robot: Robot, name: str, service: str):
        super().__init__(robot, name)
        topic = f"{robot.node}/{service}"
        robot.tell(f"client {name} rq{topic}Request rr{topic}Reply {ASK}_Request_ {ASK}_Response_")

    def send(self, prompt: str, system: str = "", deadline_s: float = 60.0, command: str = "send", **form) -> int:
        """Sends a request; with the command `call`, as soon as the server is there."""
        sec = int(deadline_s // 1)
        request = interfaces.PlainAskRequest(
            prompt=prompt,
            system=system,
            deadline=interfaces.Duration(sec=sec, nanosec=round((deadline_s - sec) * 1e9)),
            max_tokens=0,
            **{"schema": "", "regex": "", "choices": [], "closing": "", **form},
        )
        self.robot.tell(f"{command} {self.name} {request.serialize(use_version_2=False).hex()}")
        return int(self.robot.hear(f"sent {self.name}"))

    def receive(self, patience_s: float = PATIENCE_S) -> Answer:
        sequence, elapsed_ms, message = self.robot.hear(f"reply {self.name}", patience_s).split()
        reply = interfaces.PlainAskReply.deserialize(bytes.fromhex(message))
        return Answer(int(sequence), float(elapsed_ms), reply)

    def call(self, prompt: str, patience_s: float = PATIENCE_S, **demands) -> Answer:
        sequence = self.send(prompt, **demands)
        answer = self.receive(patience_s)
        assert answer.sequence == sequence, f"reply {answer.sequence} to call {sequence}"
        return answer
