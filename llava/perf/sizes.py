"""Sizes of LLaVA models: enough to calculate their cost, or to build one with random weights and the same cost.

Imports nothing heavy, so that the calculator starts at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # LLaVA-1.6's, tiles wide and high


class ModelSize(NamedTuple):
    """Sizes of a LLaVA model. The projector is `mlp2x_gelu`; a tower with CLS is CLIP, one without is SigLIP."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    is_tied: bool = False  # embedding and head are one table
    tower_hidden: int = 1024  # from here on CLIP-L/14 at 336 pixels
    tower_intermediate: int = 4096
    tower_layers: int = 24
    tower_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    has_cls: bool = True
    select_layer: int = -2
    crops: int = 1  # of an image: 1, or 5 for LLaVA-NeXT's 2 x 2 tiles after the whole picture

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def tower_head_dim(self) -> int:
        return self.tower_hidden // self.tower_heads

    @property
    def patches(self) -> int:
        """Patches of a crop."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tower_length(self) -> int:
        """Tokens of a crop inside the tower, CLS included."""
        return self.patches + self.has_cls

    @property
    def tower_depth(self) -> int:
        """Layers of the tower that run, up to the one that is read."""
        return self.select_layer if self.select_layer >= 0 else self.tower_layers + 1 + self.select_layer

    @property
    def budgets(self) -> list[tuple[int, int]]:
        """The paper's dominant and contextual tokens of a crop, smallest budget first; fewer for a small tower."""
        if self.patches < 12**2:
            return [(6, 1), (14, 2)]
        return [(27, 5), (54, 10), (108, 20)] if self.crops > 1 else [(54, 10), (108, 20), (162, 30)]

    @property
    def tower_parameters(self) -> int:
        """Parameters of the tower, with layers that never run and the pooling head of SigLIP's published models."""
        hidden, wide = self.tower_hidden, self.tower_intermediate
        norm, attention, mlp = 2 * hidden, 4 * (hidden + 1) * hidden, (hidden + 1) * wide + (wide + 1) * hidden
        embeddings = hidden * (3 * self.patch_size**2 + self.tower_length)
        ends = norm + (norm + hidden if self.has_cls else hidden + attention + norm + mlp + hidden)
        return embeddings + ends + self.tower_layers * (2 * norm + attention + mlp)

    @classmethod
    def from_config(cls, config, tower) -> "ModelSize":
        """Read the sizes from a LLaVA config and its tower, as `llava.model.description.read_config` returns them."""
        from llava.model.anyres import is_anyres  # imports torch, which is there already where there is a tower

        vision = tower.cfg_only
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            vocab=config.vocab_size,
            is_tied=config.tie_word_embeddings,
            tower_hidden=vision.hidden_size,
            tower_intermediate=vision.intermediate_size,
            tower_layers=vision.num_hidden_layers,
            tower_heads=vision.num_attention_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            has_cls=tower.has_cls,
            select_layer=tower.select_layer,
            crops=5 if is_anyres(config) else 1,
        )


VICUNA_7B = ModelSize(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocab=32000)
VICUNA_13B = ModelSize(hidden=5120, intermediate=13824, layers=40, heads=40, kv_heads=40, vocab=32000)

SIZES = {
    "tiny": ModelSize(  # the tower's share of all work is LLaVA-NeXT's
        hidden=256,
        intermediate=688,
        layers=6,
        heads=4,
        kv_heads=4,
        vocab=1024,
        tower_hidden=48,
        tower_intermediate=192,
        tower_layers=5,
        tower_heads=4,
        crops=5,
    ),
    "llava-1.5-7b": VICUNA_7B,
    "llava-1.5-13b": VICUNA_13B,
    "llava-next-7b": VICUNA_7B._replace(crops=5),
    "llava-next-13b": VICUNA_13B._replace(crops=5),
}


def find_size(model: str, known: Mapping[str, ModelSize] = SIZES) -> tuple[str, ModelSize]:
    """Find the name and sizes of a model.

    Args:
        model: one of `known`, in upper or lower case, or a checkpoint: folder or hub id.
        known: sizes by name.

    Raises:
        ValueError: it is neither, or the checkpoint cannot be read.
    """
    by_name = {name.lower(): name for name in known}
    if name := by_name.get(model.lower()):
        return name, known[name]
    unknown = f"{model!r} is neither one of {', '.join(known)} nor a checkpoint"
    if "/" not in model and not Path(model).exists():  # no hub has it, and asking takes half a minute offline
        raise ValueError(f"{unknown}: a folder, or a hub id, which has an owner: owner/name.")
    from llava.mm_utils import get_model_name_from_path
    from llava.model.description import read_config

    try:
        return get_model_name_from_path(model), ModelSize.from_config(*read_config(model))
    except ValueError as error:
        raise ValueError(f"{unknown}. {error}") from error


def build_model(size: ModelSize, device, dtype):
    """Build a LLaVA of that size with small random weights, on the device; in evaluation mode, its tower frozen."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig

    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    assert size.has_cls, "only CLIP towers are built"
    side = size.image_size
    tower_config = CLIPVisionConfig(
        hidden_size=size.tower_hidden,
        intermediate_size=size.tower_intermediate,
        num_hidden_layers=size.tower_layers,
        num_attention_heads=size.tower_heads,
        image_size=side,
        patch_size=size.patch_size,
    )
    vision: dict[str, Any] = {
        "mm_vision_tower": "random",
        "mm_vision_tower_config": tower_config.to_dict(),
        "mm_hidden_size": size.tower_hidden,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": size.select_layer,
    }
    if size.crops > 1:
        vision |= {
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": [[side * wide, side * high] for wide, high in GRIDS],
        }
    config = LlavaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        vocab_size=size.vocab,
        tie_word_embeddings=size.is_tied,
        max_position_embeddings=4096,
        **vision,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaLlamaForCausalLM(config)
            tower = model.get_vision_tower()
            tower.vision_tower, tower.is_loaded = tower.model_class(tower_config).requires_grad_(False), True
    finally:
        torch.set_default_dtype(before)
    tower.image_processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    return model.eval()
