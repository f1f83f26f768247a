"""Fast DDS, a second implementation that shares no code with Takt and ROS 2's default, talks to a running node."""

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import interfaces
from fastdds.robot import Robot

NUM_ONE_SHOT = 40
NUM_AT_ONCE = 4
NUM_PARALLEL = 8
# A lost first request comes again after Fast DDS's heartbeat period of 3 s.
HANG_MS = 2500
# How long before its first call a ROS 2 process has been on the network.
SETTLE_S = 0.3
PROMPT = "What is your battery level?"


def settle(robot: Robot):
    """What a ROS 2 process does before it makes its client: it is known, has endpoints of its own, and knows the node."""
    robot.tell("write parameters rt/parameter_events rcl_interfaces::msg::dds_::ParameterEvent_")
    robot.tell("read parameters_too rt/parameter_events rcl_interfaces::msg::dds_::ParameterEvent_ 10")
    robot.tell("write log rt/rosout rcl_interfaces::msg::dds_::Log_")
    time.sleep(SETTLE_S)


def check_complete(reply: interfaces.PlainAskReply):
    assert reply.status == "complete" and reply.text and not reply.reason, reply
    assert 0 <= reply.ttft_ms <= reply.total_ms, reply


def a_sentence_is_answered_and_streamed(domain, node):
    with Robot(domain, node) as robot:
        answers, statuses = robot.listen("answer"), robot.listen("status")
        tokens, ask = robot.listen("tokens", depth=1000), robot.talk("ask")
        ask.wait()
        for sentence in [PROMPT, "Bring the cup — bitte — to 世界."]:
            ask.say(sentence)
            answer, status = answers.next(), json.loads(statuses.next())
            streamed = ""
            while len(streamed) < len(answer):
                streamed += tokens.next()
            assert answer and streamed == answer, f"streamed {streamed!r}, answered {answer!r}"
            assert (status["ask"], status["answer"]) == (sentence, answer), status


def the_first_sentence_of_a_publisher_is_heard_at_once(domain, node):
    """As `ros2 topic pub --once`: published when the node is seen, gone soon after."""
    with Robot(domain, node) as listener:
        statuses = listener.listen("status")
        for i in range(5):
            sentence = f"{PROMPT} ({i})"
            with Robot(domain, node) as robot:
                settle(robot)
                robot.talk("ask").say(sentence, command="call")
                status = json.loads(statuses.next(HANG_MS / 1e3))
            assert status["ask"] == sentence, status


def calls_in_sequence_are_answered_in_sequence(domain, node):
    with Robot(domain, node) as robot:
        client = robot.client()
        client.wait()
        for expected in range(1, 21):
            answer = client.call(PROMPT, deadline_s=20.5)
            assert answer.sequence == expected, answer
            assert abs(answer.reply.deadline_ms - 20_500) < 1e-6, answer
            check_complete(answer.reply)


def the_first_call_long_after_the_match_is_answered_at_once(domain, node):
    with Robot(domain, node) as robot:
        settle(robot)
        client = robot.client()
        client.wait()
        time.sleep(2)
        for _ in range(3):
            answer = client.call(PROMPT)
            check_complete(answer.reply)
            assert answer.elapsed_ms < HANG_MS, answer


def clients_at_the_same_time_get_their_own_replies(domain, node):
    def ask(i: int):
        with Robot(domain, node) as robot:
            clients = [robot.client(), robot.client()]
            for n in range(5):
                sent = [(client, client.send(f"{PROMPT} {i} {n}", command="call")) for client in clients]
                for client, sequence in sent:
                    answer = client.receive()
                    assert answer.sequence == sequence == n + 1, answer
                    check_complete(answer.reply)

    with ThreadPoolExecutor(NUM_PARALLEL) as pool:
        list(pool.map(ask, range(NUM_PARALLEL)))


def requests_and_replies_larger_than_a_datagram_arrive(domain, node):
    """A request in many fragments, and a reply as long as a form can make it."""
    with Robot(domain, node) as robot:
        client = robot.client()
        client.wait()
        refused = client.call("x" * 100_000).reply
        assert refused.status == "rejected" and "bytes" in refused.reason, refused
        text = "left " * 3000
        reply = client.call("Say it.", choices=[text]).reply
        assert reply.text == text, (reply.status, reply.reason, len(reply.text))


def a_client_killed_in_its_call_disturbs_nobody(domain, node):
    with Robot(domain, node) as bystander:
        client = bystander.client()
        client.wait()
        for _ in range(3):
            robot = Robot(domain, node)
            victim = robot.client()
            victim.wait()
            for _ in range(4):
                victim.send("Tell me all you know. " * 8)
            robot.kill()
            answer = client.call(PROMPT)
            check_complete(answer.reply)


def one_shot(domain: int, node: str, is_settled: bool) -> float:
    with Robot(domain, node) as robot:
        if is_settled:
            settle(robot)
        client = robot.client()
        client.send(PROMPT, command="call")
        answer = client.receive(patience_s=10.0)
        check_complete(answer.reply)
        return answer.elapsed_ms


def fresh_clients(domain: int, node: str, is_settled: bool) -> list:
    """A new process each, which calls as soon as it sees the node; milliseconds from request to reply."""
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        times_ms = list(pool.map(lambda _: one_shot(domain, node, is_settled), range(NUM_ONE_SHOT)))
    print(f"   {len(times_ms)} of {NUM_ONE_SHOT} answered; slowest {max(times_ms):.1f} ms, median {statistics.median(times_ms):.1f} ms")
    return times_ms


def fresh_clients_lose_no_reply_and_none_waits_for_a_heartbeat(domain, node):
    times_ms = fresh_clients(domain, node, is_settled=True)
    assert max(times_ms) < HANG_MS, sorted(times_ms)[-5:]


def fresh_clients_unknown_to_the_node_lose_no_reply(domain, node):
    """Discovery itself may take a second here: the two sides learn of each other while the call is made."""
    fresh_clients(domain, node, is_settled=False)


CASES = [
    a_sentence_is_answered_and_streamed,
    the_first_sentence_of_a_publisher_is_heard_at_once,
    calls_in_sequence_are_answered_in_sequence,
    the_first_call_long_after_the_match_is_answered_at_once,
    clients_at_the_same_time_get_their_own_replies,
    requests_and_replies_larger_than_a_datagram_arrive,
    a_client_killed_in_its_call_disturbs_nobody,
    fresh_clients_lose_no_reply_and_none_waits_for_a_heartbeat,
    fresh_clients_unknown_to_the_node_lose_no_reply,
]


def a_client_outlives_its_server(domain, node, restart):
    """`restart` ends the node and starts it again; the client's requests are far past the first by then."""
    with Robot(domain, node) as robot:
        client = robot.client()
        client.wait()
        for _ in range(57):
            client.call(PROMPT)
        for _ in range(2):
            restart()
            client.wait()
            for _ in range(2):
                answer = client.call(PROMPT)
                check_complete(answer.reply)
                assert answer.elapsed_ms < HANG_MS, answer


# Need to end the node and start it again.
RESTART_CASES = [a_client_outlives_its_server]
