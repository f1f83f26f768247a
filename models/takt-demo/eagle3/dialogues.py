"""Rows for the head: training exchanges, cut where the target itself would have written something else.

Greedy decoding writes a given answer exactly if every token of it is the target's likeliest after those
before it. So one forward pass over the packed rows of `batches.py` tells how far each answer is the
target's own, and yields the features and the distributions to learn at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batches import Batch
from head import CAPTURED, Rows
from model import TaktDemo, rotary_tables


@dataclass
class Lesson:
    """What one batch teaches."""

    rows: Rows
    targets: Tensor
    """[B, A, S] flat places of `logits` that step s of an anchor should reproduce; -1 beyond the answer."""
    logits: Tensor
    """[B T, V] of the target."""


@torch.no_grad()
def run_target(target: TaktDemo, batch: Batch) -> tuple[Tensor, Tensor]:
    """Features [B, T, 3 H] at the inputs of the captured layers, and logits [B, T, V]."""
    decoder = target.model
    x = decoder.embed_tokens(batch.input_ids)
    rotary = rotary_tables(batch.positions, target.config)
    inputs = []
    for layer in decoder.layers:
        inputs.append(x)
        x = layer(x, rotary, batch.mask)
    return torch.cat([inputs[idx] for idx in CAPTURED], dim=-1), target.head(decoder.norm(x))


def own_answers(batch: Batch, logits: Tensor) -> list[list[int]]:
    """For each exchange the flat places that predict its answer, up to the first one where the target would differ."""
    agrees = (logits.flatten(0, 1)[batch.sources].argmax(-1) == batch.targets).tolist()
    answers: list[list[int]] = [[] for _ in range(int(batch.owners[-1]) + 1)]
    ended = [False] * len(answers)
    for place, owner, agreed in zip(batch.sources.tolist(), batch.owners.tolist(), agrees):
        if not ended[owner]:
            answers[owner].append(place)
            ended[owner] = not agreed
    return answers


def lesson(target: TaktDemo, batch: Batch, num_steps: int) -> Lesson:
    """Anchors and targets of `batch`. The target is asked once."""
    features, logits = run_target(target, batch)
    num_rows, length = batch.input_ids.shape
    by_row: list[list[tuple[int, list[int]]]] = [[] for _ in range(num_rows)]
    for places in own_answers(batch, logits):
        for idx, place in enumerate(places[:-1]):
            # At the last place that predicts the target's own token nothing of its answer is left to be said.
            steps = places[idx + 1:idx + 1 + num_steps]
            by_row[place // length].append((place % length, steps + [-1] * (num_steps - len(steps))))
    widest = max(len(row) for row in by_row)
    padding = (0, [-1] * num_steps)
    by_row = [row + [padding] * (widest - len(row)) for row in by_row]
    anchors = torch.tensor([[anchor for anchor, _ in row] for row in by_row])
    targets = torch.tensor([[steps for _, steps in row] for row in by_row])
    with torch.no_grad():
        following = torch.cat([batch.input_ids[:, 1:], torch.zeros(num_rows, num_steps + 1, dtype=torch.long)], 1)
        embeddings = target.model.embed_tokens(following)
    rows = Rows(features, embeddings, batch.positions, batch.mask[:, 0], anchors)
    return Lesson(rows, targets, logits.flatten(0, 1))


def frequent_answer_tokens(batches: list[Batch], vocab_size: int, num_kept: int, required: list[int]) -> Tensor:
    """The most frequent answer tokens, `required` ones among them, sorted."""
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for batch in batches:
        counts += torch.bincount(batch.targets, minlength=vocab_size)
    counts[required] = counts.max() + 1
    kept = counts.argsort(descending=True, stable=True)[:num_kept].sort().values
    print(f"draft vocabulary: {num_kept} of {vocab_size} tokens cover {counts[kept].sum() / counts.sum():.3%} of the answers")
    return kept
