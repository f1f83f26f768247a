"""More requests at once than anybody serves."""

import collections

from cases.prompts import PROMPT, REPLY
from cases.service import check_complete, client_of, request
from interfaces import question
from waiting import introduce

NUM = 1000


def each_of_a_thousand_prompts_in_a_burst_is_answered_or_refused_once(stage):
    with stage.robot() as robot:
        replies, prompts = robot.listen("~/reply", REPLY, depth=2 * NUM).wait(), robot.talk("~/prompt", PROMPT, depth=NUM).wait()
        client = client_of(robot)
        introduce(robot)
        sent = [f"burst-{n}" for n in range(NUM)]
        for request_id in sent:
            prompts.send(question("Where are you?", request_id=request_id, priority_class="interactive"))
        counts, statuses = collections.Counter(), collections.Counter()
        try:
            while len(counts) < NUM:
                reply = replies.next(patience_s=10.0)
                if not reply.request_id.startswith("burst-"):
                    continue  # the end of what somebody else left behind
                counts[reply.request_id] += 1
                statuses[reply.status] += 1
        finally:
            print(f"   {len(counts)} of {NUM}: {dict(statuses)}")
            if missing := sorted(set(sent) - set(counts)):
                print(f"   not answered: {', '.join(missing[:5])}")
        assert set(counts) == set(sent) and set(counts.values()) == {1}, counts.most_common(3)
        assert set(statuses) <= {"complete", "rejected"} and statuses["complete"] > 0, statuses
        check_complete(client.call(request()))


def each_of_many_calls_in_a_burst_is_answered_or_refused_once(stage):
    with stage.robot() as robot:
        client = robot.client("~/ask", "takt_msgs/srv/Ask", depth=NUM).wait()
        check_complete(client.call(request()))
        sent = [client.send(request(priority_class="interactive")) for _ in range(NUM)]
        answers = [client.next(patience_s=10.0) for _ in sent]
        assert sorted(answer.sequence for answer in answers) == sent
        statuses = collections.Counter(answer.reply.status for answer in answers)
        print(f"   {dict(statuses)}")
        assert set(statuses) <= {"complete", "rejected"} and statuses["complete"] > 0, statuses


CASES = [
    each_of_a_thousand_prompts_in_a_burst_is_answered_or_refused_once,
    each_of_many_calls_in_a_burst_is_answered_or_refused_once,
]
