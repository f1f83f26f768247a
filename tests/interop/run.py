"""Starts `takt serve` on a domain nobody uses, lets CycloneDDS and Fast DDS talk to it, and checks how the process itself behaves.

`run.py TAKT` builds the demo model's engine first. Fast DDS takes part if TAKT_FASTDDS_PEER names its program. Exits 1 if
anything failed.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "models" / "takt-demo"
NODE = "/interop/takt"
START_PATIENCE_S = 120
STOP_PATIENCE_S = 20
# The loopback interface has no multicast: peers are looked for at the well-known ports.
CYCLONEDDS = """<CycloneDDS><Domain id="any">
<General><Interfaces><NetworkInterface name="{interface}"/></Interfaces><AllowMulticast>false</AllowMulticast></General>
<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>30</MaxAutoParticipantIndex>
<Peers><Peer Address="127.0.0.1"/></Peers></Discovery>
</Domain></CycloneDDS>"""
# A slow machine is no reason to fail: what is tested here is the way, not the speed.
CONFIG = """[scheduler]
default_deadline_ms = 60000
[ros]
namespace = "/interop"
system_prompt = "Robot: fetch-1. Battery: 62 %. At: kitchen. Holding: nothing."
"""


def free_domain() -> int:
    """A domain whose first participant's ports are free."""
    for domain in random.sample(range(100, 200), 100):
        try:
            for port in (10, 11, 12, 13):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.bind(("127.0.0.1", 7400 + 250 * domain + port))
            return domain
        except OSError:
            continue
    sys.exit("every DDS domain from 100 to 199 is in use on this machine")


def start(takt: str, folder: Path, log) -> subprocess.Popen:
    command = [takt, "serve", "--engine", str(folder / "engine"), "--config", str(folder / "node.toml")]
    return subprocess.Popen(command, stdout=log, stderr=log)


class Node:
    """The node being talked to, which can be started again."""

    def __init__(self, takt: str, folder: Path):
        self.takt, self.folder, self.num_starts = takt, folder, 0
        self.start()

    def start(self):
        """Until the node has said which service it offers."""
        self.num_starts += 1
        self.log = self.folder / f"node-{self.num_starts}.log"
        with self.log.open("w") as file:
            self.process = start(self.takt, self.folder, file)
        end = time.monotonic() + START_PATIENCE_S
        while "takt_msgs/srv/Ask" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"the node is not up after {START_PATIENCE_S} s or has ended:\n{self.log.read_text()}")
            time.sleep(0.05)

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=STOP_PATIENCE_S)
        assert code == 0, f"status {code}"

    def restart(self):
        self.interrupt()
        self.start()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def logs(self) -> str:
        return "".join(log.read_text() for log in sorted(self.folder.glob("node-*.log")))


def a_second_node_of_the_same_name_is_refused(takt: str, folder: Path):
    log = folder / "second.log"
    with log.open("w") as file:
        code = start(takt, folder, file).wait(timeout=60)
    said = log.read_text()
    assert code == 1 and f"another node named {NODE} is already running" in said, f"status {code}: {said}"


def takt_ask_gets_what_takt_generate_says(takt: str, folder: Path):
    system, prompt = "At: kitchen. Battery: 40 %.", "How full is your battery?"
    options = ["--json", "--system", system]
    ask = [takt, "ask", prompt, *options, "--deadline", "60s", "--namespace", "/interop"]
    generate = [takt, "generate", str(folder / "engine"), "--prompt", prompt, *options]
    asked, generated = (
        json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout)
        for command in (ask, generate)
    )
    assert asked["status"] == "complete" and asked["text"], asked
    assert asked["text"] == generated["text"], (asked, generated)


def the_node_ends_on_interrupt(node: Node):
    node.interrupt()


def attempt(case, *arguments, peer: str = "") -> bool:
    name, started = f"{peer}{case.__name__.replace('_', ' ')}", time.monotonic()
    try:
        case(*arguments)
    except Exception as error:  # every case is to be seen
        print(f"FAILED  {name}: {type(error).__name__}: {error}", flush=True)
        return False
    print(f"ok      {name} ({time.monotonic() - started:.1f} s)", flush=True)
    return True


def run(takt: str, folder: Path) -> int:
    domain = free_domain()
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.update(
        ROS_DOMAIN_ID=str(domain),
        ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
        CYCLONEDDS_URI=CYCLONEDDS.format(interface=loopback),
    )
    # With the domain chosen, so that the peer joins it and nothing else.
    import peer

    (folder / "node.toml").write_text(CONFIG)
    subprocess.run([takt, "build", str(MODEL), "-o", str(folder / "engine")], check=True, stdout=subprocess.DEVNULL)
    node = Node(takt, folder)
    try:
        passed = [attempt(case, domain, NODE) for case in peer.MODEL_CASES + peer.CASES]
        if os.environ.get("TAKT_FASTDDS_PEER"):
            passed += fastdds_cases(domain, node)
        passed += [attempt(case, takt, folder) for case in (a_second_node_of_the_same_name_is_refused, takt_ask_gets_what_takt_generate_says)]
        passed.append(attempt(the_node_ends_on_interrupt, node))
    finally:
        node.kill()
    num_failed = passed.count(False)
    if num_failed:
        print(f"-- the node's log\n{node.logs()}")
    print(f"{passed.count(True)} passed, {num_failed} failed")
    return num_failed


def fastdds_cases(domain: int, node: Node) -> list:
    from fastdds import cases

    passed = [attempt(case, domain, NODE, peer="Fast DDS: ") for case in cases.CASES]
    return passed + [attempt(case, domain, NODE, node.restart, peer="Fast DDS: ") for case in cases.RESTART_CASES]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="takt-interop-") as temporary:
        sys.exit(1 if run(sys.argv[1], Path(temporary)) else 0)
