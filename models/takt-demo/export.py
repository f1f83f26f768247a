"""Write a checkpoint as a Hugging Face folder: bf16 safetensors and the files beside it.

    python export.py --checkpoint runs/demo/checkpoint.pt --out .
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from model import ModelConfig, TaktDemo
from tokenizer import END, END_OF_TEXT, save as save_tokenizer


def export(model: TaktDemo, tokenizer: Tokenizer, out: Path) -> None:
    """Write config, generation config, tokenizer files and bf16 weights to `out`."""
    eos, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)
    save_tokenizer(tokenizer, out, model.config.max_position_embeddings)
    generation = {"do_sample": False, "eos_token_id": eos, "pad_token_id": pad, "max_new_tokens": 64}
    for name, content in [("config.json", model.config.to_hf(eos, pad)), ("generation_config.json", generation)]:
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    weights = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


@torch.no_grad()
def check_against_transformers(model: TaktDemo, out: Path) -> float:
    """Largest logit difference between transformers' Qwen3 and our module, both in f32 on the bf16 weights."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ours = TaktDemo(model.config)
    ours.load_state_dict({name: w.to(torch.bfloat16).float() for name, w in model.state_dict().items()})
    input_ids = torch.randint(0, model.config.vocab_size, (2, 96), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(96).expand(2, 96)
    mask = torch.ones(96, 96, dtype=torch.bool).tril()[None, None]
    logits = ours.head(ours.hidden(input_ids, positions, mask))
    return (theirs(input_ids).logits - logits).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="without one, the weights are random")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(Path(__file__).parent / "tokenizer.json"))
    torch.manual_seed(0)
    model = TaktDemo(ModelConfig(vocab_size=tokenizer.get_vocab_size()))
    if args.checkpoint:
        model.load_state_dict(torch.load(args.checkpoint, map_location="cpu")["model"])
    args.out.mkdir(parents=True, exist_ok=True)
    export(model, tokenizer, args.out)
    print(f"wrote {args.out}; logits differ from transformers by at most {check_against_transformers(model, args.out):.1e}")


if __name__ == "__main__":
    main()
