"""transformers' own LLaVA: `LlavaForConditionalGeneration` (1.5) and `LlavaNextForConditionalGeneration` (1.6).

Methods of one instance are wrapped. Image features come out fewer; `forward`, also that of the inner model, and
`generate` remove the surplus placeholders, so the processor's output can be passed unchanged. Classes stay untouched.
`generate` calls `forward`, and that the inner one, where the placeholders already fit and nothing is removed again.

Shapes: N tokens left of a crop, C channels of the LLM, (rows, cols) of tiles in an image's grid; others as in
`shortening`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaModel, LlavaNextForConditionalGeneration, LlavaNextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from visionzip_patch.adapters.generation import run_forward, run_generate
from visionzip_patch.adapters.wrapping import named, unwrap, wrap
from visionzip_patch.encoder import EncoderLayer, layers_to_run, queries_keys, run_layers
from visionzip_patch.evidence import Evidence, attention_evidence
from visionzip_patch.hooks import warn_of_idle_encoder
from visionzip_patch.reducer import VisionZip
from visionzip_patch.token_order import order_by_position

MODELS = (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration, LlavaModel, LlavaNextModel)
HAS_CLS = {"clip_vision_model": True, "siglip_vision_model": False}  # the vision encoders that are known


class HFLlavaTower:
    """What `visionzip` asks of a vision tower (`visionzip_patch.reducer.Tower`) and of a family (`shortening.Family`).

    Holds no state of its own.

    Args:
        model: one with a language model's head, or what is inside of it.

    Raises:
        TypeError: the model, or its vision encoder, is none of those that are known.
    """

    by_image: tuple[str, ...] = ("pixel_values", "image_sizes")
    gives = frozenset({"saliency", "keys", "features", "projected"})

    def __init__(self, model: Any):
        kind = getattr(getattr(model.config, "vision_config", None), "model_type", "text model")
        if not isinstance(model, MODELS) or kind not in HAS_CLS:
            raise TypeError(
                f"{type(model).__name__} with a {kind} cannot be zipped; what can are "
                f"{', '.join(cls.__name__ for cls in MODELS)} with a {' or a '.join(HAS_CLS)}."
            )
        self.model = model
        self.config: Any = model.config
        self.inner: Any = model if isinstance(model, LlavaModel | LlavaNextModel) else model.model
        self.has_cls = HAS_CLS[kind]
        self.is_anyres = isinstance(self.inner, LlavaNextModel)
        self.side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        self.num_patches = self.side**2
        self.pad_token_id = getattr(self.config.get_text_config(), "pad_token_id", None) or 0

    @property
    def reducer(self) -> VisionZip | None:
        """What chooses tokens: an attribute of the inner model. To set it is to wrap or unwrap the methods."""
        return getattr(self.inner, "reducer", None)

    @reducer.setter
    def reducer(self, reducer: VisionZip | None) -> None:
        was_zipped = self.reducer is not None
        methods: dict[Any, tuple[Callable, ...]] = {self.inner: (get_image_features, forward)}
        if self.model is not self.inner:
            methods[self.model] = (generate, forward)
        if reducer is not None:
            self.depth()  # refuses before anything is changed
            if not was_zipped:
                for owner, wrapped in methods.items():
                    wrap(owner, *wrapped)
            self.inner.reducer = reducer
        elif was_zipped:
            for owner, wrapped in methods.items():
                unwrap(owner, *wrapped)
            del self.inner.reducer

    def is_placeholder(self, tokens: Tensor) -> Tensor:
        """Tell which of ids (B, T), or of embeddings (B, T, C), stand for an image: (B, T) bool."""
        token = self.config.image_token_id
        if tokens.ndim == 2:
            return tokens == token
        return (tokens == self.inner.get_input_embeddings()(torch.tensor(token, device=tokens.device))).all(-1)

    def tokens(self, given: dict) -> list[int] | None:
        """Count the tokens of each image of a call, given as pixels or as features; None if there are neither."""
        if (features := encoded(given)) is not None:
            return [len(image) for image in features]
        if given.get("pixel_values") is None:
            return None
        assert self.reducer is not None, "calls are shortened only while a reducer is set"
        return [self.reducer.tokens(1 + rows * cols) for rows, cols in self.grids(given)]

    def depth(self, layer: int | None = None) -> int:
        """Count the layers that lead to `hidden_states[layer]`, by default the config's."""
        wanted = self.config.vision_feature_layer if layer is None else layer
        return layers_to_run(wanted, self.config.vision_config.num_hidden_layers, "vision_feature_layer")

    def grids(self, given: dict) -> list[tuple[int, int]]:
        """Find rows and columns of the tiles of each image of a call; (0, 0) where the base crop is all."""
        if not self.is_anyres:
            features = encoded(given)
            return [(0, 0)] * len(given["pixel_values"] if features is None else features)
        if given.get("image_sizes") is None:
            raise ValueError("LLaVA-NeXT needs image_sizes beside pixel_values: pass all that its processor returns.")
        pinpoints, crop = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        sizes = torch.as_tensor(given["image_sizes"]).tolist()
        return [get_anyres_image_grid_shape(size, pinpoints, crop) for size in sizes]

    def placeholders(self, given: dict) -> list[int]:
        """Count the placeholders that the processor writes for each image of a call."""
        strategy = given.get("vision_feature_select_strategy") or self.config.vision_feature_select_strategy
        grids = self.grids(given)
        counts = [self.num_patches + self.has_cls - (strategy == "default")] * len(grids)
        if self.is_anyres:
            sizes = torch.as_tensor(given["image_sizes"]).tolist()
            for i, ((rows, cols), size) in enumerate(zip(grids, sizes, strict=True)):
                whole = torch.empty(1, rows * self.side, cols * self.side, device="meta")
                _, height, width = unpad_image(whole, size).shape
                counts[i] += height * (width + 1)  # + 1: each row ends with a newline
        return counts

    def encode(self, pixels: Tensor, crops: list[int], layer: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Encode images: projected tokens of each, (crops, N, C), and their positions, (crops, N).

        Positions are those of `visionzip_patch.token_order`.

        Args:
            pixels: all crops of all images, (sum of crops, 3, size, size).
            crops: how many of them each image has.
            layer: as `vision_feature_layer`. The layers after it are not run.
        """
        assert self.reducer is not None, "without a reducer the model encodes images itself"
        vision, project = self.inner.vision_tower, self.inner.multi_modal_projector
        warn_of_idle_encoder(vision, vision.encoder)
        hidden = vision.embeddings(pixels)
        if self.has_cls:
            hidden = vision.pre_layrnorm(hidden)
        layers = vision.encoder.layers[: self.depth(layer)]
        read = partial(self.evidence, layers[-1])
        images = self.reducer.reduce_images(read, *run_layers(layers, hidden), crops)
        shapes = [image.tokens.shape[:2] for image in images]
        flat = project(torch.cat([image.tokens.flatten(0, 1) for image in images]))  # (all tokens, C)
        projected = flat.split([count * length for count, length in shapes])
        return [
            (tokens.unflatten(0, shape), image.position)
            for tokens, shape, image in zip(projected, shapes, images, strict=True)
        ]

    def evidence(self, layer: EncoderLayer, before: Tensor, after: Tensor) -> Evidence:
        """Make the evidence of some crops from input and output of the layer that is read, (B, L, C) each."""
        return attention_evidence(
            after,
            partial(queries_keys, layer, before),
            has_cls=self.has_cls,
            project=self.inner.multi_modal_projector,
        )


def encoded(given: dict) -> list[Tensor] | None:
    """Find the features of images that a call brings in place of pixels, (n_i, C) each; None if it has none."""
    output = (given.get("mm_encoder_outputs") or {}).get("image")
    return None if output is None else output.pooler_output


def get_image_features(model, original: Callable, *args, **kwargs) -> BaseModelOutputWithPooling:
    """Do as the method it replaces; `pooler_output` is a list of (n_i, C), one per image."""
    given = named(original, args, kwargs)
    tower, pixels = HFLlavaTower(model), given["pixel_values"]
    if tower.reducer is None:
        return original(**given)
    grids = tower.grids(given)
    crops = [1 + rows * cols for rows, cols in grids]
    if pixels.ndim == 5:  # (images, most crops, 3, size, size), filled up with empty crops
        pixels = torch.cat([image[:count] for image, count in zip(pixels, crops, strict=True)])
    images = tower.encode(pixels, crops, given.get("vision_feature_layer"))
    features: Any = [  # transformers declares a tensor, and takes a list of them
        torch.cat([tokens[0], order_by_position(tokens[1:], position[1:], cols, tower.side)]) if cols else tokens[0]
        for (tokens, position), (_, cols) in zip(images, grids, strict=True)
    ]
    return BaseModelOutputWithPooling(pooler_output=features)


def forward(model, original: Callable, *args, **kwargs):
    """Do as the method it replaces: the language model runs on fewer tokens, outputs are those of all placeholders.

    Logits (B, T, vocabulary), hidden states and attention are at the positions of the ids as they were given, so
    labels, masks and metrics of these fit. They are 0 at placeholders that are gone; the last ones of an image stay,
    so what predicts the word behind it is there. The cache holds fewer tokens.
    """
    given, tower = named(original, args, kwargs), HFLlavaTower(model)
    return original(**given) if tower.reducer is None else run_forward(tower, model, original, given)


def generate(model, original: Callable, *args, **kwargs):
    """Do as the method it replaces. Prompts come back as they were given, so new tokens begin where a caller looks.

    A cache that is passed, or returned, remembers its prompts, so that a dialogue can go on from it without pixels.
    """
    given, tower = named(original, args, kwargs), HFLlavaTower(model)
    return original(**given) if tower.reducer is None else run_generate(tower, model, original, given)
