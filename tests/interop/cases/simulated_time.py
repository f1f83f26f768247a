"""`use_sim_time`: stamps are what `/clock` says, deadlines run on."""

from cases.service import client_of, request
from interfaces import interface
from waiting import introduce, until

SIMULATED = "/interop/simulated"



def time_of(sec: int, nanosec: int):
    return interface("builtin_interfaces/Time")(sec=sec, nanosec=nanosec)


def stamps_follow_the_clock_and_deadlines_do_not(stage):
    arguments = ["-r", "__node:=simulated", "-p", "use_sim_time:=true"]
    with stage.start_node(*arguments, name=SIMULATED) as node, stage.robot(SIMULATED) as robot:
        clock, client = robot.talk("/clock", "rosgraph_msgs/msg/Clock").wait(), client_of(robot)
        introduce(robot)
        reply = client.call(request())
        assert (reply.stamp.sec, reply.stamp.nanosec) == (0, 0), "nobody has said what time it is"
        # The last is before the one before it: a simulation was started over.
        for now in (time_of(1000, 250), time_of(7_000, 999_999_999), time_of(5, 0)):

            def stamped():
                clock.send(interface("rosgraph_msgs/msg/Clock")(clock=now))
                reply = client.call(request())
                assert reply.status == "complete" and 0 < reply.total_ms < 60_000, reply
                return (reply.stamp, reply.arrival) == (now, now)

            until("replies stamped with the simulated time", stamped)
        # Simulated time stands still, and yet the deadline comes.
        sampling = [interface("takt_msgs/Sampling")(temperature=10.0, seed=3)]
        # More than any processor says in that time.
        reply = client.call(request("Tell me all.", deadline_s=0.05, priority_class="interactive", sampling=sampling, max_tokens=900))
        assert reply.status == "truncated_at_deadline" and reply.stamp.sec == 5, reply
        assert abs(reply.deadline_ms - 50) < 1e-6 and reply.total_ms > 1, reply
        diagnostics = robot.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray")
        array = diagnostics.next()
        while not any("simulated" in status.name for status in array.status):
            array = diagnostics.next()
        assert array.header.stamp.sec == 5, array.header
        node.stop()


CASES = [stamps_follow_the_clock_and_deadlines_do_not]
