"""The node's own command line beside other vendors' traffic."""

import json
import subprocess


def takt_ask_gets_what_takt_generate_says(stage):
    system, prompt = "At: kitchen. Battery: 40 %.", "How full is your battery?"
    options = ["--json", "--system", system]
    ask = [stage.takt, "ask", prompt, *options, "--deadline", "60s", "--namespace", "/interop"]
    generate = [stage.takt, "generate", str(stage.folder / "engine"), "--prompt", prompt, *options]
    asked, generated = (
        json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout)
        for command in (ask, generate)
    )
    assert asked["status"] == "complete" and asked["text"], asked
    assert asked["text"] == generated["text"], (asked, generated)


CASES = []
# Once, whoever else is there.
CYCLONEDDS_CASES = [takt_ask_gets_what_takt_generate_says]
