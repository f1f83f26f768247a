"""What a case gets: the node that all share, robots of one vendor, and nodes of its own."""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

START_PATIENCE_S = 120
STOP_PATIENCE_S = 30
NAME = "/interop/takt"
# A slow machine is no reason to fail: what is tested here is the way, not the speed.
CONFIG = """[scheduler]
default_deadline_ms = 60000
[ros]
namespace = "/interop"
system_prompt = "Robot: fetch-1. Battery: 62 %. At: kitchen. Holding: nothing."
"""


class Node:
    """A process `takt serve`; ends with `stop`, or is killed at the end of a context."""

    def __init__(self, takt: str, folder: Path, *ros_args: str, name: str = NAME, up: str = "takt_msgs/srv/Ask"):
        """`up` is what it says once it is ready."""
        self.name, self.up, self.folder = name, up, folder
        self.command = [takt, "serve", "--engine", str(folder / "engine"), "--config", str(folder / "node.toml")]
        if ros_args:
            self.command += ["--ros-args", *ros_args]
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        descriptor, path = tempfile.mkstemp(prefix="node-", suffix=".log", dir=self.folder)
        self.log = Path(path)
        with os.fdopen(descriptor, "w") as file:
            self.process = subprocess.Popen(self.command, stdout=file, stderr=file)
        end = time.monotonic() + START_PATIENCE_S
        while self.up not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the node is not up after {START_PATIENCE_S} s or has ended:\n{self.log.read_text()}")
            time.sleep(0.02)

    def stop(self, by: signal.Signals = signal.SIGINT):
        """As a user or a launch file ends it; fails unless it ends well."""
        self.process.send_signal(by)
        code = self.process.wait(timeout=STOP_PATIENCE_S)
        said = self.log.read_text()
        assert code == 0 and "stopped;" in said and "panicked" not in said, f"status {code}: {said[-2000:]}"

    def kill(self):
        self.process.kill()
        self.process.wait()


class Stage:
    """One vendor's robots on one domain, with the shared node."""

    def __init__(self, vendor: type, domain: int, takt: str, folder: Path, node: Node):
        self.vendor, self.domain, self.takt, self.folder, self.node = vendor, domain, takt, folder, node

    def robot(self, node: str = NAME):
        return self.vendor(self.domain, node)

    def start_node(self, *ros_args: str, **how) -> Node:
        """Another one, with the shared one's configuration and whatever `--ros-args` change of it."""
        return Node(self.takt, self.folder, *ros_args, **how)

    def log_tail(self) -> str:
        return self.node.log.read_text()[-4000:]
