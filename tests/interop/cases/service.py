"""The services `~/ask` and `~/engine_info`."""

import json
import math

from interfaces import interface, question

ASK = "takt_msgs/srv/Ask"
PROMPT = "What is your battery level?"
SCHEMA = {
    "type": "object",
    "required": ["skill", "speed"],
    "properties": {
        "skill": {"enum": ["stop", "goto"], "x-takt-safe": True},
        "speed": {"type": "number", "minimum": 0, "maximum": 2, "default": 0},
    },
}


def request(prompt: str = PROMPT, **demands):
    return question(prompt, f"{ASK}_Request", **demands)


def client_of(robot):
    return robot.client("~/ask", ASK).wait()


def check_complete(reply):
    assert reply.status == "complete" and reply.text and not reply.reason, reply
    assert 0 <= reply.ttft_ms <= reply.total_ms and reply.queue_ms >= 0 and reply.prefill_ms >= 0, reply


def calls_in_sequence_are_answered_in_sequence(stage):
    with stage.robot() as robot:
        client = client_of(robot)
        for n in range(10):
            reply = client.call(request(deadline_s=20.5, request_id=f"call {n}"))
            check_complete(reply)
            assert reply.request_id == f"call {n}" and abs(reply.deadline_ms - 20_500) < 1e-6, reply
            assert reply.num_prompt_tokens > 0 and reply.num_tokens > 0 and reply.priority_class == "control", reply


def a_call_may_hold_a_conversation_and_its_own_sampling(stage):
    turn, sampling = interface("takt_msgs/ChatMessage"), interface("takt_msgs/Sampling")
    with stage.robot() as robot:
        client = client_of(robot)
        messages = [turn("system", "At: dock."), turn("user", "Hello."), turn("assistant", "Hello."), turn("user", PROMPT)]
        demands = {"messages": messages, "sampling": [sampling(temperature=0.9, top_p=0.5, seed=1 << 60)]}
        replies = [client.call(request("", **demands)) for _ in range(2)]
        for reply in replies:
            check_complete(reply)
        assert replies[0].text == replies[1].text, "the same seed, the same answer"
        stopped = client.call(request(stop=[" "]))
        assert stopped.status == "complete" and " " not in stopped.text, stopped


def a_call_without_enough_time_is_cut_or_refused_at_once(stage):
    with stage.robot() as robot:
        client = client_of(robot)
        client.call(request())
        reply = client.call(request("Tell me all you know. " * 8, deadline_s=0.001))
        assert reply.status in ("truncated_at_deadline", "rejected"), reply
        assert abs(reply.deadline_ms - 1) < 1e-6, reply


def a_call_in_a_form_keeps_it_however_little_time_it_gets(stage):
    with stage.robot() as robot:
        client = client_of(robot)
        num_answered = 0
        for deadline_s in [60.0, 0.004, 0.008, 0.016, 0.032, 0.064, 20.0]:
            reply = client.call(request("Go to the kitchen.", deadline_s=deadline_s, schema=json.dumps(SCHEMA)))
            if reply.status == "rejected":
                assert not reply.text and (reply.earliest_deadline_ms > 0 or "passed" in reply.reason), reply
                continue
            assert reply.status in ("complete", "closed_at_deadline"), reply
            value = json.loads(reply.text)
            assert value["skill"] in ("stop", "goto") and 0 <= value["speed"] <= 2, reply
            num_answered += 1
        assert num_answered >= 2, "twenty seconds are enough"
        choice = client.call(request("Left or right?", choices=["left", "right"]))
        assert choice.text in ("left", "right"), choice
        open_schema = {"type": "object", "required": ["speed"], "properties": {"speed": {"type": "number"}}}
        refused = client.call(request("Go.", schema=json.dumps(open_schema)))
        assert refused.status == "rejected" and "/speed" in refused.reason, refused


def bad_requests_are_rejected_with_the_reason(stage):
    sampling = interface("takt_msgs/Sampling")
    with stage.robot() as robot:
        client = client_of(robot)
        for demands, word in [
            ({"prompt": ""}, "empty"),
            ({"deadline_s": -1.5}, "negative"),
            ({"priority_class": "urgent"}, "urgent"),
            ({"stop": [""]}, "stop"),
            ({"request_id": "x" * 200}, "request_id"),
            ({"sampling": [sampling(temperature=-1.0)]}, "temperature"),
            ({"regex": "("}, ""),
            ({"schema": "{}", "regex": "a"}, ""),
        ]:
            reply = client.call(request(**demands))
            assert reply.status == "rejected" and not reply.text and word in reply.reason, (demands, reply)
            assert reply.reason and math.isnan(reply.ttft_ms), reply


def calls_in_flight_are_each_answered_once(stage):
    with stage.robot() as one, stage.robot() as other:
        clients = [client_of(robot) for robot in (one, one, other)]
        sent = [[client.send(request(f"{PROMPT} ({n})")) for n in range(4)] for client in clients]
        for client, sequences in zip(clients, sent):
            answers = [client.next() for _ in sequences]
            assert sorted(answer.sequence for answer in answers) == sequences, answers
            for answer in answers:
                check_complete(answer.reply)


def requests_and_replies_larger_than_a_datagram_arrive(stage):
    """Requests in many fragments, and a reply as long as a form can make it."""
    with stage.robot() as robot:
        client = client_of(robot)
        for num_bytes in (70_000, 250_000):
            refused = client.call(request("x" * num_bytes))
            assert refused.status == "rejected" and "bytes" in refused.reason, refused
        text = "left " * 3000
        reply = client.call(request("Say it.", choices=[text]))
        assert reply.text == text, (reply.status, reply.reason, len(reply.text))


def long_replies_reach_a_process_that_tells_all_its_addresses(stage):
    """The DDS library would cut them into fragments that Fast DDS cannot read; as every ROS 2 Jazzy on one machine."""
    with stage.vendor(stage.domain, stage.node.name, "all") as robot:
        client = client_of(robot)
        for num_words in (200, 1000, 3000, 1) * 3:
            text = "left " * num_words
            reply = client.call(request("Say it.", choices=[text]))
            assert reply.text == text, (reply.status, reply.reason, len(reply.text))


def the_engine_is_described(stage):
    with stage.robot() as robot:
        client = robot.client("~/engine_info", "takt_msgs/srv/EngineInfo").wait()
        info = client.call(interface("takt_msgs/srv/EngineInfo_Request")())
    assert info.lifecycle_state == "active" and info.takt_version and info.architecture == "qwen3", info
    assert info.engine_dir.endswith("engine") and info.backend == "cpu" and info.num_layers > 0, info
    assert info.num_lanes > 0 and info.max_context > 0 and info.weight_bytes > 0 and info.kv_cache_bytes > 0, info
    assert info.decode_step_ms > 0 and info.default_deadline_ms == 60_000, info


CASES = [
    calls_in_sequence_are_answered_in_sequence,
    a_call_may_hold_a_conversation_and_its_own_sampling,
    a_call_without_enough_time_is_cut_or_refused_at_once,
    a_call_in_a_form_keeps_it_however_little_time_it_gets,
    bad_requests_are_rejected_with_the_reason,
    calls_in_flight_are_each_answered_once,
    requests_and_replies_larger_than_a_datagram_arrive,
    the_engine_is_described,
]

FASTDDS_CASES = [long_replies_reach_a_process_that_tells_all_its_addresses]
