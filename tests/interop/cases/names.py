"""Another name, namespace, topics, parameters and qualities of service from the command line; several nodes in one domain."""

import subprocess

from cases.action import Action
from cases.graph import announced
from cases.prompts import PROMPT, REPLY, TOKEN
from cases.service import check_complete, client_of, request
from interfaces import question
from stage import NAME
from waiting import introduce

MOVED = "/arm/planner"
PARAMETERS = """/arm/planner:
  ros__parameters:
    scheduler:
      default_deadline_ms: 43210
    qos_overrides:
      /arm/planner/stream:
        publisher:
          reliability: best_effort
          depth: 500
/somebody/else:
  ros__parameters:
    scheduler.default_deadline_ms: 1
"""
RULES = ["__node:=planner", "__ns:=/arm", "~/prompt:=/question", "~/reply:=replies", "~/generate:=think"]


def start_moved(stage):
    file = stage.folder / "planner.yaml"
    file.write_text(PARAMETERS)
    rules = [word for rule in RULES for word in ("-r", rule)]
    return stage.start_node(*rules, "--params-file", str(file), name=MOVED)


def a_node_goes_by_the_names_and_parameters_it_is_given(stage):
    with start_moved(stage) as node, stage.robot(MOVED) as robot:
        announced(robot, MOVED)
        prompts, replies = robot.talk("/question", PROMPT).wait(), robot.listen("/arm/replies", REPLY).wait()
        reliable, hasty = (robot.listen("~/stream", TOKEN, depth=500, is_reliable=each) for each in (True, False))
        hasty.wait()
        introduce(robot)
        assert not reliable.is_matched(), "what is sent best effort is nothing for who wants all"
        prompts.send(question("Where are you?", request_id="moved", deadline_s=0.0))
        reply, streamed, token = replies.next(), "", None
        assert (reply.request_id, reply.status, reply.deadline_ms) == ("moved", "complete", 43_210), reply
        while token is None or not token.is_last:
            token = hasty.next()
            streamed += token.text
        assert streamed == reply.text, (streamed, reply)
        node.stop()


def nodes_side_by_side_answer_what_is_theirs(stage):
    with start_moved(stage) as node, stage.robot(MOVED) as moved, stage.robot() as robot:
        own_replies, replies = moved.listen("/arm/replies", REPLY).wait(), robot.listen("~/reply", REPLY).wait()
        introduce(moved), introduce(robot)
        clients = [client_of(moved), client_of(robot)]
        for n in range(6):
            clients[n % 2].send(request(request_id=f"{'own' if n % 2 == 0 else 'other'} {n}"))
        for client in clients:
            for _ in range(3):
                check_complete(client.next().reply)
        assert {own_replies.next().request_id for _ in range(3)} == {"own 0", "own 2", "own 4"}
        assert {replies.next().request_id for _ in range(3)} == {"other 1", "other 3", "other 5"}
        action = Action(moved, "/arm/think")
        goal_id, decision = action.goal("Where are you?")
        assert decision.accepted and action.result(goal_id).result.status == "complete"
        node.stop()


def a_second_node_of_the_same_name_is_refused(stage):
    command = stage.node.command
    second = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    said = f"another node named {NAME} is already running"
    assert second.returncode == 1 and said in second.stdout, (second.returncode, second.stdout)


CASES = [a_node_goes_by_the_names_and_parameters_it_is_given, nodes_side_by_side_answer_what_is_theirs]
# Two of our own nodes, whoever listens.
CYCLONEDDS_CASES = [a_second_node_of_the_same_name_is_refused]
