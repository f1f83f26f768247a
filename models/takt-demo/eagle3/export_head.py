"""Write a head's checkpoint as it is published: bf16 safetensors in SafeAILab's naming, and config.json.

    python export_head.py --checkpoint runs/head/checkpoint.pt --out .
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from head import DraftHead, HeadConfig  # noqa: E402


def vocabulary_maps(draft_tokens: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """`d2t`: offset from a draft token to the target's; `t2d`: which of the target's tokens can be proposed."""
    members = torch.zeros(vocab_size, dtype=torch.bool)
    members[draft_tokens] = True
    return {"d2t": draft_tokens - torch.arange(len(draft_tokens)), "t2d": members}


def export(head: DraftHead, draft_tokens: Tensor, out: Path) -> None:
    """Write `config.json` and `model.safetensors` to `out`."""
    weights = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in head.state_dict().items()}
    weights |= vocabulary_maps(draft_tokens, head.config.vocab_size)
    (out / "config.json").write_text(json.dumps(head.config.to_hf(), indent=2) + "\n", encoding="utf-8")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    state = torch.load(args.checkpoint, map_location="cpu")
    head = DraftHead(HeadConfig(draft_vocab_size=len(state["draft_tokens"])))
    head.load_state_dict(state["head"])
    args.out.mkdir(parents=True, exist_ok=True)
    export(head, state["draft_tokens"], args.out)
    print(f"wrote {args.out}: {sum(weight.numel() for weight in head.parameters()):,} parameters")


if __name__ == "__main__":
    main()
