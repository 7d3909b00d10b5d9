"""`generate` of a LLaVA model: prompts and images in, new ids out, by transformers' loop or by the fast path.

Shapes: B rows, T ids in a row, C channels of the LLM, n_i tokens of the i-th image.
"""

import logging
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList

from llava.model.engine import Engine
from llava.model.finite import FiniteLogits, NotFinite, explain
from llava.model.graphs import MODES, OFF
from llava.model.multimodal import OUR_FORWARD, MultimodalMixin, infer_mask, require_images_only
from llava.model.sampling import configure
from llava.model.vision import Images, ImageSizes
from visionzip_patch.compat import with_one_cache
from visionzip_patch.hooks import changes_forward
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)

ENGINES: WeakKeyDictionary[nn.Module, dict[str, Engine]] = WeakKeyDictionary()  # not in the models: copies share none
NOT_OURS = (
    "This model's prepare_inputs_labels_for_multimodal is another program's: only generate(input_ids, images=..., "
    "image_sizes=...) and forward go through it, not what encodes images by itself."
)


class AnsweringMixin(MultimodalMixin):
    """The part of a LLaVA model that answers prompts.

    Attributes:
        fast: which way `generate` goes if its caller does not say; None is transformers' loop.
    """

    fast: str | None = None

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Images | None = None,
        image_sizes: ImageSizes | None = None,
        image_features: Sequence[Tensor] | None = None,
        fast: str | None = None,
        modalities: Sequence[str] | None = None,
        **kwargs,
    ):
        """Answer prompts, one or a batch; a batch gives what its prompts give one by one.

        Where a subclass or another program has its own `prepare_inputs_labels_for_multimodal`, images go through that,
        and transformers' loop runs, as in upstream.

        Args:
            inputs: (B, T) ids, also as `input_ids`; one IMAGE_TOKEN_INDEX per image; padding on either side.
            images: as in `prepare_inputs_labels_for_multimodal`.
            image_sizes: as in `prepare_inputs_labels_for_multimodal`.
            image_features: in place of both, what the method of this name returned for the images, per image (n_i, C):
                an image that many questions are asked about goes through the tower once.
            fast: "static", "graphs" (CUDA graphs) or "compile" (by Inductor as well) instead of transformers' loop: the
                same greedy ids in fp32, sooner; the first call of a shape takes longer. "off" is transformers' loop.
                By default what was asked for when the model was loaded. Greedy and sampled answers only: if kwargs ask
                for more, transformers' loop runs, and a warning says so. One call at a time: no threads.
            modalities: what each of `images` is, as callers of LLaVA-NeXT say it: "image", for all of them.
            **kwargs: as `transformers.GenerationMixin.generate`. `attention_mask`, (B, T): if absent, runs of the pad
                token at either end of a row of a batch are padding.

        Returns:
            New token ids only, (B, new), or what `return_dict_in_generate` asks for.

        Raises:
            ValueError: no ids, the numbers of images and of <image> tokens differ, or another modality; as
                `finite.NotFinite`, the model's numbers are NaN or infinite.
        """
        require_images_only(modalities)
        kwargs = with_one_cache(kwargs)
        input_ids = kwargs.pop("input_ids", inputs)
        kwargs.pop("position_ids", None)  # follow from the mask
        if "max_new_tokens" in kwargs:
            kwargs.setdefault("max_length", None)  # old generation configs set it, and transformers warns of both
        require_ids(input_ids, kwargs)
        fast = self.fast if fast is None else fast
        if self.is_prepared_by_others():
            if image_features is not None:
                raise ValueError(NOT_OURS)
            if images is not None:
                return self._generate_as_upstream(input_ids, images, image_sizes, fast, kwargs)
        mask = kwargs.pop("attention_mask", None)
        if mask is None:
            mask = infer_mask(input_ids, self._pad_token_id(kwargs))
        fast_path = self._fast_path(fast, kwargs)
        device, input_ids = input_ids.device, input_ids.cpu()  # now: behind the tower's work a copy would wait for it
        if image_features is None:
            self.require_images(input_ids, images)
            encode = fast_path[0].image_features if fast_path else self.image_features
            image_features = [] if images is None else encode(images, image_sizes)
        side = "right" if fast_path else "left"
        spliced = self.splice_prompts(input_ids, mask.cpu(), list(image_features), device=device, padding_side=side)
        try:
            if fast_path:
                engine, config = fast_path
                return engine.generate(spliced.embeds, spliced.lengths, config, kwargs.get("streamer"))
            return watched(super().generate, inputs_embeds=spliced.embeds, attention_mask=spliced.mask, **kwargs)
        except NotFinite:
            rows = (embeds[mask.bool()] for embeds, mask in zip(spliced.embeds, spliced.mask, strict=True))
            pixels = [] if images is None else [image for image in images if isinstance(image, Tensor)]
            raise explain(self, rows, pixels) from None

    def engine(self, mode: str | None = None) -> Engine:
        """Return the fast path of this model, made at the first call.

        Args:
            mode: as `fast` of `generate`; by default what the model was loaded with, or else "static".

        Raises:
            ValueError: an unknown mode, an attention kernel other than SDPA, or a model whose inputs others prepare.
        """
        if self.is_prepared_by_others():
            raise ValueError(NOT_OURS)
        if mode is None:
            mode = self.fast if self.fast in MODES else "static"
        engines = ENGINES.setdefault(self, {})
        if mode not in engines:
            engines[mode] = Engine(self, mode)
        engines[mode].refresh()
        return engines[mode]

    def _generate_as_upstream(self, input_ids: Tensor, images: Images, image_sizes, fast: str | None, kwargs: dict):
        """Answer prompts by another program's `prepare_inputs_labels_for_multimodal` and transformers' loop."""
        _, positions, mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
            input_ids, None, kwargs.pop("attention_mask", None), None, None, images, image_sizes=image_sizes
        )
        if fast not in (None, OFF):
            warn_once(logger, "%s transformers' loop runs, not fast=%r.", NOT_OURS, fast)
        own = {"position_ids": positions, "attention_mask": mask}
        own = {name: value for name, value in own.items() if value is not None}
        return watched(super().generate, inputs_embeds=embeds, **own, **kwargs)

    def _pad_token_id(self, kwargs: dict) -> int | None:
        """Return the id that fills up the rows of a batch of prompts; None if none is known."""
        pad = kwargs.get("pad_token_id", self.generation_config.pad_token_id)
        return self.config.pad_token_id if pad is None else pad

    def _fast_path(self, fast: str | None, kwargs: dict) -> tuple[Engine, GenerationConfig] | None:
        """Return the engine and its settings, if it was asked for and can do what else `generate` was asked for."""
        if fast in (None, OFF):
            return None
        config, beyond = configure(self, kwargs)
        if changes_forward(self, OUR_FORWARD) or changes_forward(self.model):
            beyond = beyond | {"another program's forward or hooks of the language model"}
        if beyond:
            warn_once(logger, "fast=%r cannot do %s: transformers' loop runs.", fast, ", ".join(sorted(beyond)))
            return None
        return self.engine(fast), config


def require_ids(input_ids: Tensor | None, kwargs: dict) -> None:
    """Refuse prompts that are no ids.

    Raises:
        ValueError: embeddings are given, or nothing, or ids of another shape than (B, T).
    """
    if "inputs_embeds" in kwargs:
        raise ValueError("generate() makes inputs_embeds from input_ids and images; pass those.")
    if input_ids is None:
        raise ValueError("generate() got no input_ids: pass the ids of the prompts, (prompts, ids).")
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (prompts, ids).")


def watched(generate: Callable, **kwargs):
    """Call transformers' `generate`, and check its logits.

    Raises:
        NotFinite: logits are NaN or infinite.
    """
    watch = FiniteLogits()
    kwargs["logits_processor"] = LogitsProcessorList([watch, *(kwargs.get("logits_processor") or [])])
    output = generate(**kwargs)
    watch.require()
    return output
