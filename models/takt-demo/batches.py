"""Rows of tokens for training and scoring: one shared prompt, several exchanges about it.

In most rows each exchange sees the prompt and itself only, and counts its positions from the
prompt's end, so a row is worth several ordinary sequences and the prompt is computed once. The
others are conversations: every exchange sees those before it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

import torch
from tokenizers import Tokenizer
from torch import Tensor

from generate import EMPHASIS, INVENTED_SHARE, TRAINING_BARE_SHARE, TRAINING_KNOWN_SHARE, Sampler
from splits import Splits
from tokenizer import answer_text, system_text, user_text

PROMPT, PADDING = 0, -1
"""Segments of a row; exchanges are numbered from 1."""
CONVERSATION_SHARE = 0.2


@dataclass
class Batch:
    """Rows, and which of their positions predict which answer token."""

    input_ids: Tensor
    """[B, T]"""
    positions: Tensor
    """[B, T]"""
    mask: Tensor
    """[B, 1, T, T], true where a query (row) may look at a key (column)."""
    sources: Tensor
    """[A] flat positions whose next token is an answer token."""
    targets: Tensor
    """[A] those tokens."""
    owners: Tensor
    """[A] the exchange each belongs to, numbered through the batch."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Row:
    """One row under construction."""

    def __init__(self, prompt: list[int], conversation: bool = False) -> None:
        self.conversation = conversation
        self.prompt_len = len(prompt)
        self.ids, self.positions = list(prompt), list(range(len(prompt)))
        self.segments = [PROMPT] * len(prompt)
        self.sources: list[int] = []
        self.owners: list[int] = []
        self.num_exchanges = 0

    def add(self, user: list[int], answer: list[int]) -> None:
        """Append an exchange; its first answer token is predicted by the last user token."""
        start, exchange = len(self.ids) + len(user) - 1, user + answer
        position = start + 1 - len(user) if self.conversation else self.prompt_len
        self.num_exchanges += 1
        self.sources += range(start, start + len(answer))
        self.owners += [self.num_exchanges - 1] * len(answer)
        self.ids += exchange
        self.positions += range(position, position + len(exchange))
        self.segments += [self.num_exchanges] * len(exchange)


def collate(rows: list[Row], row_len: int, pad_id: int) -> Batch:
    """Pad rows to `row_len` and lay out their masks."""
    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([getattr(row, name) + [value] * (row_len - len(row.ids)) for row in rows])

    input_ids, segments = padded("ids", pad_id), padded("segments", PADDING)
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(row_len, row_len, dtype=torch.bool).tril()
    conversation = torch.tensor([row.conversation for row in rows])[:, None, None]
    mask = (((query == key) | ((key == PROMPT) & (query != PADDING)) | conversation) & causal)[:, None]
    sources, owners, first_owner = [], [], 0
    for idx, row in enumerate(rows):
        sources += [idx * row_len + source for source in row.sources]
        owners += [first_owner + owner for owner in row.owners]
        first_owner += row.num_exchanges
    sources_tensor = torch.tensor(sources)
    targets = input_ids.flatten()[sources_tensor + 1]
    return Batch(input_ids, padded("positions", 0), mask, sources_tensor, targets, torch.tensor(owners))


class Packer:
    """Makes the training batch of any step from nothing but the seed and the step."""

    def __init__(self, tokenizer: Tokenizer, splits: Splits, seed: int, num_rows: int, row_len: int) -> None:
        self.tokenizer, self.splits, self.seed = tokenizer, splits, seed
        self.num_rows, self.row_len = num_rows, row_len

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def row(self, sampler: Sampler) -> Row:
        system, state = sampler.situation()
        row = Row(self.encode(system_text(system)), sampler.rng.random() < CONVERSATION_SHARE)
        while True:
            example = sampler.example(system, state)
            follows_answer = row.conversation and row.num_exchanges > 0
            user = self.encode(("\n" if follows_answer else "") + user_text(example.user))
            answer = self.encode(answer_text(example.answer))
            if len(row.ids) + len(user) + len(answer) > self.row_len:
                return row
            row.add(user, answer)

    def batch(self, step: int) -> Batch:
        sampler = Sampler(self.splits, random.Random(f"{self.seed} {step}"), emphasis=EMPHASIS,
                          known_share=TRAINING_KNOWN_SHARE, bare_share=TRAINING_BARE_SHARE,
                          invented_share=INVENTED_SHARE)
        rows = [self.row(sampler) for _ in range(self.num_rows)]
        return collate(rows, self.row_len, pad_id=0)


def scoring_batch(tokenizer: Tokenizer, lines: list[dict]) -> Batch:
    """One row per held-out line."""
    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    rows = []
    for line in lines:
        row = Row(encode(system_text(line["system"])))
        row.add(encode(user_text(line["user"])), encode(answer_text(line["answer"])))
        rows.append(row)
    return collate(rows, max(len(row.ids) for row in rows), pad_id=0)
