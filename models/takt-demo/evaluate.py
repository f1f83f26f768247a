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
from tokenizer import answer_text, prompt_text

HERE = Path(__file__).parent
PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16, "nvfp4": torch.bfloat16}
MAX_NEW_TOKENS = 48


def load(folder: Path, precision: str):
    """The model and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=PRECISIONS[precision]).eval()
    if precision == "nvfp4":
        with torch.no_grad():
            for weight in decoder_weights(model):
                weight.copy_(fake_quantize(weight))
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


@torch.inference_mode()
def is_reproduced(model, tokenizer, lines: list[dict], batch_size: int = 32) -> list[bool]:
    """Whether greedy decoding writes each line's answer: every token of it is the likeliest after those before it."""
    hits = []
    for start in range(0, len(lines), batch_size):
        chunk = lines[start:start + batch_size]
        prompts = [tokenizer(prompt_text(line["system"], line["user"]))["input_ids"] for line in chunk]
        replies = [tokenizer(answer_text(line["answer"]))["input_ids"] for line in chunk]
        length = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies))
        input_ids = torch.zeros(len(chunk), length, dtype=torch.long, device=model.device)
        for row, prompt, reply in zip(input_ids, prompts, replies):
            row[:len(prompt) + len(reply)] = torch.tensor(prompt + reply)
        # Padding comes after the answer, so causal attention never sees it.
        likeliest = model(input_ids=input_ids, use_cache=False).logits.argmax(-1).tolist()
        for row, prompt, reply in zip(likeliest, prompts, replies):
            hits.append(row[len(prompt) - 1:len(prompt) + len(reply) - 1] == reply)
    return hits


@torch.inference_mode()
def decode(model, tokenizer, line: dict) -> str:
    """The model's greedy answer to one line, token by token."""
    messages = [{"role": "system", "content": line["system"]}] if line["system"] is not None else []
    messages.append({"role": "user", "content": line["user"]})
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    output = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False,
                            max_new_tokens=MAX_NEW_TOKENS)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)


def complete(model, tokenizer, lines: list[dict]) -> list[str]:
    """The model's answers; only those that differ from the expected ones need decoding."""
    hits = is_reproduced(model, tokenizer, lines)
    return [line["answer"] if hit else decode(model, tokenizer, line) for line, hit in zip(lines, hits)]


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
        for name in ("all", f"split {line.get('split', 'situations')}", f"skill {wanted['skill']}"):
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
    text = args.data.read_text(encoding="utf-8")
    lines = json.loads(text) if args.data.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    result = score(lines, complete(*load(args.model, args.precision), lines))
    for name, rate in result["exact_match"].items():
        print(f"{name:24} {rate['exact']:7.2%} of {rate['lines']}")
    print("skill confusions", json.dumps(result["skill_confusions"], indent=1))
    print("slot errors", json.dumps(result["slot_errors"], indent=1))
    if args.report:
        args.report.write_text(json.dumps({"precision": args.precision, **result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
