"""From pixels to the tokens that the language model gets: tower, projector, and the packing of an image's crops.

Shapes: B crops, S pixels a side, N tokens of a crop, C channels of the LLM, n_i tokens of the i-th image.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llava.model.anyres import VisionFeatures, get_anyres_image_grid_shape, is_anyres, merge_type, most_tiles, pack
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.typed import CausalLM, Decoder
from visionzip_patch.hooks import is_hooked, is_replaced, warn_of_idle_encoder
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)

Images = Tensor | Sequence[Tensor] | Sequence[VisionFeatures]
ImageSizes = Sequence[tuple[int, int]]
Encode = Callable[[Sequence[Tensor]], Sequence[VisionFeatures]]


class VisionMixin(CausalLM):
    """The part of a LLaVA model that turns images into tokens of the language model."""

    def get_model(self) -> Decoder:
        """Return the language model without its head, which owns the vision tower and the projector."""
        return self.model

    def get_vision_tower(self) -> VisionTower | None:
        """Return the vision tower; None if the model sees no images."""
        return self.get_model().get_vision_tower()

    def require_vision_tower(self) -> VisionTower:
        """Return the vision tower.

        Raises:
            ValueError: the model has none.
        """
        if (tower := self.get_vision_tower()) is None:
            raise ValueError("Images were given, but this model has no vision tower.")
        return tower

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode and project crops: (B, 3, S, S) -> (B, N, C)."""
        return self.project(self.require_vision_tower()(images))

    def project(self, tokens: Tensor) -> Tensor:
        """Map a tower's tokens to the channels of the language model: (…, N, channels of the tower) -> (…, N, C)."""
        embeddings = self.get_model().embed_tokens.weight  # says where to: parts that are offloaded have no device
        like = next(self.get_model().mm_projector.parameters(), embeddings)
        return self.get_model().mm_projector(tokens.to(device=embeddings.device, dtype=like.dtype))

    def image_features(
        self, images: Images, image_sizes: ImageSizes | None = None, *, encode: Encode | None = None
    ) -> list[Tensor]:
        """Encode images, and return the tokens of each as the language model gets them.

        Args:
            images: a 4-D tensor is one crop per image, (images, 3, S, S). In a list, or a 5-D tensor, an image is
                (3, S, S) or (crops, 3, S, S) and is packed as `config.mm_patch_merge_type` says. What the tower made
                of an image, `VisionFeatures`, may stand in its place.
            image_sizes: (width, height) in pixels of each original image; needed for anyres.
            encode: makes the features of images of (crops, 3, S, S) each, in place of `tower.features_of`; not used
                where another program has changed what encodes images.

        Returns:
            Per image (n_i, C).

        Raises:
            ValueError: other numbers of images and of sizes, images that are no tensors, or no vision tower.
        """
        if len(images) == 0:
            return []
        if self.has_changed_encoding():
            encode = None
        if isinstance(images, Tensor) and images.ndim == 4:  # crops by themselves: there is nothing to pack
            self._warn_of_idle_changes(in_list=False)
            if encode is None:
                return list(self.encode_images(images))
            return list(self.project(torch.cat([features.tokens for features in encode(list(images[:, None]))])))
        sizes = [None] * len(images) if image_sizes is None else image_sizes
        if len(sizes) != len(images):
            raise ValueError(f"{len(images)} images but {len(sizes)} image_sizes were given.")
        return [self._pack(f, size) for f, size in zip(self._projected(images, encode), sizes, strict=True)]

    def _projected(self, images: Images, encode: Encode | None) -> list[VisionFeatures]:
        """Encode each image of a list by itself, if it is not encoded yet, and project its tokens to C channels."""
        features = [image for image in images if isinstance(image, VisionFeatures)]
        if len(features) < len(images):
            tensors = [image for image in images if isinstance(image, Tensor)]
            if len(tensors) < len(images):
                raise ValueError(f"images holds {type(images[0]).__name__}: make tensors of them with process_images.")
            crops = [image if image.ndim == 4 else image[None] for image in tensors]
            self._warn_of_idle_changes(in_list=True)
            tower = self.require_vision_tower()
            if self.has_changed_encoding() and tower.reducer is None:
                return self._encode_as_upstream(crops)
            features = (encode or tower.features_of)(crops)
        flat = self.project(torch.cat([f.tokens.flatten(0, 1) for f in features]))
        projected = flat.split([f.tokens.shape[0] * f.tokens.shape[1] for f in features])
        return [
            f._replace(tokens=tokens.unflatten(0, f.tokens.shape[:2]))
            for f, tokens in zip(features, projected, strict=True)
        ]

    def _encode_as_upstream(self, images: Sequence[Tensor]) -> list[VisionFeatures]:
        """Encode and project images of (crops, 3, S, S) each by one call of `encode_images`."""
        tower = self.require_vision_tower()
        tokens = self.encode_images(torch.cat([image.to(tower.device) for image in images]))
        return [VisionFeatures(t, None, tower.num_patches_per_side) for t in tokens.split(list(map(len, images)))]

    def _pack(self, features: VisionFeatures, image_size: tuple[int, int] | None) -> Tensor:
        """Join the projected crops of one image as the config says: (crops, N, C) -> (n_i, C)."""
        config = self.config
        grid = None
        if is_anyres(config) and image_size is not None and len(features.tokens) > 1:
            crop = self.require_vision_tower().config.image_size
            grid = get_anyres_image_grid_shape(image_size, config.image_grid_pinpoints, crop)
        return pack(
            features,
            merge_type=merge_type(config),
            grid=grid,
            image_size=image_size,
            newline=getattr(self.get_model(), "image_newline", None),
            max_tiles=most_tiles(config),
        )

    def has_changed_encoding(self) -> bool:
        """Check whether another program has changed what encodes images: `encode_images`, or a call of the tower."""
        tower = self.get_vision_tower()
        return tower is not None and (
            is_replaced(self, "encode_images", OUR_ENCODING)
            or is_replaced(tower, "forward", OUR_TOWER)
            or is_hooked(tower)
        )

    def _warn_of_idle_changes(self, *, in_list: bool) -> None:
        """Warn, once, if another program has changed what encodes images, and it takes no effect on these."""
        tower = self.require_vision_tower()
        warn_of_idle_encoder(tower.vision_tower, tower.vision_tower.encoder)
        if is_replaced(tower, "feature_select", OUR_FEATURE_SELECT):
            warn_once(
                logger,
                "Another program has changed the tower's feature_select, which takes no effect: the tower stops at the "
                "layer that is read. Replace its forward, or choose tokens by tower.reducer.",
            )
        if in_list and tower.reducer is not None and self.has_changed_encoding():
            warn_once(
                logger,
                "Another program has changed encode_images, or the vision tower. It takes no effect on images in a "
                "list, because VisionZip orders their tokens by where they come from: call unzip(model) to see it.",
            )


OUR_TOWER = VisionTower.forward
OUR_FEATURE_SELECT = VisionTower.feature_select
OUR_ENCODING = VisionMixin.encode_images
