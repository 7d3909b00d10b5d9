"""A vision tower: pixels in, tokens out, and one seam, `reducer`, where tokens can be made fewer.

Runs the encoder's layers itself and stops at the one that is read, so later layers cost nothing and the input of that
layer, from which a reducer computes its scores, is at hand without a hook.

Shapes: B crops, S pixels a side, P patches, L tokens (1 + P with CLS), N tokens that leave the tower, C channels.
"""

import re
from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llava.model.anyres import VisionFeatures
from llava.model.library_errors import blaming
from llava.model.multimodal_encoder.processor import read_processor
from llava.model.weight_files import read_model
from visionzip_patch.encoder import layers_to_run, queries_keys, run_layers
from visionzip_patch.evidence import Evidence, attention_evidence
from visionzip_patch.reducer import VisionZip
from visionzip_patch.selection import Selection

if TYPE_CHECKING:

    class Layers(nn.Module):
        """The stack of layers of an encoder, as transformers has it."""

        layers: nn.ModuleList

    class Encoder(PreTrainedModel):
        """A vision encoder of transformers, with the parts that are run one by one."""

        config: Any  # of CLIP or SigLIP: hidden_size, image_size, patch_size, num_hidden_layers
        embeddings: nn.Module
        pre_layrnorm: nn.Module  # of CLIP alone
        encoder: Layers


