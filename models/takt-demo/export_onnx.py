"""Export the model with torch.onnx.export: opset 18, plain operators, input_ids -> logits, no cache.

    python export_onnx.py --model . --out onnx/model.onnx

The matrices stay bf16 in the file, bit for bit those of model.safetensors, and the graph casts
them to float32, in which it computes. `--weights f32` stores them as float32, twice as large.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenizer import prompt_text

HERE = Path(__file__).parent
TEXT_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]


class Logits(nn.Module):
    """The exported function: token ids [1, seq] to logits [1, seq, vocab]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.m = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.m(input_ids=input_ids, use_cache=False).logits


class Widened(nn.Module):
    """A weight kept as bf16 and computed with as float32."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


def keep_matrices_bf16(model: nn.Module) -> None:
    """Store every matrix as bf16; the float32 model was loaded from bf16, so nothing is lost."""
    for module in list(model.modules()):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight = nn.Parameter(module.weight.detach().bfloat16(), requires_grad=False)
            parametrize.register_parametrization(module, "weight", Widened(), unsafe=True)


def export(folder: Path, out: Path, weights: str) -> None:
    """Write one ONNX file, without the exporter's per-node debugging notes, and the tokenizer beside it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if weights == "bf16":
        keep_matrices_bf16(model)
    length = torch.export.Dim("seq", min=2, max=model.config.max_position_embeddings)
    program = torch.onnx.export(
        Logits(model), (torch.zeros(1, 7, dtype=torch.long),), dynamo=True, opset_version=18,
        input_names=["input_ids"], output_names=["logits"], dynamic_shapes={"input_ids": {1: length}},
        optimize=weights == "f32")
    graph = program.model_proto
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del graph.graph.value_info[:]
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.checker.check_model(graph)
    onnx.save(graph, out)
    for name in TEXT_FILES:
        shutil.copyfile(folder / name, out.parent / name)


@torch.inference_mode()
def check_against_pytorch(folder: Path, out: Path, num_lines: int = 40) -> float:
    """Largest logit difference between onnxruntime and transformers on held-out prompts."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    worst = 0.0
    with (HERE / "eval" / "heldout.jsonl").open(encoding="utf-8") as lines:
        for line in map(json.loads, itertools.islice(lines, num_lines)):
            ids = tokenizer(prompt_text(line["system"], line["user"]), add_special_tokens=False)["input_ids"]
            theirs = session.run(["logits"], {"input_ids": np.array([ids], dtype=np.int64)})[0]
            ours = model(torch.tensor([ids])).logits.numpy()
            worst = max(worst, float(np.abs(theirs - ours).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--out", type=Path, default=HERE / "onnx" / "model.onnx")
    parser.add_argument("--weights", choices=["bf16", "f32"], default="bf16")
    args = parser.parse_args()
    export(args.model, args.out, args.weights)
    size_mb = args.out.stat().st_size / 1e6
    print(f"wrote {args.out} ({size_mb:.1f} MB); onnxruntime differs by at most "
          f"{check_against_pytorch(args.model, args.out):.1e}")


if __name__ == "__main__":
    main()
