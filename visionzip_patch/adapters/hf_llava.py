"""transformers' own LLaVA: `LlavaForConditionalGeneration` (1.5) and `LlavaNextForConditionalGeneration` (1.6).

Three methods of one instance are wrapped. Image features come out fewer; `forward` and `generate` remove the surplus
placeholders, so the processor's output can be passed unchanged. Classes stay untouched. `generate` calls `forward`,
where the placeholders already fit and nothing is removed a second time.

Shapes: B rows, T ids in a row, S ids in the longest row of those left, N tokens left of a crop, C channels of the LLM,
(rows, cols) of tiles in an image's grid.
"""

from collections.abc import Callable
from functools import partial
from inspect import signature

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from visionzip_patch.encoder import layers_to_run, run_layers
from visionzip_patch.tiles import order_by_position

MODELS = (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration)
HAS_CLS = {"clip_vision_model": True, "siglip_vision_model": False}  # the vision towers that are known
IGNORED = -100  # the label that a loss of transformers skips


class HFLlavaTower:
    """What `visionzip` asks of a vision tower: `reducer`, `num_patches`, `has_cls`. Holds no state of its own.

    Raises:
        TypeError: the model, or its tower, is none of those that are known.
    """

    def __init__(self, model):
        kind = getattr(getattr(model.config, "vision_config", None), "model_type", "text model")
        if not isinstance(model, MODELS) or kind not in HAS_CLS:
            raise TypeError(
                f"{type(model).__name__} with a {kind} cannot be zipped; what can are "
                f"{' and '.join(cls.__name__ for cls in MODELS)} with a {' or a '.join(HAS_CLS)}."
            )
        self.model, self.config = model, model.config
        self.has_cls = HAS_CLS[kind]
        self.is_anyres = isinstance(model, LlavaNextForConditionalGeneration)
        self.side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        self.num_patches = self.side**2

    @property
    def reducer(self):
        """None, or what chooses tokens: an attribute of `model.model`. To set it is to wrap or unwrap the methods."""
        return getattr(self.model.model, "reducer", None)

    @reducer.setter
    def reducer(self, reducer) -> None:
        inner, was_zipped = self.model.model, self.reducer is not None
        methods = ((self.model, forward), (self.model, generate), (inner, get_image_features))
        if reducer is not None:
            self.depth()  # refuses before anything is changed
            if not was_zipped:
                for owner, method in methods:
                    wrap(owner, method, self.model)
            inner.reducer = reducer
        elif was_zipped:
            for owner, method in methods:
                unwrap(owner, method)
            del inner.reducer

    def depth(self, layer: int | None = None) -> int:
        """How many layers lead to `hidden_states[layer]`, by default the config's."""
        layer = self.config.vision_feature_layer if layer is None else layer
        return layers_to_run(layer, self.config.vision_config.num_hidden_layers, "vision_feature_layer")

    def grids(self, pixel_values: Tensor, image_sizes=None) -> list[tuple[int, int]]:
        """(rows, cols) of the tiles of each image; (0, 0) where the base crop is all."""
        if not self.is_anyres:
            return [(0, 0)] * len(pixel_values)
        if image_sizes is None:
            raise ValueError("LLaVA-NeXT needs image_sizes beside pixel_values: pass all that its processor returns.")
        pinpoints, crop = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        return [get_anyres_image_grid_shape(s, pinpoints, crop) for s in torch.as_tensor(image_sizes).tolist()]

    def placeholders(self, grids: list[tuple[int, int]], image_sizes=None, strategy: str | None = None) -> list[int]:
        """How many placeholders the processor writes for each image."""
        strategy = strategy or self.config.vision_feature_select_strategy
        counts = [self.num_patches + self.has_cls - (strategy == "default")] * len(grids)
        if self.is_anyres:
            for i, ((rows, cols), size) in enumerate(zip(grids, torch.as_tensor(image_sizes).tolist(), strict=True)):
                whole = torch.empty(1, rows * self.side, cols * self.side, device="meta")
                _, height, width = unpad_image(whole, size).shape
                counts[i] += height * (width + 1)  # + 1: each row ends with a newline
        return counts

    def encode(self, pixels: Tensor, crops: list[int], layer: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Projected tokens of each image, (crops, N, C), and their positions, (crops, N), see visionzip_patch.tiles.

        Args:
            pixels: all crops of all images, (sum of crops, 3, size, size).
            crops: how many of them each image has.
            layer: as `vision_feature_layer`. The layers after it are not run.
        """
        vision, project = self.model.model.vision_tower, self.model.model.multi_modal_projector
        hidden = vision.embeddings(pixels)
        if self.has_cls:
            hidden = vision.pre_layrnorm(hidden)
        layers = vision.encoder.layers[: self.depth(layer)]
        images = self.reducer.reduce_images(layers[-1], *run_layers(layers, hidden), crops)
        shapes = [image.tokens.shape[:2] for image in images]
        flat = project(torch.cat([image.tokens.flatten(0, 1) for image in images]))  # (all tokens, C)
        projected = flat.split([count * length for count, length in shapes])
        return [
            (tokens.unflatten(0, shape), image.position)
            for tokens, shape, image in zip(projected, shapes, images, strict=True)
        ]


def get_image_features(model, original: Callable, *args, **kwargs) -> BaseModelOutputWithPooling:
    """As the method it replaces; `pooler_output` is a list of (n_i, C), one per image."""
    given = named(original, args, kwargs)
    tower, pixels = HFLlavaTower(model), given["pixel_values"]
    if tower.reducer is None:
        return original(**given)
    grids = tower.grids(pixels, given.get("image_sizes"))
    crops = [1 + rows * cols for rows, cols in grids]
    if pixels.ndim == 5:  # (images, most crops, 3, size, size), filled up with empty crops
        pixels = torch.cat([image[:count] for image, count in zip(pixels, crops, strict=True)])
    images = tower.encode(pixels, crops, given.get("vision_feature_layer"))
    features = [
        torch.cat([tokens[0], order_by_position(tokens[1:], position[1:], cols, tower.side)]) if cols else tokens[0]
        for (tokens, position), (_, cols) in zip(images, grids, strict=True)
    ]
    return BaseModelOutputWithPooling(pooler_output=features)


def forward(model, original: Callable, *args, **kwargs):
    """As the method it replaces, on rows with fewer placeholders: logits are (B, S, vocabulary)."""
    return original(**shorten(model, named(original, args, kwargs)))


def generate(model, original: Callable, *args, **kwargs):
    """As the method it replaces. Prompts come back as they were given, so new tokens begin where a caller looks."""
    given = named(original, args, kwargs)
    if given.get("inputs") is not None:
        given["input_ids"] = given.pop("inputs")
    short = shorten(model, given, side="left")
    if short is given:
        return original(**given)
    prompt, length = given["input_ids"], short["input_ids"].shape[1]
    settings = given.get("generation_config") or model.generation_config
    # Limits of the whole length count the prompt, so they move with it; they do not hold beside a limit on new tokens.
    for limit, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        value = given.get(limit, getattr(settings, limit, None))
        if value and given.get(instead, getattr(settings, instead, None)) is None and value > prompt.shape[1]:
            short[limit] = value - prompt.shape[1] + length
    output = original(**short)
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompt = prompt.repeat_interleave(len(sequences) // len(prompt), dim=0)
    sequences = torch.cat([prompt, sequences[:, length:]], dim=1)
    if isinstance(output, Tensor):
        return sequences
    output.sequences = sequences
    return output


def shorten(model, given: dict, side: str | None = None) -> dict:
    """Arguments with one placeholder for each token that is left, padded on `side`, or where they were padded before.

    Returned as they are: calls without ids or pixels (text, decoding, embeddings), and ids that already fit.

    Raises:
        ValueError: the placeholders are not those that the processor writes for these images.
    """
    ids, pixels, image_sizes = (given.get(name) for name in ("input_ids", "pixel_values", "image_sizes"))
    tower = HFLlavaTower(model)
    if ids is None or pixels is None or tower.reducer is None:
        return given
    grids = tower.grids(pixels, image_sizes)
    fewer = [tower.reducer.tokens(1 + rows * cols) for rows, cols in grids]
    place = (ids == model.config.image_token_id).cpu().flatten().nonzero().squeeze(1)  # rows one after the other
    if len(place) == sum(fewer):
        return given
    runs = placeholder_runs(place, tower.placeholders(grids, image_sizes, given.get("vision_feature_select_strategy")))
    mask = given.get("attention_mask")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask {tuple(mask.shape)} and input_ids {tuple(ids.shape)}: shapes must be the same."
        )
    slots = torch.ones(ids.numel(), dtype=torch.long) if mask is None else mask.cpu().long().flatten().clone()
    for run, count in zip(runs, fewer, strict=True):  # how many places each id will take: text 1, padding 0
        slots[run] = 0
        slots[run[0]] = count
    side = side or ("right" if mask is None or mask[:, 0].all() else "left")
    rows = [torch.arange(ids.shape[1]).repeat_interleave(row) for row in slots.view_as(ids)]
    index = pad_sequence(rows, batch_first=True, padding_value=-1, padding_side=side)  # (B, S), -1 where padded
    pad = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    return {**given, **gather_arguments(given, index.to(ids.device), pad)}


def placeholder_runs(place: Tensor, lengths: list[int]) -> list[Tensor]:
    """Split the positions of all placeholders into the runs of the images, of `lengths` each."""
    runs = place.split(lengths) if len(place) == sum(lengths) else []
    if not runs or any(run[-1] - run[0] >= len(run) for run in runs):
        raise ValueError(
            f"The prompts hold {len(place)} image placeholders, but {len(lengths)} images take {lengths}, each in one "
            f"run. Pass what the model's processor returns; VisionZip makes them fewer by itself."
        )
    return list(runs)


def gather_arguments(given: dict, index: Tensor, pad: int) -> dict:
    """ids, mask, labels and positions at `index`, (B, S), -1 where padded."""
    ids, mask = given["input_ids"], given.get("attention_mask")
    held, index = index >= 0, index.clamp(min=0)
    short = {"input_ids": ids.gather(1, index).where(held, pad)}
    if mask is not None or not held.all():
        short["attention_mask"] = held.to(ids.dtype if mask is None else mask.dtype)
    if given.get("labels") is not None:
        short["labels"] = given["labels"].gather(1, index).where(held, IGNORED)
    if given.get("position_ids") is not None:
        short["position_ids"] = (held.cumsum(1) - 1).clamp(min=0)
    return short


def named(original: Callable, args: tuple, kwargs: dict) -> dict:
    """All arguments by name."""
    return {**dict(zip(signature(original).parameters, args, strict=False)), **kwargs} if args else kwargs


def wrap(owner, method: Callable, model) -> None:
    """Put `method` on this instance under its own name, with the signature of what it wraps: transformers looks."""
    original = getattr(owner, method.__name__)
    wrapped = partial(method, model, original)
    wrapped.__wrapped__ = original
    setattr(owner, method.__name__, wrapped)


def unwrap(owner, method: Callable) -> None:
    """Undo `wrap`, back to the class's method or to one that was on the instance before.

    Where something else has wrapped it in turn, it stays inside, and without a reducer it changes nothing.
    """
    wrapped = vars(owner)[method.__name__]
    if getattr(wrapped, "func", None) is not method:
        return
    delattr(owner, method.__name__)
    if getattr(owner, method.__name__) != wrapped.__wrapped__:
        setattr(owner, method.__name__, wrapped.__wrapped__)