class AlsoNested:
    """Mixed into an encoder's class of transformers: programs that look for its layers one level down find them.

    There they were before transformers 5. A property, because an encoder that refers to itself keeps its memory until
    the garbage collector comes by, and because no state dict has it. The subclass keeps the name of its class, by which
    transformers knows how weights were called before.
    """

    @property
    def vision_model(self):
        """Return the encoder itself."""
        return self

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False: what transformers knows of its own class holds for this one."""
        return False


class VisionTower(nn.Module):
    """A Hugging Face vision encoder behind LLaVA's names. Subclasses say which classes and whether there is a CLS.

    Args:
        vision_tower: folder or hub id of the encoder.
        args: the LLaVA config: `mm_vision_select_layer`, `mm_vision_select_feature`.
        delay_load: leave the weights for `load_model`; until then only the encoder's config is read.

    Attributes:
        reducer: None, or what chooses tokens (`visionzip_patch`). It belongs to this tower only.
    """

    model_class: type[PreTrainedModel]
    config_class: type
    processor_class: type
    has_cls: bool
    vision_tower: "Encoder"
    reducer: VisionZip | None
    gives = frozenset({"saliency", "keys", "features"})  # of the evidence that selectors read

    def __init__(self, vision_tower: str, args, delay_load: bool = False):
        super().__init__()
        self.vision_tower_name = vision_tower
        self.select_layer = getattr(args, "mm_vision_select_layer", -2)
        self.select_feature = getattr(args, "mm_vision_select_feature", None) or "patch"
        if self.select_feature not in ("patch", "cls_patch"):
            raise ValueError(f"mm_vision_select_feature={self.select_feature!r} is unknown; choose patch or cls_patch.")
        self.reducer = None
        self.is_loaded = False
        self.image_processor: Any = None  # of transformers, for CLIP or SigLIP
        inline = getattr(args, "mm_vision_tower_config", None)  # of a checkpoint that carries its own tower
        with blaming(f"The config.json of mm_vision_tower={vision_tower!r} makes no vision tower"):
            self.cfg_only = self.config_class(**inline) if inline else self.config_class.from_pretrained(vision_tower)
        self.depth = layers_to_run(self.select_layer, self.cfg_only.num_hidden_layers)
        if not delay_load:
            self.load_model()

    def load_model(self, device_map=None, dtype: torch.dtype | None = None) -> None:
        """Read the encoder's own weights, and its image processor."""
        if self.is_loaded:
            return
        self.image_processor = self.read_processor()
        encoder, absent, strange = read_model(
            self.model_class, self.vision_tower_name, device_map=device_map, dtype=dtype or torch.float32
        )
        self.vision_tower = cast("Encoder", encoder)
        if further := [name for name in strange if re.match(r"(vision_model\.)?encoder\.layers\.", name)]:
            raise ValueError(
                f"mm_vision_tower={self.vision_tower_name!r} has {len(further)} weights of layers that its config.json "
                f"does not describe, {min(further)} among them: the layer that is read is counted from the end."
            )
        if needed := self.drop_unread(absent):
            raise ValueError(
                f"mm_vision_tower={self.vision_tower_name!r} lacks {len(needed)} weights that its config.json asks "
                f"for, {min(needed)} among them: the download is incomplete, or this is no vision tower."
            )
        self.adopt(self.vision_tower)

    def read_processor(self):
        """Read the image processor of the tower's folder, or of the checkpoint that carries the tower."""
        source = self.cfg_only.name_or_path or self.vision_tower_name  # a checkpoint with its own tower may have it
        return read_processor(self.processor_class, source, self.cfg_only.image_size)

    def build(self) -> None:
        """Make the encoder without weights: they are in the LLaVA checkpoint that is being loaded."""
        self.image_processor = self.read_processor()
        with blaming(f"The config of mm_vision_tower={self.vision_tower_name!r} makes no vision tower"):
            encoder = self.model_class(self.cfg_only)
        self.adopt(encoder)

    def adopt(self, encoder: PreTrainedModel) -> None:
        """Take an encoder as this tower's, frozen."""
        self.vision_tower = cast("Encoder", encoder.requires_grad_(False))
        self.is_loaded = True

    def drop(self) -> None:
        """Forget the encoder, so that `load_model` reads it: the LLaVA checkpoint had no weights for it after all."""
        del self.vision_tower
        self.is_loaded = False

    def drop_unread(self, absent: Collection[str]) -> set[str]:
        """Drop the parts of the encoder that have no weights and that nothing reads.

        LLaVA-NeXT deletes the layers behind the one that is read before it trains, so its checkpoints lack them. Left
        in place, they would hold random weights, and be saved.

        Args:
            absent: names of weights, from the encoder on, that the files lack.

        Returns:
            Those of them that are needed.
        """
        for name in (name for name in absent if not self.is_read(name)):
            part = name.split(".")[0]
            if part == "encoder":
                self.vision_tower.encoder.layers = self.layers[: self.depth]
            elif hasattr(self.vision_tower, part):  # the norm and the head that follow the last layer
                delattr(self.vision_tower, part)
        return {name for name in absent if self.is_read(name)}

    def is_read(self, name: str) -> bool:
        """Check by its name whether a module or weight of the encoder has a part in the tokens."""
        if layer := re.match(r"encoder\.layers\.(\d+)", name):
            return int(layer[1]) < self.depth
        return name.split(".")[0] in ("embeddings", "pre_layrnorm", "encoder")

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Encode crops: (B, 3, S, S) -> (B, N, C); a list of (3, S, S) or (crops, 3, S, S) -> a list."""
        if isinstance(images, Tensor):
            return self.features(images).tokens
        crops = [image if image.ndim == 4 else image[None] for image in images]
        return [
            f.tokens if image.ndim == 4 else f.tokens[0]
            for f, image in zip(self.features_of(crops), images, strict=True)
        ]

    def features(self, pixels: Tensor, crops: int = 1) -> VisionFeatures:
        """Encode crops, and keep where their tokens come from.

        Args:
            pixels: (B, 3, S, S).
            crops: how many of the B make up one image, which matters to a budget per image.

        Returns:
            Tokens (B, N, C), and their positions (B, N) if there is a reducer.
        """
        before, after = self.hidden_states(pixels)
        if self.reducer is None:
            return VisionFeatures(self.whole(after), None, self.num_patches_per_side)
        reduced = self.reducer.reduce(self.evidence(before, after), after, crops=crops)
        return VisionFeatures(*reduced, self.num_patches_per_side)

    def features_of(self, images: Sequence[Tensor]) -> list[VisionFeatures]:
        """Encode images of different numbers of crops, each (crops, 3, S, S), in one pass."""
        counts, side = [len(image) for image in images], self.num_patches_per_side
        before, after = self.hidden_states(torch.cat([image.to(self.device) for image in images]))
        if self.reducer is None:
            return [VisionFeatures(tokens, None, side) for tokens in self.whole(after).split(counts)]
        reduced = self.reducer.reduce_images(self.evidence, before, after, counts)
        return [VisionFeatures(tokens, position, side) for tokens, position in reduced]

    def evidence(self, before: Tensor, after: Tensor) -> Evidence:
        """Collect what selectors may look at.

        Args:
            before: the input of the layer that is read, (B, L, C).
            after: its output, (B, L, C).
        """
        return attention_evidence(after, partial(queries_keys, self.selected_layer, before), has_cls=self.has_cls)

    def select(self, images: Tensor) -> Selection:
        """Choose tokens of each crop, (B, 3, S, S), as the reducer does.

        Raises:
            ValueError: there is no reducer.
        """
        if self.reducer is None:
            raise ValueError("This vision tower has no reducer: call visionzip(model, ...) first.")
        return self.reducer.select(self.evidence(*self.hidden_states(images)))

    def hidden_states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute input and output of the layer that is read: (B, 3, S, S) -> (B, L, C), (B, L, C).

        A frozen encoder leaves nothing behind for a backward pass, and recomputes nothing in it.
        """
        is_learning = torch.is_grad_enabled() and next(self.vision_tower.parameters()).requires_grad
        with torch.set_grad_enabled(is_learning):
            hidden = self.embed(pixels.to(device=self.device, dtype=self.dtype))
            return run_layers(self.layers[: self.depth], hidden)

    def embed(self, pixels: Tensor) -> Tensor:
        """Compute the input of the first layer: (B, 3, S, S) -> (B, L, C)."""
        return self.vision_tower.embeddings(pixels)

    def whole(self, hidden: Tensor) -> Tensor:
        """Take those of all tokens that `select_feature` asks for: (B, L, C) -> (B, P, C) or (B, L, C)."""
        return hidden[:, 1:] if self.has_cls and self.select_feature == "patch" else hidden

    def feature_select(self, image_forward_outs) -> Tensor:
        """Take what LLaVA reads out of an encoder's output with `hidden_states`: (B, P, C), or with CLS (B, L, C).

        Upstream's step, for programs that run `tower.vision_tower` themselves; the reducer has no part in it.
        """
        return self.whole(image_forward_outs.hidden_states[self.depth])

    @property
    def layers(self) -> nn.ModuleList:
        """Return all layers of the encoder."""
        return self.vision_tower.encoder.layers

    @property
    def selected_layer(self) -> Any:
        """Return the layer whose output is read: an encoder layer of CLIP or SigLIP."""
        return self.layers[self.depth - 1]

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the encoder's weights, which pixels are turned into."""
        return next(self.vision_tower.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Return where pixels go; what accelerate offloads (device "meta") fetches its inputs by itself."""
        device = next(self.vision_tower.parameters()).device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def config(self) -> Any:
        """Return the encoder's config, CLIP's or SigLIP's."""
        return self.vision_tower.config if self.is_loaded else self.cfg_only

    @property
    def hidden_size(self) -> int:
        """Return the number of channels of a token, C."""
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        """Return the number of patches in a row of a crop."""
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """Return the number of patches of a crop, P."""
        return self.num_patches_per_side**2

    @property
    def dummy_feature(self) -> Tensor:
        """Return a token of zeros, (1, C), as upstream's tower does."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)
