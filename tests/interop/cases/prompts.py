"""Typed topics: `~/prompt`, answered on `~/stream`, `~/sentence` and `~/reply`."""

import time

from interfaces import interface, question
from waiting import introduce

PROMPT, TOKEN, REPLY = "takt_msgs/msg/Prompt", "takt_msgs/msg/Token", "takt_msgs/msg/Reply"


def until_last(listener, request_ids: list) -> dict:
    """Each request's messages up to its last; all have to be there, in order and without a gap."""
    texts = {request_id: "" for request_id in request_ids}
    nums = dict.fromkeys(request_ids, 0)
    open_ids = set(request_ids)
    while open_ids:
        token = listener.next()
        told = texts[token.request_id]
        assert token.index == nums[token.request_id] and token.offset == len(told.encode()), (token, told)
        assert token.request_id in open_ids, f"{token} after the last"
        texts[token.request_id] += token.text
        nums[token.request_id] += 1
        if token.is_last:
            open_ids.remove(token.request_id)
    return texts


def prompts_are_streamed_in_parts_that_fit_together(stage):
    with stage.robot() as robot:
        stream, sentences = (robot.listen(f"~/{name}", TOKEN, depth=1000).wait() for name in ("stream", "sentence"))
        replies, prompts = robot.listen("~/reply", REPLY, depth=100).wait(), robot.talk("~/prompt", PROMPT).wait()
        introduce(robot)
        ids = [f"prompt-{n}" for n in range(4)]
        for n, request_id in enumerate(ids):
            text = ["What is your battery level?", "Bring the cup to 世界."][n % 2]
            prompts.send(question(text, request_id=request_id, deadline_s=30.25, priority_class="interactive"))
        said = {reply.request_id: reply for reply in (replies.next() for _ in ids)}
        assert sorted(said) == ids, said
        parts, whole = until_last(stream, ids), until_last(sentences, ids)
        for request_id, reply in said.items():
            assert reply.status == "complete" and reply.text and abs(reply.deadline_ms - 30_250) < 1e-6, reply
            assert reply.priority_class == "interactive", reply
            assert parts[request_id] == reply.text == whole[request_id], (reply, parts, whole)
            assert abs(reply.stamp.sec - time.time()) < 3600 and 0 < reply.arrival.sec <= reply.stamp.sec, reply


def a_prompt_that_names_nothing_gets_a_name_and_the_defaults(stage):
    with stage.robot() as robot:
        replies, prompts = robot.listen("~/reply", REPLY).wait(), robot.talk("~/prompt", PROMPT).wait()
        introduce(robot)
        for _ in range(2):
            prompts.send(interface(PROMPT)(prompt="Where are you?"))
        first, second = replies.next(), replies.next()
        assert first.request_id and second.request_id and first.request_id != second.request_id, (first, second)
        assert first.deadline_ms == 60_000 and first.status == second.status == "complete", first


def what_was_said_in_a_session_is_remembered(stage):
    with stage.robot() as robot:
        replies, prompts = robot.listen("~/reply", REPLY).wait(), robot.talk("~/prompt", PROMPT).wait()
        introduce(robot)
        lengths = []
        for _ in range(3):
            prompts.send(question("Where are you?", session=f"interop {stage.vendor.vendor}"))
            reply = replies.next()
            assert reply.status == "complete", reply
            lengths.append(reply.num_prompt_tokens)
        assert lengths[0] < lengths[1] < lengths[2], f"tokens of the prompts: {lengths}"


def bad_and_oversized_prompts_are_refused_on_reply(stage):
    with stage.robot() as robot:
        replies, prompts = robot.listen("~/reply", REPLY).wait(), robot.talk("~/prompt", PROMPT).wait()
        introduce(robot)
        for demands, word in [
            ({"prompt": ""}, "empty"),
            ({"prompt": "x", "priority_class": "background", "deadline_s": 1.0}, "background"),
            ({"prompt": "x" * 250_000}, "bytes"),
            ({"prompt": "x", "stop": ["a"] * 10_000}, "stop"),
            ({"prompt": "x", "choices": ["a" * 100] * 10_000}, ""),
        ]:
            prompts.send(question(**demands))
            reply = replies.next()
            assert reply.status == "rejected" and reply.reason and word in reply.reason, reply


CASES = [
    prompts_are_streamed_in_parts_that_fit_together,
    a_prompt_that_names_nothing_gets_a_name_and_the_defaults,
    what_was_said_in_a_session_is_remembered,
    bad_and_oversized_prompts_are_refused_on_reply,
]
