"""The chat format and the byte-level BPE tokenizer.

`python tokenizer.py --out DIR` trains the tokenizer on generated training text and writes
tokenizer.json, tokenizer_config.json and chat_template.jinja.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from generate import Example, Sampler
from splits import make_splits

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB_SIZE = 2048
NUM_SITUATIONS = 20_000
# Qwen's split: words with one leading non-letter, single digits, runs of punctuation.
SPLIT = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- endif -%}"
)


def system_text(system: str | None) -> str:
    """The prompt part that every exchange about one situation shares; empty without a system message."""
    return "" if system is None else f"{START}system\n{system}{END}\n"


def user_text(user: str) -> str:
    """The operator's sentence, up to where the model starts to write."""
    return f"{START}user\n{user}{END}\n{START}assistant\n"


def answer_text(answer: str) -> str:
    """What the model writes, with the token that ends it."""
    return f"{answer}{END}"


def prompt_text(system: str | None, user: str) -> str:
    return system_text(system) + user_text(user)


def training_text(seed: int) -> Iterator[str]:
    """Systems, sentences and answers as the tokenizer's corpus; few typos, so that words come before misspellings."""
    sampler = Sampler(make_splits(), random.Random(seed), typo_rate=0.01)
    for _ in range(NUM_SITUATIONS):
        system, state = sampler.situation()
        yield from ("system\n", "user\n", "assistant\n", system or "")
        for _ in range(4):
            example: Example = sampler.example(system, state)
            yield example.user
            yield example.answer


def train_tokenizer(seed: int) -> Tokenizer:
    """Byte-level BPE of `VOCAB_SIZE` tokens; unused room is filled with reserved tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(SPLIT, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END_OF_TEXT, START, END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(training_text(seed), trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    return tokenizer


def save(tokenizer: Tokenizer, out: Path, context_len: int = 1024) -> None:
    """Write the three tokenizer files."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    special = {str(tokenizer.token_to_id(token)): {
        "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True,
    } for token in (END_OF_TEXT, START, END)}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": special, "bos_token": None,
        "eos_token": END, "pad_token": END_OF_TEXT, "unk_token": None, "add_prefix_space": False,
        "clean_up_tokenization_spaces": False, "model_max_length": context_len, "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_against_transformers(folder: Path) -> None:
    """Our training format and transformers' rendering of the chat template agree token by token."""
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    sampler = Sampler(make_splits(), random.Random(1))
    for _ in range(200):
        example = sampler.example(*sampler.situation())
        messages = [{"role": "system", "content": example.system}] if example.system is not None else []
        messages.append({"role": "user", "content": example.user})
        prompt = prompt_text(example.system, example.user)
        rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert rendered == prompt, (rendered, prompt)
        parts = [system_text(example.system), user_text(example.user), answer_text(example.answer)]
        ids = [idx for part in parts for idx in ours.encode(part, add_special_tokens=False).ids]
        assert ids == theirs(prompt + parts[2], add_special_tokens=False)["input_ids"], example
        assert ours.decode(ids, skip_special_tokens=False) == prompt + parts[2], example


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    save(train_tokenizer(args.seed), args.out)
    check_against_transformers(args.out)
    print(f"wrote {args.out / 'tokenizer.json'}")


if __name__ == "__main__":
    main()
