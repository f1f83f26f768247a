"""Bytes that are no messages, on every topic that the node listens to and to every service: it answers, refuses or drops, and lives on."""

import random
import time

import cdr
from cases.action import new_id
from cases.graph import HEARD, SERVICES
from cases.prompts import PROMPT, REPLY
from cases.service import ASK, check_complete, client_of, request
from interfaces import interface, question
from waiting import introduce

# Messages to each of the two topics and sixteen services.
NUM_EACH = 250
# Lengths, counts and values that are most often wrong.
EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
# Where a request of ChangeState has the number of its transition, behind the encapsulation header; and a number above all that mean something.
TRANSITION_ID = 4
NO_TRANSITION = 99


def mutated(message: bytes, rng: random.Random) -> bytes:
    """One to four changes of a valid message."""
    data = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            # Where a length may stand.
            at -= at % 4
            data[at : at + 4] = rng.choice(EDGES).to_bytes(4, "little")
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randint(1, 16))
        elif kind == 4:
            del data[at : at + rng.randint(1, 16)]
        else:
            end = min(len(data), at + rng.randint(1, 64))
            data += data[at:end]
    # Less than an encapsulation header is no serialized data at all, for any vendor.
    return bytes(data) if len(data) >= 4 else bytes(data).ljust(4, b"\0")


def valid(name: str, kind: str) -> bytes:
    """A message with something in most of its fields, which would change nothing of the node."""
    sampling = [interface("takt_msgs/Sampling")(temperature=0.5, seed=1)]
    turns = [interface("takt_msgs/ChatMessage")(role="user", content="Where are you?")]
    asked = {"messages": turns, "sampling": sampling, "stop": ["."], "max_tokens": 2, "request_id": "fuzz"}
    if name == "~/prompt":
        return cdr.encode(question("", **asked))
    if kind == "std_msgs/msg/String":
        return cdr.encode(interface(kind)(data="Where are you?"))
    if kind == "takt_msgs/srv/Ask":
        return cdr.encode(question("", f"{kind}_Request", **asked))
    if kind.endswith("_SendGoal"):
        goal = question("", "takt_msgs/action/Generate_Goal", **asked)
        return cdr.encode(interface(f"{kind}_Request")(goal_id=new_id(), goal=goal))
    filled = interface(f"{kind}_Request")()
    if hasattr(filled, "names"):
        filled.names = ["engine.lanes", "no.such"]
    if hasattr(filled, "parameters"):
        value = interface("rcl_interfaces/ParameterValue")(type=4, string_value="x")
        filled.parameters = [interface("rcl_interfaces/Parameter")(name="engine.lanes", value=value)]
    if hasattr(filled, "transition"):
        filled.transition = interface("lifecycle_msgs/Transition")(id=NO_TRANSITION, label="no such transition")
    return cdr.encode(filled)


def without_effect(data: bytes, kind: str) -> bytes:
    """Mutated into what may be a valid order to leave the state `active`, a transition gets a number that none has: it is to be refused."""
    if kind == "lifecycle_msgs/srv/ChangeState" and len(data) > TRANSITION_ID and data[TRANSITION_ID] < NO_TRANSITION:
        return data[:TRANSITION_ID] + bytes([NO_TRANSITION]) + data[TRANSITION_ID + 1 :]
    return data


def fuzz(send_bytes, kind: str, message: bytes, rng: random.Random, step: int, barrier):
    for n in range(NUM_EACH):
        data = without_effect(mutated(message, rng), kind)
        send_bytes(data + bytes(-(len(data) - 4) % step))
        if n % 50 == 49:
            # So that no history overflows, and a node that has died is found where it did.
            barrier()


def no_bytes_on_any_topic_or_service_end_the_node(stage):
    seed = random.getrandbits(32)
    print(f"   seed {seed}")
    rng = random.Random(seed)
    with stage.robot() as robot:
        # Replies to mutated questions come to this reader too, many at once: they must not push out its own.
        client = robot.client("~/ask", ASK, depth=1000).wait()

        def barrier():
            answer = client.call(request())
            for _ in range(600):
                # Some mutations are questions still, and fill the node or a class of it for a moment.
                if answer.status != "rejected" or "ask again later" not in answer.reason:
                    break
                time.sleep(0.05)
                answer = client.call(request())
            check_complete(answer)

        for name, kind in HEARD.items():
            talker = robot.talk(name, kind, depth=100).wait()
            fuzz(talker.send_bytes, kind, valid(name, kind), rng, stage.vendor.raw_step, barrier)
        for name, kind in SERVICES.items():
            # Mutated headers bring replies to clients that are not there.
            fuzzer = robot.client(name, kind, depth=100).wait()
            fuzz(fuzzer.send_bytes, kind, valid(name, kind), rng, stage.vendor.raw_step, barrier)
    with stage.robot() as robot:
        check_complete(client_of(robot).call(request()))
        replies, prompts = robot.listen("~/reply", REPLY, depth=1000).wait(), robot.talk("~/prompt", PROMPT).wait()
        introduce(robot)
        prompts.send(question("Where are you?", request_id="after the fuzzing"))
        while replies.next().request_id != "after the fuzzing":
            pass
    assert stage.node.process.poll() is None and "panicked" not in stage.node.log.read_text(), stage.log_tail()


def what_is_no_prompt_is_refused_with_the_reason(stage):
    """Not what the topic holds: another message, and half of one."""
    with stage.robot() as robot:
        replies, prompts = robot.listen("~/reply", REPLY).wait(), robot.talk("~/prompt", PROMPT).wait()
        introduce(robot)
        for message, fact in (
            (cdr.encode(interface("lifecycle_msgs/Transition")(label="configure")), "not a takt_msgs/msg/Prompt"),
            (cdr.encode(question("Where are you?"))[:-20], "truncated"),
        ):
            prompts.send_bytes(message)
            while (reply := replies.next()).status != "rejected":
                pass  # the end of what somebody else left behind
            assert fact in reply.reason, reply


CASES = [what_is_no_prompt_is_refused_with_the_reason, no_bytes_on_any_topic_or_service_end_the_node]
