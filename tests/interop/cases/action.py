"""The action `~/generate`."""

import random

from interfaces import LONG, interface, question
from waiting import introduce

GENERATE, CANCEL = "takt_msgs/action/Generate", "action_msgs/srv/CancelGoal"
SUCCEEDED, CANCELED = 4, 5
CANCELS, UNKNOWN_GOAL, GOAL_ENDED = 0, 2, 3


class Action:
    """An action client: three service clients, its goals' feedback and status."""

    def __init__(self, robot, name: str = "~/generate"):
        part = f"{name}/_action"
        self.feedback = robot.listen(f"{part}/feedback", f"{GENERATE}_FeedbackMessage", depth=1000).wait()
        self.status = robot.listen(f"{part}/status", "action_msgs/msg/GoalStatusArray", depth=100, is_late=True).wait()
        self.send_goal = robot.client(f"{part}/send_goal", f"{GENERATE}_SendGoal").wait()
        self.get_result = robot.client(f"{part}/get_result", f"{GENERATE}_GetResult").wait()
        self.cancel_goal = robot.client(f"{part}/cancel_goal", CANCEL).wait()
        introduce(robot)

    def goal(self, prompt: str, goal_id=None, **demands) -> tuple:
        """The goal's identity and the node's decision."""
        goal_id = goal_id or new_id()
        goal = question(prompt, f"{GENERATE}_Goal", **demands)
        return goal_id, self.send_goal.call(interface(f"{GENERATE}_SendGoal_Request")(goal_id=goal_id, goal=goal))

    def result(self, goal_id):
        return self.get_result.call(interface(f"{GENERATE}_GetResult_Request")(goal_id=goal_id))

    def cancel(self, goal_id):
        info = interface("action_msgs/GoalInfo")(goal_id=goal_id)
        return self.cancel_goal.call(interface(f"{CANCEL}_Request")(goal_info=info))


def new_id():
    return interface("unique_identifier_msgs/UUID")(uuid=list(random.randbytes(16)))


def same(one, other) -> bool:
    return bytes(one.uuid) == bytes(other.uuid)


def news_of(action, goal_id, text):
    """What is told of a goal until its whole text; nothing if that does not come."""
    parts = []
    while not parts or parts[-1].text_so_far != text:
        try:
            news = action.feedback.next(patience_s=2.0)
        except AssertionError:
            return []
        if same(news.goal_id, goal_id):
            parts.append(news.feedback)
    return parts


def a_goal_is_accepted_streamed_and_its_result_kept(stage):
    with stage.robot() as robot:
        action = Action(robot)
        # The node's writer may see the subscription later than the subscription sees the writer: the first goals' news can be lost.
        for _ in range(10):
            goal_id, decision = action.goal("Bring the cup to 世界.", request_id="goal")
            assert decision.accepted and decision.stamp.sec > 0, decision
            end = action.result(goal_id)
            assert (end.status, end.result.status, end.result.request_id) == (SUCCEEDED, "complete", "goal"), end
            parts = news_of(action, goal_id, end.result.text)
            if parts and parts[0].index == 0:
                break
        so_far, index = "", 0
        for part in parts:
            assert (part.request_id, part.index, part.offset) == ("goal", index, len(so_far.encode())), part
            so_far, index = so_far + part.text, index + 1
            assert part.text_so_far == so_far, part
        assert so_far == end.result.text, parts
        again = action.result(goal_id)
        assert again.result.text == end.result.text, "asked for again"


def a_cancel_reaches_its_own_goal_while_another_runs_on(stage):
    with stage.robot() as robot:
        action = Action(robot)
        # The second is under way long enough for the first to be cancelled meanwhile.
        doomed, decision = action.goal("Tell me all.", **LONG)
        spared, other = action.goal("Tell me more.", **LONG)
        assert decision.accepted and other.accepted
        canceling = action.cancel(doomed)
        assert canceling.return_code == CANCELS, canceling
        (info,) = canceling.goals_canceling
        assert same(info.goal_id, doomed), canceling
        end = action.result(doomed)
        assert (end.status, end.result.status) == (CANCELED, "cancelled") and end.result.num_tokens < 900, end
        end = action.result(spared)
        assert (end.status, end.result.status, end.result.num_tokens) == (SUCCEEDED, "complete", 900), end
        assert action.cancel(doomed).return_code == GOAL_ENDED
        assert action.cancel(new_id()).return_code == UNKNOWN_GOAL


def goals_that_cannot_be_pursued_are_not_accepted(stage):
    with stage.robot() as robot:
        replies = robot.listen("~/reply", "takt_msgs/msg/Reply").wait()
        action = Action(robot)
        goal_id, decision = action.goal("  ")
        assert not decision.accepted, decision
        assert "empty" in replies.next().reason, "the reply says why"
        assert action.result(goal_id).status == 0, "it never was one"
        taken, decision = action.goal("Where are you?")
        assert decision.accepted
        assert not action.goal("Where are you?", goal_id=taken)[1].accepted, "its identity is taken"
        assert action.result(new_id()).status == 0, "never heard of"


def late_comers_are_told_how_every_goal_stands(stage):
    with stage.robot() as robot:
        action = Action(robot)
        goal_id, _ = action.goal("Where are you?")
        action.result(goal_id)
        with stage.robot() as late:
            status = late.listen("~/generate/_action/status", "action_msgs/msg/GoalStatusArray", depth=1, is_late=True)
            # What the node said last; something older may come before it.
            while not any(same(goal.goal_info.goal_id, goal_id) and goal.status == SUCCEEDED for goal in status.next().status_list):
                pass


CASES = [
    a_goal_is_accepted_streamed_and_its_result_kept,
    a_cancel_reaches_its_own_goal_while_another_runs_on,
    goals_that_cannot_be_pursued_are_not_accepted,
    late_comers_are_told_how_every_goal_stands,
]
