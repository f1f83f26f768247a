"""A process of its own that calls the node: `caller.py DOMAIN NODE once`, as `ros2 service call` does, prints how many milliseconds the reply took;
`caller.py DOMAIN NODE NUM` makes NUM long calls, says so, and waits to be killed.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cyclone.robot import Robot
from interfaces import LONG, question


def request(prompt: str, **demands):
    return question(prompt, "takt_msgs/srv/Ask_Request", **demands)


def main():
    domain, node, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    with Robot(domain, node) as robot:
        client = robot.client("~/ask", "takt_msgs/srv/Ask").wait()
        started = time.monotonic()
        if how == "once":
            reply = client.call(request("What is your battery level?"))
            assert reply.status == "complete", reply
            print((time.monotonic() - started) * 1e3)
            return
        for _ in range(int(how)):
            client.send(request("Tell me all.", **LONG))
        print("sent", flush=True)
        time.sleep(60)


if __name__ == "__main__":
    main()
