"""Run the vision tower as VisionZip's published code does, to compare with: same tokens, other cost.

Attention is eager in every layer, and all maps are kept; every layer is run, also those after the scored one; boolean
masks give results whose shapes the host has to wait for.
"""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.anyres import VisionFeatures
from llava.model.multimodal_encoder.tower import VisionTower
from visionzip_patch.saliency import split_heads
from visionzip_patch.token_order import MERGED


class PublishedTower:
    """A copy of a CLIP tower's encoder that runs the published way.

    Args:
        tower: a loaded CLIP tower that reads layer -2, as the published code requires.
        dominant, contextual: tokens of a crop.
    """

    def __init__(self, tower: VisionTower, dominant: int, contextual: int):
        self.encoder: Any = copy.deepcopy(tower.vision_tower)
        self.encoder.set_attn_implementation("eager")
        self.layer = self.encoder.encoder.layers[tower.depth - 1]
        self.index, self.dominant, self.contextual = tower.depth - 1, dominant, contextual
        self.layer.self_attn.k_proj.register_forward_hook(self.remember)

    def remember(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        """Keep the keys of the scored layer, averaged over heads: a forward hook."""
        self.keys = split_heads(output, self.layer.self_attn.head_dim).mean(1)  # (B, L, K)

    def states(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute hidden states (B, L, C) and attention (B, H, L, L) of the scored layer, and its keys (B, L, K)."""
        output = self.encoder(pixels, output_hidden_states=True, output_attentions=True)
        return output.hidden_states[self.index + 1], output.attentions[self.index], self.keys

    def reduce(self, hidden: Tensor, attention: Tensor, keys: Tensor) -> VisionFeatures:
        """Reduce what `states` returned to dominant + contextual tokens of each of B crops."""
        batch, length, channels = hidden.shape
        top = attention[:, :, 0, 1:].sum(1).topk(self.dominant - 1, dim=1).indices + 1
        kept = torch.cat([torch.zeros_like(top[:, :1]), top], dim=1)
        is_left = torch.ones(batch, length, dtype=torch.bool, device=hidden.device).scatter_(1, kept, False)
        dominant = hidden.masked_select(~is_left[..., None]).view(batch, self.dominant, channels)
        left = hidden.masked_select(is_left[..., None]).view(batch, -1, channels)
        unit = F.normalize(keys.masked_select(is_left[..., None]).view(batch, left.shape[1], -1), dim=-1)
        step = max(1, left.shape[1] // self.contextual)
        targets = torch.arange(0, left.shape[1], step, device=hidden.device)[: self.contextual]
        is_other = ~torch.isin(torch.arange(left.shape[1], device=hidden.device), targets)
        nearest = (unit[:, is_other] @ unit[:, targets].mT).argmax(-1)
        member = F.one_hot(nearest, self.contextual).to(hidden.dtype)  # (B, R-M, M)
        count = member.sum(1).clamp(min=1).unsqueeze(-1)
        contextual = left[:, targets] + member.mT @ left[:, is_other] / count
        position = torch.cat([kept.sort().values - 1, torch.full_like(kept[:, : self.contextual], MERGED)], dim=1)
        return VisionFeatures(torch.cat([dominant, contextual], dim=1), position, math.isqrt(length - 1))

    def __call__(self, pixels: Tensor) -> VisionFeatures:
        """Encode the pixels of B crops, (B, 3, S, S), to their tokens."""
        return self.reduce(*self.states(pixels))
