"""Starts `takt serve` on a domain nobody uses and lets CycloneDDS and Fast DDS talk to it: every case once with each.

`run.py TAKT [WORDS]` builds the demo model's engine first. Fast DDS takes part if TAKT_FASTDDS_PEER names its program. With WORDS only the
cases whose vendor, file or name has one of them run. Exits 1 if anything failed.
"""

import gc
import importlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = Path(__file__).resolve().parents[2] / "models" / "takt-demo"
# The loopback interface has no multicast: peers are looked for at the well-known ports.
CYCLONEDDS = """<CycloneDDS><Domain id="any">
<General><Interfaces><NetworkInterface name="{interface}"/></Interfaces><AllowMulticast>false</AllowMulticast></General>
<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>30</MaxAutoParticipantIndex>
<Peers><Peer Address="127.0.0.1"/></Peers></Discovery>
</Domain></CycloneDDS>"""
# One file of `cases` each. The last restarts the node, so that all before it has to leave the node able to end well.
DOORS = (
    "encoding",
    "sentences",
    "prompts",
    "service",
    "action",
    "parameters",
    "lifecycle",
    "diagnostics",
    "graph",
    "names",
    "simulated_time",
    "command",
    "newcomers",
    "burst",
    "malformed",
    "restart",
)


def free_domain() -> int:
    """A domain whose first participants' ports are free."""
    for domain in random.sample(range(100, 200), 100):
        try:
            for port in (10, 11, 12, 13):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.bind(("127.0.0.1", 7400 + 250 * domain + port))
            return domain
        except OSError:
            continue
    sys.exit("every DDS domain from 100 to 199 is in use on this machine")


def attempt(case, stage, name: str) -> bool:
    started = time.monotonic()
    try:
        case(stage)
    except Exception as error:  # every case is to be seen
        print(f"FAILED  {name}: {type(error).__name__}: {error}", flush=True)
        return False
    finally:
        # CycloneDDS's entities live as long as Python's; a participant index is soon wanted again.
        gc.collect()
    print(f"ok      {name} ({time.monotonic() - started:.1f} s)", flush=True)
    return True


def cases_of(vendor: str, words: list):
    """`(name, function)` of every case that `words` want."""
    for door in DOORS:
        module = importlib.import_module(f"cases.{door}")
        of_vendor = getattr(module, f"{vendor.upper().replace(' ', '')}_CASES", [])
        for case in module.CASES + of_vendor:
            name = f"{vendor}: {door}: {case.__name__.replace('_', ' ')}"
            if not words or any(word in name for word in words):
                yield name, case


def run(takt: str, folder: Path, words: list) -> int:
    domain = free_domain()
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.update(
        ROS_DOMAIN_ID=str(domain),
        ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
        CYCLONEDDS_URI=CYCLONEDDS.format(interface=loopback),
    )
    # With the domain chosen, so that the peers join it and nothing else.
    from cyclone.robot import Robot as Cyclone
    from fastdds.robot import PEER
    from fastdds.robot import Robot as FastDds
    from stage import CONFIG, Node, Stage

    (folder / "node.toml").write_text(CONFIG)
    subprocess.run([takt, "build", str(MODEL), "-o", str(folder / "engine")], check=True, stdout=subprocess.DEVNULL)
    num_failed = 0
    with Node(takt, folder) as node:
        for vendor in [Cyclone, FastDds] if PEER else [Cyclone]:
            stage, started = Stage(vendor, domain, takt, folder, node), time.monotonic()
            passed = [attempt(case, stage, name) for name, case in cases_of(vendor.vendor, words)]
            num_failed += passed.count(False)
            print(f"{vendor.vendor}: {passed.count(True)} passed, {passed.count(False)} failed ({time.monotonic() - started:.0f} s)")
        if num_failed:
            print(f"-- the node's log ends with\n{stage.log_tail()}")
    return num_failed


if __name__ == "__main__":
    # Ends the node as well, as any other exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="takt-interop-") as temporary:
        sys.exit(1 if run(sys.argv[1], Path(temporary), sys.argv[2:]) else 0)
