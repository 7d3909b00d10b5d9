"""Define the model in training: CLIP tower, projector, Llama, and heads that only serve to train the tower.

B scenes, P patches, C = 128 channels, Q text blocks per scene, T tokens per block.
"""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, LlamaConfig, LlamaForCausalLM

from playground.signs.lessons import CAPTION_LABELS, CHARACTERS, IGNORE, PATCH_CLASSES, Batch
from playground.signs.scenes import GRID, PATCH, SIZE
from playground.signs.tokenizer import MAX_LENGTH, PIECES
from visionzip_patch.compat import CACHE

WIDTH = 128
SELECT_LAYER = -2  # the hidden state LLaVA reads

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's image processor
STD = (0.26862954, 0.26130258, 0.27577711)
_CHARACTER_LAYER = 2
_BACKGROUND_WEIGHT = 0.3  # of patches with nothing on them, which are the most


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )


def language_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=PIECES,
        hidden_size=WIDTH,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def pixels(images: Tensor) -> Tensor:
    """Normalize pictures as CLIP's image processor does: (B, S, S, 3) uint8 -> (B, 3, S, S) fp32."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


class SignReader(nn.Module):
    """LLaVA in three parts, and four linear heads for the lessons of the tower."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(vision_config())
        self.projector = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.language = LlamaForCausalLM(language_config())
        for part in (self.tower, self.language):
            part.set_attn_implementation("eager")  # at this size faster than the fused kernels on a CPU
        self.caption_head = nn.Linear(WIDTH, CAPTION_LABELS)
        self.count_head = nn.Linear(WIDTH, 2)
        self.patch_head = nn.Linear(WIDTH, sum(PATCH_CLASSES))
        self.character_head = nn.Linear(WIDTH, len(CHARACTERS))

    def look(self, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Encode pictures (B, S, S, 3): hidden states, each (B, 1 + P, C), and the pooled CLS (B, C)."""
        out = self.tower(pixel_values=pixels(images), output_hidden_states=True)
        return out.hidden_states, out.pooler_output

    def read_answers(self, features: Tensor, prefix: Tensor, ids: Tensor) -> Tensor:
        """Compute hidden states of every text block, as if each were alone after the prefix and the image.

        The prefix and image run once per scene and their keys and values serve all blocks.

        Args:
            features: (B, any number, C) of the tower.
            prefix: ids before the image, (1, anything).
            ids: (B, Q, T).

        Returns:
            (B, Q, T, C)
        """
        blocks = ids.shape[1]
        llama = self.language.model
        text = llama.embed_tokens(prefix).expand(len(features), -1, -1)
        shared = torch.cat([text, self.projector(features).to(text.dtype)], dim=1)
        cache = DynamicCache(config=llama.config)
        llama(inputs_embeds=shared, use_cache=True, **{CACHE: cache})
        cache.batch_repeat_interleave(blocks)
        hidden = llama(input_ids=ids.flatten(0, 1), use_cache=True, **{CACHE: cache}).last_hidden_state
        return hidden.view(*ids.shape, -1)

    def answer_loss(self, features: Tensor, prefix: Tensor, batch: Batch) -> Tensor:
        predicts, target = self._predictions(features, prefix, batch)
        trained = target != IGNORE
        return F.cross_entropy(self.language.lm_head(predicts[trained]).float(), target[trained])

    @torch.no_grad()
    def answered(self, features: Tensor, prefix: Tensor, batch: Batch) -> Tensor:
        """Mark the blocks that greedy decoding would complete exactly, (B, Q) bool."""
        predicts, target = self._predictions(features, prefix, batch)
        return ((self.language.lm_head(predicts).argmax(-1) == target) | (target == IGNORE)).all(-1)

    def _predictions(self, features: Tensor, prefix: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.read_answers(features, prefix, batch.ids)[:, :, :-1], batch.labels[:, :, 1:]

    def caption_loss(self, cls: Tensor, batch: Batch) -> Tensor:
        """Compute the loss of naming, from a CLS vector (B, C), what the scene shows and how many signs it has."""
        shown = F.binary_cross_entropy_with_logits(self.caption_head(cls).float(), batch.caption, reduction="none")
        return shown.sum(1).mean() + F.cross_entropy(self.count_head(cls).float(), batch.count)

    def patch_loss(self, patches: Tensor, batch: Batch) -> Tensor:
        """Compute the loss of naming, from each patch (B, P, C), the text and the colour of the sign it lies on."""
        on_sign = batch.patches[..., -1] > 0  # (B, P)
        loss = patches.new_zeros((), dtype=torch.float32)
        for place, logits in enumerate(self.patch_head(patches).float().split(PATCH_CLASSES, dim=-1)):
            each = F.cross_entropy(logits.mT, batch.patches[..., place], reduction="none")  # (B, P)
            loss = loss + each[on_sign].mean() + _BACKGROUND_WEIGHT * each[~on_sign].mean()
        return loss

    def character_loss(self, hidden_states: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Compute the loss of naming, from each patch of an early layer, the characters it shows."""
        early = hidden_states[_CHARACTER_LAYER][:, 1:]
        logits = self.character_head(F.layer_norm(early, early.shape[-1:])).float()  # (B, P, N)
        each = F.binary_cross_entropy_with_logits(logits, batch.characters, reduction="none").sum(-1)
        shows = batch.characters.any(-1)
        return each[shows].mean() + _BACKGROUND_WEIGHT * each[~shows].mean()


def drop_tokens(hidden: Tensor, seed: int) -> Tensor:
    """Keep a random share (6 to 64 of 64, log-uniform) of the patches, so the language model copes with any selection.

    No selection method is imitated: the subset follows a random direction in feature space, a random place or nothing
    at all, and CLS joins it half of the time.

    Args:
        hidden: (B, 1 + P, C), CLS first.

    Returns:
        (B, kept, C), patches in raster order.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    patches = hidden[:, 1:]
    scenes, count, width = patches.shape
    keep = max(4, int(count * 2 ** rng.uniform(-3.3, 0)))
    # Adding Gumbel noise to scores and taking the top samples without replacement.
    score = -torch.empty(scenes, count).exponential_(generator=generator).log().to(hidden.device)
    how = rng.random()
    if how < 0.5:
        along = (patches.float() @ torch.randn(width, 1, generator=generator).to(hidden.device))[..., 0]
        along = (along - along.mean(1, keepdim=True)) / (along.std(1, keepdim=True) + 1e-5)
        score = score + rng.choice((1.0, 2.0, 4.0)) * along
    elif how < 0.75:
        side = torch.arange(GRID, dtype=torch.float32)
        spots = torch.cartesian_prod(side, side)[None].expand(scenes, -1, -1)  # (B, P, 2)
        centre = torch.rand(scenes, 1, 2, generator=generator) * GRID
        score = score - rng.choice((0.5, 1.0, 2.0)) * (spots - centre).norm(dim=-1).to(hidden.device)
    kept = score.topk(keep, dim=1).indices.sort(1).values
    subset = patches.gather(1, kept[..., None].expand(-1, -1, width))
    return torch.cat([hidden[:, :1], subset], dim=1) if rng.random() < 0.5 else subset
