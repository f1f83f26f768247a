"""Plain texts: `~/ask`, answered on `~/tokens`, `~/answer` and `~/status`."""

import json

import cdr
from interfaces import interface
from waiting import introduce

TEXT = "std_msgs/msg/String"


def text(data: str):
    return interface(TEXT)(data=data)


def a_sentence_is_answered_and_streamed(stage):
    with stage.robot() as robot:
        answers, statuses = robot.listen("~/answer", TEXT).wait(), robot.listen("~/status", TEXT).wait()
        tokens, ask = robot.listen("~/tokens", TEXT, depth=1000).wait(), robot.talk("~/ask", TEXT).wait()
        introduce(robot)
        for sentence in ["What is your battery level?", "Bring the cup — bitte — to 世界."]:
            ask.send(text(sentence))
            answer, status, streamed = answers.next().data, json.loads(statuses.next().data), ""
            while len(streamed) < len(answer):
                streamed += tokens.next().data
            assert answer and streamed == answer, f"streamed {streamed!r}, answered {answer!r}"
            assert (status["ask"], status["answer"], status["status"]) == (sentence, answer, "complete"), status


def what_is_no_sentence_is_refused_with_the_reason(stage):
    with stage.robot() as robot:
        statuses, ask = robot.listen("~/status", TEXT).wait(), robot.talk("~/ask", TEXT).wait()
        introduce(robot)
        for sentence, word in [("go \udcff\udcfe", "UTF-8"), ("  ", "empty"), ("x" * 70_000, "bytes"), ("x" * 250_000, "bytes")]:
            # CycloneDDS itself encodes no text that is not UTF-8.
            ask.send_bytes(cdr.encode(text(sentence)))
            status = json.loads(statuses.next().data)
            assert status["status"] == "rejected" and word in status["reason"], (word, status["status"], status["reason"])


CASES = [a_sentence_is_answered_and_streamed, what_is_no_sentence_is_refused_with_the_reason]
