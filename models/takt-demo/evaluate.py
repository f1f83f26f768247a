"""Score a model folder on the held-out set: exact match of the parsed JSON, and where it fails.

    python evaluate.py --model . --precision bf16 --report eval/bf16.json

Precisions: f32 (the bf16 weights computed in f32), bf16 (weights and arithmetic), nvfp4 (bf16
arithmetic on decoder weights rounded to NVFP4).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nvfp4 import decoder_weights, fake_quantize
from skills import KEYS

HERE = Path(__file__).parent
PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16, "nvfp4": torch.bfloat16}
MAX_NEW_TOKENS = 48


def load(folder: Path, precision: str):
    """The model and its tokenizer, padded on the left for batched decoding."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=PRECISIONS[precision]).eval()
    if precision == "nvfp4":
        with torch.no_grad():
            for weight in decoder_weights(model):
                weight.copy_(fake_quantize(weight))
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


@torch.inference_mode()
def complete(model, tokenizer, lines: list[dict], batch_size: int = 48) -> list[str]:
    """The model's greedy answers, decoded with its key-value cache."""
    order = sorted(range(len(lines)), key=lambda idx: len(lines[idx]["system"] or "") + len(lines[idx]["user"]))
    answers = [""] * len(lines)
    for start in range(0, len(order), batch_size):
        chunk = order[start:start + batch_size]
        prompts = []
        for idx in chunk:
            system = lines[idx]["system"]
            messages = [{"role": "system", "content": system}] if system is not None else []
            messages.append({"role": "user", "content": lines[idx]["user"]})
            prompts.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        for idx, text in zip(chunk, texts):
            answers[idx] = text
    return answers


def parse(text: str) -> dict:
    """The JSON object in `text`, or an object that says there is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return {"skill": "(no JSON)"}
    return value if isinstance(value, dict) else {"skill": "(no object)"}


def label(answer: dict) -> str:
    """A skill, with the reason or missing slot where it has one."""
    detail = answer.get("reason") or answer.get("missing")
    return f"{answer.get('skill')}/{detail}" if detail else str(answer.get("skill"))


def score(lines: list[dict], answers: list[str]) -> dict[str, object]:
    """Exact match overall, per split and per skill; confusions of skills and of slots; every failure."""
    right: dict[str, list[bool]] = defaultdict(list)
    confusions: Counter[str] = Counter()
    slots: Counter[str] = Counter()
    failures = []
    for line, text in zip(lines, answers):
        wanted, got = json.loads(line["answer"]), parse(text)
        for name in ("all", f"split {line['split']}", f"skill {wanted['skill']}"):
            right[name].append(wanted == got)
        if wanted == got:
            continue
        failures.append({**line, "got": text})
        if label(wanted) != label(got):
            confusions[f"{label(wanted)} -> {label(got)}"] += 1
        else:
            slots.update(f"{wanted['skill']}.{key}" for key in KEYS if wanted.get(key) != got.get(key))
    rates = {name: {"exact": round(sum(hits) / len(hits), 4), "lines": len(hits)} for name, hits in sorted(right.items())}
    return {"exact_match": rates, "skill_confusions": dict(confusions.most_common()),
            "slot_errors": dict(slots.most_common()), "failures": failures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--data", type=Path, default=HERE / "eval" / "heldout.jsonl")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--report", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.data.open(encoding="utf-8")]
    result = score(lines, complete(*load(args.model, args.precision), lines))
    for name, rate in result["exact_match"].items():
        print(f"{name:24} {rate['exact']:7.2%} of {rate['lines']}")
    print("skill confusions", json.dumps(result["skill_confusions"], indent=1))
    print("slot errors", json.dumps(result["slot_errors"], indent=1))
    if args.report:
        args.report.write_text(json.dumps({"precision": args.precision, **result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
