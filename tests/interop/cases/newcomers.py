"""Who comes late, stays only for a moment, or dies in the middle of it."""

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from cases.sentences import TEXT, text
from cases.service import ASK, check_complete, client_of, request
from waiting import introduce

NUM_ONE_SHOT = 16
NUM_AT_ONCE = 4
# What was lost comes again after Fast DDS's heartbeat period of 3 s.
HANG_MS = 2500
# One in ten may wait: discovery itself takes a second now and then, and longer on a busy machine.
MAX_HANGS = NUM_ONE_SHOT // 10


def call_once_each(call) -> list:
    """Milliseconds from request to reply of processes that come, call and go."""
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        times_ms = sorted(pool.map(lambda _: call(), range(NUM_ONE_SHOT)))
    print(f"   {len(times_ms)} answered; slowest {times_ms[-1]:.1f} ms, median {statistics.median(times_ms):.1f} ms")
    return times_ms


def fresh_processes_lose_no_reply_and_none_waits_for_a_heartbeat(stage):
    times_ms = call_once_each(lambda: stage.vendor.call_once(stage.domain, stage.node.name))
    assert sum(time_ms > HANG_MS for time_ms in times_ms) <= MAX_HANGS, times_ms


def fresh_processes_unknown_to_the_node_lose_no_reply(stage):
    """They call while the two sides still learn of each other."""
    call_once_each(lambda: stage.vendor.call_once(stage.domain, stage.node.name, is_settled=False))


def the_first_sentence_of_a_publisher_is_heard(stage):
    """As `ros2 topic pub --once`: published when the node is seen, gone once it is answered."""
    with stage.robot() as listener:
        statuses = listener.listen("~/status", TEXT).wait()
        introduce(listener)
        for n in range(4):
            with stage.robot() as robot:
                robot.talk("~/ask", TEXT).wait().send(text(f"Where are you? ({n})"))
                status = json.loads(statuses.next().data)
            assert status["ask"] == f"Where are you? ({n})", status


def the_first_call_long_after_the_match_is_answered(stage):
    with stage.robot() as robot:
        client = client_of(robot)
        time.sleep(2)
        for _ in range(3):
            check_complete(client.call(request()))


def a_process_killed_in_its_calls_disturbs_nobody(stage):
    with stage.robot() as bystander:
        client = client_of(bystander)
        check_complete(client.call(request()))
        for _ in range(2):
            bystander.crash_in_calls(3)
            check_complete(client.call(request()))


def a_client_that_does_not_say_who_it_is_is_answered(stage):
    """Other users of CycloneDDS than rmw_cyclonedds, which names a client's two ends by the same key."""
    for _ in range(3):
        with stage.robot() as robot:
            check_complete(robot.client("~/ask", ASK, has_key=False).wait().call(request()))


CASES = [
    fresh_processes_lose_no_reply_and_none_waits_for_a_heartbeat,
    the_first_sentence_of_a_publisher_is_heard,
    the_first_call_long_after_the_match_is_answered,
    a_process_killed_in_its_calls_disturbs_nobody,
]
CYCLONEDDS_CASES = [a_client_that_does_not_say_who_it_is_is_answered]
FASTDDS_CASES = [fresh_processes_unknown_to_the_node_lose_no_reply]
