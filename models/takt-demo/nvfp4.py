"""NVFP4 rounding of weights, bit for bit as ModelOpt does it, but kept in float.

Blocks of 16 along the input dimension share an E4M3 scale; one float scales the tensor;
values are E2M1, rounded to nearest with ties to the even mantissa.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCK_LEN = 16
E2M1_MAX, E4M3_MAX, E4M3_MIN = 6.0, 448.0, 2.0**-9
E2M1_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1_MIDPOINTS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
TIES_GO_UP = torch.tensor([False, True, False, True, False, True, False])


def round_e2m1(x: Tensor) -> Tensor:
    """Nearest E2M1 value, saturating at 6."""
    magnitude = x.abs().contiguous()
    midpoints = E2M1_MIDPOINTS.to(x.device)
    # A tie that goes up is a midpoint just below itself.
    just_below = torch.nextafter(midpoints, torch.zeros_like(midpoints))
    codes = torch.bucketize(magnitude, torch.where(TIES_GO_UP.to(x.device), just_below, midpoints))
    return E2M1_VALUES.to(x.device)[codes] * x.sign()


@torch.no_grad()
def fake_quantize(weight: Tensor) -> Tensor:
    """`weight` [N, K] after a round trip through NVFP4; K must be a multiple of 16."""
    blocks = weight.float().reshape(-1, BLOCK_LEN)
    amax = blocks.abs().max()
    if amax == 0:
        return weight.clone()
    tensor_scale = amax / (E2M1_MAX * E4M3_MAX)
    scale = blocks.abs().amax(dim=1, keepdim=True) / (E2M1_MAX * tensor_scale)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale).clamp(E4M3_MIN, E4M3_MAX)
    step = scale.to(torch.float8_e4m3fn).float() * tensor_scale
    return (round_e2m1(blocks / step) * step).reshape(weight.shape).to(weight.dtype)


def decoder_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights NVFP4 applies to: every linear layer of the decoder, not the tied embedding and head."""
    return [module.weight for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and "lm_head" not in name]
