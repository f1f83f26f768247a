"""The node ends and comes back under a living client."""

import signal

from cases.service import check_complete, client_of, request
from waiting import introduce, until

# A call into the void is given up after this time and made again.
CALL_PATIENCE_S = 3.0


def until_answered(client):
    """A client may still see the node that has ended: Fast DDS does not hear its farewell and waits for its lease to run out."""

    def answered():
        sequence = client.send(request())
        try:
            answer = client.next(CALL_PATIENCE_S)
            while answer.sequence != sequence:
                answer = client.next(CALL_PATIENCE_S)
        except AssertionError:
            return False
        check_complete(answer.reply)
        return True

    until("a reply of the new node", answered)


def a_client_outlives_a_node_that_is_stopped_or_killed(stage):
    with stage.robot() as robot:
        client = client_of(robot)
        # Far past a writer's first message, with which all is different.
        for _ in range(30):
            client.call(request())
        for end in (stage.node.stop, lambda: stage.node.stop(signal.SIGTERM), stage.node.kill):
            end()
            stage.node.start()
            until_answered(client)
            for _ in range(3):
                check_complete(client.call(request()))


def a_node_that_is_stopped_answers_what_is_open(stage):
    from interfaces import LONG

    with stage.robot() as robot:
        client = client_of(robot)
        long = request("Tell me all.", priority_class="interactive", **LONG)
        # Its form is known from then on: the next are at work at once.
        client.call(long)
        for _ in range(6):
            client.send(long)
        introduce(robot)
        stage.node.stop(signal.SIGTERM)
        stage.node.start()
        replies = [client.next().reply for _ in range(6)]
        statuses = [reply.status for reply in replies]
        assert "cancelled" in statuses and set(statuses) <= {"cancelled", "complete"}, replies


CASES = [
    a_client_outlives_a_node_that_is_stopped_or_killed,
    a_node_that_is_stopped_answers_what_is_open,
]
