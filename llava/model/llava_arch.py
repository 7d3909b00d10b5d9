"""What turns a language model into LLaVA: a vision tower, a projector, and the splice of their tokens into the prompt.

Shapes: B rows, T ids in a row, S slots in the longest spliced row, N tokens of a crop, C channels of the LLM.
"""

import copy
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.anyres import get_anyres_image_grid_shape, pack
from llava.model.checkpoint import TOWER_KEYS
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.splice import Spliced, splice

logger = logging.getLogger(__name__)


class LlavaMetaModel:
    """Mixed into a decoder: owns `vision_tower`, `mm_projector` and, for anyres, `image_newline`."""

    def __init__(self, config):
        super().__init__(config)
        if getattr(config, "mm_vision_tower", None) is None:
            return
        self.vision_tower = build_vision_tower(config, delay_load=True)
        if owns_tower(config):
            self.vision_tower.build()
        self.mm_projector = build_vision_projector(config)
        if "unpad" in merge_type(config):
            self.image_newline = nn.Parameter(torch.randn(config.hidden_size) * config.hidden_size**-0.5)

    def get_vision_tower(self):
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower  # FSDP hides frozen modules in a list


class LlavaMetaForCausalLM:
    """Mixed into a causal language model: takes `images` beside `input_ids`."""

    def get_model(self):
        return self.model

    def get_vision_tower(self):
        return self.get_model().get_vision_tower()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        images: Tensor | Sequence[Tensor] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        **kwargs,
    ):
        """As the language model's, with `images` as in `prepare_inputs_labels_for_multimodal`."""
        if inputs_embeds is None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes
                )
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Tensor | Sequence[Tensor] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        **kwargs,
    ):
        """Answer prompts, one or a batch; a batch gives what its prompts give one by one.

        Args:
            inputs: (B, T) ids, also as `input_ids`; one IMAGE_TOKEN_INDEX per image; padding on either side.
            images, image_sizes: as in `prepare_inputs_labels_for_multimodal`.
            attention_mask: (B, T); if absent, runs of the pad token at either end of a row of a batch are padding.
            kwargs: as `transformers.GenerationMixin.generate`.

        Returns:
            New token ids only, (B, new), or what `return_dict_in_generate` asks for.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        attention_mask = kwargs.pop("attention_mask", None)
        kwargs.pop("position_ids", None)  # follow from the mask
        if "max_new_tokens" in kwargs:
            kwargs.setdefault("max_length", None)  # old generation configs set it, and transformers warns of both
        if "inputs_embeds" in kwargs:
            raise ValueError("generate() makes inputs_embeds from input_ids and images; pass those.")
        if attention_mask is None:
            pad = kwargs.get("pad_token_id", self.generation_config.pad_token_id)
            attention_mask = infer_mask(input_ids, self.config.pad_token_id if pad is None else pad)
        self._require_images(input_ids, images)
        spliced = self._splice(input_ids, attention_mask, None, images, image_sizes, padding_side="left")
        return super().generate(inputs_embeds=spliced.embeds, attention_mask=spliced.mask, **kwargs)

    def encode_images(self, images: Tensor) -> Tensor:
        """Projected tokens of crops: (B, 3, S, S) -> (B, N, C)."""
        return self._project(self.get_vision_tower()(images))

    def image_features(
        self, images: Tensor | Sequence[Tensor], image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Tokens of each image as the language model gets them: a list of (n_i, C).

        A 4-D tensor is one crop per image. In a list, or a 5-D tensor, an image is (3, S, S) or (crops, 3, S, S) and is
        packed as `config.mm_patch_merge_type` says.
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            return list(self.encode_images(images))
        crops = [image if image.ndim == 4 else image[None] for image in images]
        if image_sizes is None:
            image_sizes = [None] * len(crops)
        if len(image_sizes) != len(crops):
            raise ValueError(f"{len(crops)} images but {len(image_sizes)} image_sizes were given.")
        features = self.get_vision_tower().features_of(crops)
        flat = self._project(torch.cat([f.tokens.flatten(0, 1) for f in features]))
        projected = flat.split([f.tokens.shape[0] * f.tokens.shape[1] for f in features])
        return [
            self._pack(f._replace(tokens=tokens.unflatten(0, f.tokens.shape[:2])), size)
            for f, tokens, size in zip(features, projected, image_sizes, strict=True)
        ]

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values,
        labels: Tensor | None,
        images: Tensor | Sequence[Tensor] | None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ):
        """Upstream's signature and 6-tuple: ids and images in, embeddings out.

        Args:
            input_ids: (B, T), one IMAGE_TOKEN_INDEX per image.
            images: (images, 3, S, S), (images, crops, 3, S, S), or a list of either without its first axis; in
                the order of the prompts. A row without <image> may have a dummy image, as upstream needs it, or none.
            image_sizes: (width, height) in pixels of each original image; needed for anyres.

        Returns:
            None, position_ids (B, S), attention_mask (B, S), past_key_values, inputs_embeds (B, S, C), labels (B, S).
            What was given as None comes back as None, except that a mask is returned where rows had to be padded.
            Without images, or in a decoding step, the arguments come back as they are.

        Raises:
            ValueError: the numbers of images and of <image> tokens differ, or images are missing.
        """
        decoding = past_key_values is not None and input_ids.shape[1] == 1
        if images is None or self.get_vision_tower() is None or decoding:
            if not decoding:
                self._require_images(input_ids, images)
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        side = getattr(self.config, "tokenizer_padding_side", "right")
        spliced = self._splice(input_ids, attention_mask, labels, images, image_sizes, padding_side=side)
        mask = None
        if attention_mask is not None:
            mask = spliced.mask.to(attention_mask.dtype)
        elif not spliced.mask.all():
            mask = spliced.mask
        positions = None if position_ids is None else spliced.positions
        return None, positions, mask, past_key_values, spliced.embeds, spliced.labels

    def save_pretrained(self, save_directory, is_main_process: bool = True, state_dict=None, **kwargs) -> None:
        """Save with upstream's key names, the VisionZip setting in `config.json`; each file whole or not at all.

        The tower's weights are saved if they are the checkpoint's own (`unfreeze_mm_vision_tower`), together with its
        config and preprocessing, so that the folder can be loaded alone; else `mm_vision_tower` says where they are.
        Weight files of an earlier save are removed. Sampling settings that do_sample=False leaves idle, which Vicuna's
        generation_config.json has, are not saved: some versions of transformers refuse them.
        """
        tower = self.get_vision_tower() if owns_tower(self.config) else None
        state = upstream_keys(self.state_dict() if state_dict is None else state_dict, with_tower=tower is not None)
        if tower is not None:
            self.config.mm_vision_tower_config = tower.config.to_diff_dict()
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as work:
            work = Path(work, target.resolve().name)  # the last part names the repository of `push_to_hub=True`
            settings = self.generation_config
            self.generation_config = without_idle_sampling(settings)
            try:
                super().save_pretrained(
                    work, is_main_process=is_main_process, state_dict=state, save_original_format=False, **kwargs
                )
            finally:
                self.generation_config = settings
            if tower is not None and is_main_process:
                tower.image_processor.save_pretrained(work)
            publish(work, target)

    def _project(self, tokens: Tensor) -> Tensor:
        like = next(self.get_model().mm_projector.parameters(), self.get_model().embed_tokens.weight)
        return self.get_model().mm_projector(tokens.to(like))

    def _pack(self, features, image_size) -> Tensor:
        config = self.config
        aspect = getattr(config, "image_aspect_ratio", None) or "square"
        grid = None
        if aspect.startswith("anyres") and image_size is not None and len(features.tokens) > 1:
            crop = self.get_vision_tower().config.image_size
            grid = get_anyres_image_grid_shape(image_size, config.image_grid_pinpoints, crop)
        limit = re.fullmatch(r"anyres_max_(\d+)", aspect)
        return pack(
            features,
            merge_type=merge_type(config),
            grid=grid,
            image_size=image_size,
            newline=getattr(self.get_model(), "image_newline", None),
            max_tiles=int(limit[1]) if limit else None,
        )

    def _splice(self, input_ids, attention_mask, labels, images, image_sizes, padding_side) -> Spliced:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        counts = ((input_ids == IMAGE_TOKEN_INDEX) & attention_mask.bool()).sum(1).tolist()
        features = [] if images is None else self.image_features(images, image_sizes)
        dummies = []
        if len(features) != sum(counts) and len(features) == sum(max(1, count) for count in counts):
            shown = [is_shown for count in counts for is_shown in ([True] * count or [False])]
            dummies = [f for f, is_shown in zip(features, shown, strict=True) if not is_shown]
            features = [f for f, is_shown in zip(features, shown, strict=True) if is_shown]
        max_length = getattr(self.config, "tokenizer_model_max_length", None)
        spliced = splice(
            self.get_model().embed_tokens,
            input_ids,
            attention_mask,
            features,
            labels,
            padding_side=padding_side,
            max_length=max_length,
        )
        if spliced.embeds.shape[1] == max_length:
            logger.warning("A prompt fills all of tokenizer_model_max_length=%d; what is longer was cut.", max_length)
        for dummy in dummies:  # adds nothing, but keeps tower and projector in the graph of a text-only batch
            spliced = spliced._replace(embeds=spliced.embeds + dummy[:0].sum())
        return spliced

    def _require_images(self, input_ids: Tensor, images) -> None:
        if images is not None and self.get_vision_tower() is None:
            raise ValueError("Images were given, but this model has no vision tower.")
        if images is None and (found := int((input_ids == IMAGE_TOKEN_INDEX).sum())):
            raise ValueError(f"The prompts hold {found} <image> tokens but no images were given.")


def merge_type(config) -> str:
    return getattr(config, "mm_patch_merge_type", None) or "flat"


def owns_tower(config) -> bool:
    """Whether the tower's weights belong to the checkpoint, as LLaVA-1.6's fine-tuned ones do."""
    return bool(getattr(config, "unfreeze_mm_vision_tower", False))


def upstream_keys(state: dict[str, Tensor], with_tower: bool) -> dict[str, Tensor]:
    """A state dict under the names that upstream and serving engines read, with the `vision_model.` of old."""
    named = {}
    for key, value in state.items():
        if key.startswith(TOWER_KEYS):
            if not with_tower:
                continue
            key = f"{TOWER_KEYS}vision_model.{key.removeprefix(TOWER_KEYS).removeprefix('vision_model.')}"
        named[key] = value
    return named


def without_idle_sampling(settings):
    settings = copy.deepcopy(settings)
    if not settings.do_sample:
        settings.temperature = settings.top_p = None
    return settings


def publish(work: Path, target: Path) -> None:
    """Move saved files to where they belong, weights before what names them, and remove weights that they replace."""
    new = {file.name for file in work.iterdir()}
    for name in sorted(new, key=lambda name: name.endswith(".json")):
        os.replace(work / name, target / name)
    if any(map(is_weights, new)):
        for file in target.iterdir():
            if is_weights(file.name) and file.name not in new:
                file.unlink()


def is_weights(name: str) -> bool:
    return re.fullmatch(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?", name) is not None


def infer_mask(input_ids: Tensor, pad_token_id: int | None) -> Tensor:
    """Mask of a padded batch, (B, T) bool: runs of the pad token at either end of a row are padding."""
    if pad_token_id is None or len(input_ids) == 1:
        return torch.ones_like(input_ids, dtype=torch.bool)
    pad = (input_ids == pad_token_id).long()
    leading, trailing = pad.cumprod(1), pad.flip(1).cumprod(1).flip(1)
    return (leading | trailing) == 0
