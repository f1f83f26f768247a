"""The draft head: EAGLE-3's one decoder layer over the target's own features, in plain PyTorch.

Parameters are named as SafeAILab and SpecForge publish them (`midlayer.*`), so the state dict is the
file that is shipped. Training unrolls the head over its own outputs ("training-time test", Li et al.,
"EAGLE-3", arXiv 2503.01840): step 0 reads the target's features, step k its own output of step k - 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import Mlp, ModelConfig, RmsNorm, TaktDemo, rotary_tables, rotate

CAPTURED = (2, 4, 5)
"""Target layers at whose input features are taken."""


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of the head; `ModelConfig` has the target's."""

    draft_vocab_size: int = 1024
    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 768
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 1024

    def to_hf(self) -> dict[str, object]:
        """The head's `config.json`."""
        return {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", **asdict(self),
                "num_hidden_layers": 1, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
                "eagle_aux_hidden_state_layer_ids": list(CAPTURED)}


@dataclass
class Rows:
    """Target rows, and the anchors at which drafts begin.

    An anchor is a position i: the head gets the feature of token i and the embedding of token i + 1 and says token
    i + 2; its step k says token i + 2 + k.
    """

    features: Tensor
    """[B, T, 3 H] of the target."""
    next_embeddings: Tensor
    """[B, T + S, H] embedding of token i + 1 at place i; S more places, so that steps can look ahead."""
    positions: Tensor
    """[B, T]"""
    mask: Tensor
    """[B, T, T], true where a query may look at a key."""
    anchors: Tensor
    """[B, A] places of the anchors in their row; short rows repeat their last."""


class Attention(nn.Module):
    """Grouped-query attention over [embedding, hidden]; queries at anchors only."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        wide, dim = 2 * config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(wide, config.num_attention_heads * dim, bias=False)
        self.k_proj = nn.Linear(wide, config.num_key_value_heads * dim, bias=False)
        self.v_proj = nn.Linear(wide, config.num_key_value_heads * dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * dim, config.hidden_size, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, n D] as [B, n, T, D]."""
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def keys_values(self, joined: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotated keys and values [B, heads, T, D], repeated for every query head."""
        repeats = self.config.num_attention_heads // self.config.num_key_value_heads
        keys = rotate(self.split(self.k_proj(joined)), *rotary)
        return keys.repeat_interleave(repeats, 1), self.split(self.v_proj(joined)).repeat_interleave(repeats, 1)

    def attend(self, joined: Tensor, rotary: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, mask: Tensor,
               own: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Over the target's rows under `mask` [B, A, T], and the anchor's own rows of earlier steps and of this one."""
        queries = rotate(self.split(self.q_proj(joined)), *rotary) * self.config.head_dim**-0.5
        scores = (queries @ keys.mT).masked_fill(~mask[:, None], float("-inf"))
        diagonal = [(queries * own_keys).sum(-1, keepdim=True) for own_keys, _ in own]
        weights = torch.cat([scores, *diagonal], dim=-1).softmax(-1)
        out = weights[..., :scores.size(-1)] @ values
        for step, (_, own_values) in enumerate(own):
            out = out + weights[..., scores.size(-1) + step, None] * own_values
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MidLayer(nn.Module):
    """The decoder layer."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def join(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """[..., 2 h], the embedding first."""
        return torch.cat([self.input_layernorm(embeddings), self.hidden_norm(hidden)], dim=-1)


def at(values: Tensor, places: Tensor) -> Tensor:
    """`values` [B, T, ...] at `places` [B, A] → [B, A, ...]."""
    index = places.reshape(*places.shape, *[1] * (values.dim() - 2)).expand(*places.shape, *values.shape[2:])
    return values.gather(1, index)


class DraftHead(nn.Module):
    """fc, one layer, norm and output head; embeddings are the target's."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(3 * config.hidden_size, config.hidden_size, bias=False)
        self.midlayer = MidLayer(config)
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)

    @torch.no_grad()
    def start_from(self, target: TaktDemo, draft_tokens: Tensor) -> None:
        """Begin with the target's last feed-forward, final norm and output rows, and features of its last captured layer."""
        hidden = self.config.hidden_size
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.5 * parameter.size(1) ** -0.5)
        self.fc.weight.mul_(0.1)
        self.fc.weight[:, 2 * hidden:] += torch.eye(hidden)
        self.midlayer.mlp.load_state_dict(target.model.layers[-1].mlp.state_dict())
        self.midlayer.post_attention_layernorm.load_state_dict(
            target.model.layers[-1].post_attention_layernorm.state_dict())
        self.norm.load_state_dict(target.model.norm.state_dict())
        self.lm_head.weight.copy_(target.model.embed_tokens.weight[draft_tokens])

    def unroll(self, rows: Rows, num_steps: int) -> list[Tensor]:
        """Draft logits [B, A, Vd] of every step at every anchor."""
        layer, attention = self.midlayer, self.midlayer.self_attn
        fused = self.fc(rows.features)
        length = rows.positions.size(1)
        shape = ModelConfig(head_dim=self.config.head_dim, rope_theta=self.config.rope_theta)
        joined = layer.join(rows.next_embeddings[:, :length], fused)
        keys, values = attention.keys_values(joined, rotary_tables(rows.positions, shape))
        mask = at(rows.mask, rows.anchors)
        positions = at(rows.positions, rows.anchors)
        hidden, own, logits = at(fused, rows.anchors), [], []
        for step in range(num_steps):
            rotary = rotary_tables(positions + step, shape)
            joined = layer.join(at(rows.next_embeddings, rows.anchors + step), hidden)
            if step > 0:
                own = [*own, attention.keys_values(joined, rotary)]
            hidden = hidden + attention.attend(joined, rotary, keys, values, mask, own)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            logits.append(self.lm_head(self.norm(hidden)))
        return logits
