"""`crash.py DOMAIN NODE NUM` makes calls, says so, and waits to be killed."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cyclone.robot import Robot
from interfaces import question


def main():
    domain, node, num = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    client = Robot(domain, node).client("~/ask", "takt_msgs/srv/Ask").wait()
    for _ in range(num):
        client.send(question("Tell me all you know. " * 8, "takt_msgs/srv/Ask_Request"))
    print("sent", flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main()
