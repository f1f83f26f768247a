"""Write `prompts.jsonl`: what `takt build --draft` tries the head on. Drawn as training sentences are.

    python make_prompts.py
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from generate import Sampler  # noqa: E402
from splits import make_splits  # noqa: E402

NUM_PROMPTS = 12


def main() -> None:
    sampler = Sampler(make_splits(), random.Random("prompts"))
    lines = []
    while len(lines) < NUM_PROMPTS:
        example = sampler.example(*sampler.situation())
        # Refusals are short: a third of the lines, no more.
        if json.loads(example.answer)["skill"] != "refuse" or len(lines) % 3 == 0:
            lines.append({"system": example.system, "user": example.user})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (HERE / "prompts.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
