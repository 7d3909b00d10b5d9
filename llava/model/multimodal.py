"""A language model that takes `images` next to `input_ids`: embeds them, and computes logits or the loss.

Shapes: B rows, T ids in a row, S slots in the longest spliced row, C channels of the LLM.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.anyres import VisionFeatures
from llava.model.loss import next_token_loss
from llava.model.splice import Spliced, splice
from llava.model.vision import Images, ImageSizes, VisionMixin
from visionzip_patch.compat import CACHE, cache_in
from visionzip_patch.hooks import is_replaced
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)


class MultimodalMixin(VisionMixin):
    """The part of a LLaVA model that embeds prompts around the tokens of their images, and runs the language model."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        images: Images | None = None,
        image_sizes: ImageSizes | None = None,
        vision_tokens: Sequence[Tensor] | None = None,
        vision_positions: Sequence[Tensor] | None = None,
        loss_only: bool = False,
        logits_to_keep: int | Tensor = 0,
        modalities: Sequence[str] | None = None,
        cache=None,
        **kwargs,
    ):
        """Compute logits and loss as the language model does, with `images` next to `input_ids`.

        Args:
            input_ids: (B, T), one IMAGE_TOKEN_INDEX per image.
            attention_mask: (B, T), 0 where padded; None if nothing is.
            position_ids: (B, T), or None.
            past_key_values: keys and values of earlier tokens.
            inputs_embeds: (B, S, C), in place of `input_ids` and `images`.
            labels: (B, T), IGNORE_INDEX where nothing is trained; with `inputs_embeds` (B, S).
            use_cache: return keys and values too.
            images: as in `prepare_inputs_labels_for_multimodal`.
            image_sizes: as in `prepare_inputs_labels_for_multimodal`.
            vision_tokens: in place of `images`, what the tower made of each, (crops, N, channels of the tower), before
                the projector. The tower is not run.
            vision_positions: (crops, N) for each of `vision_tokens`, if there are positions.
            loss_only: return the loss alone, and compute logits only where there are labels.
            logits_to_keep: compute those of so many last tokens, 0 for all. transformers' `generate` passes 1 to a
                model that has this argument.
            modalities: as in `generate`.
            cache: `past_key_values`, by its name from transformers 5.24 on.
            **kwargs: passed on to the language model; `num_items_in_batch` divides the summed loss, where the batch is
                one of several.

        Returns:
            transformers' output of the language model: logits (B, S, V), and what else was asked for.

        Raises:
            ValueError: both `inputs_embeds` and `images`, or as `prepare_inputs_labels_for_multimodal`.
        """
        require_images_only(modalities)
        if inputs_embeds is not None and images is not None:
            raise ValueError("inputs_embeds stand in the place of input_ids and images: give one or the other.")
        past_key_values = cache_in({"cache": cache, "past_key_values": past_key_values})
        if vision_tokens is not None:
            positions = vision_positions or [None] * len(vision_tokens)
            side = self.require_vision_tower().num_patches_per_side
            images = [VisionFeatures(t, p, side) for t, p in zip(vision_tokens, positions, strict=True)]
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("forward() got neither input_ids nor inputs_embeds: pass one of them.")
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes
                )
            )
        if loss_only:
            if labels is None:
                raise ValueError("loss_only=True needs labels: there is nothing to compute a loss of.")
            states = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                use_cache=False,
            )
            hidden, count = states.last_hidden_state, kwargs.get("num_items_in_batch")
            return CausalLMOutputWithPast(loss=next_token_loss(self.lm_head, hidden, labels, count))
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{CACHE: past_key_values},
            **kwargs,
        )

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values,
        labels: Tensor | None,
        images: Images | None,
        image_sizes: ImageSizes | None = None,
    ):
        """Turn ids and images into embeddings, with upstream's signature and 6-tuple.

        Args:
            input_ids: (B, T), one IMAGE_TOKEN_INDEX per image.
            position_ids: (B, T), or None; only whether they are given matters, as images move all that follows.
            attention_mask: (B, T), 0 where padded; None if nothing is.
            past_key_values: keys and values of earlier tokens, or None.
            labels: (B, T), for training, or None.
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
                self.require_images(input_ids, images)
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        side = getattr(self.config, "tokenizer_padding_side", "right")
        features = self.image_features(images, image_sizes)
        device = input_ids.device
        spliced = self.splice_prompts(input_ids, attention_mask, features, labels, device=device, padding_side=side)
        mask = spliced.mask if attention_mask is None else spliced.mask.to(attention_mask.dtype)
        if attention_mask is None and not spliced.is_padded:
            mask = None
        positions = None if position_ids is None else spliced.positions
        return None, positions, mask, past_key_values, spliced.embeds, spliced.labels

    def is_prepared_by_others(self) -> bool:
        """Check whether a subclass or another program has its own `prepare_inputs_labels_for_multimodal`."""
        return is_replaced(self, "prepare_inputs_labels_for_multimodal", OUR_PREPARATION)

    def require_images(self, input_ids: Tensor, images: Images | None) -> None:
        """Refuse prompts that ask for images where there are none, and warn of images that no prompt asks for.

        Raises:
            ValueError: a prompt holds <image> but no images were given, or the model has no vision tower.
        """
        if images is not None:
            self.require_vision_tower()
        found = int((input_ids == IMAGE_TOKEN_INDEX).sum())
        if found and images is None:
            raise ValueError(f"The prompts hold {found} <image> tokens but no images were given.")
        if images is not None and len(images) and not found:
            warn_once(
                logger,
                "%d images were given, but no prompt holds <image>, so they are not seen: write <image> where they "
                "belong, and tokenize with tokenizer_image_token.",
                len(images),
                about="images",
                everywhere=True,
            )

    def splice_prompts(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        features: list[Tensor],
        labels: Tensor | None = None,
        *,
        device: torch.device,
        padding_side: str,
    ) -> Spliced:
        """Embed prompts around the tokens of their images, cut to `config.tokenizer_model_max_length`.

        Args:
            input_ids: (B, T), one IMAGE_TOKEN_INDEX per image.
            attention_mask: (B, T), 0 where padded; None if nothing is.
            features: per image (n_i, C), from `image_features`; may count a dummy for each row without an image, or
                be the one dummy of a batch without images.
            labels: (B, T), for training.
            device: of the embeddings, and of the result.
            padding_side: "right" or "left", of the result.

        Raises:
            ValueError: the numbers of images and of <image> tokens differ.
        """
        ids = input_ids.cpu()
        keep = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
        features, dummies = part_dummies(features, ((ids == IMAGE_TOKEN_INDEX) & keep).sum(1).tolist())
        spliced = splice(
            self.get_model().embed_tokens,
            ids,
            keep,
            features,
            labels,
            device=device,
            padding_side=padding_side,
            max_length=getattr(self.config, "tokenizer_model_max_length", None),
        )
        if spliced.cut:
            limit = self.config.tokenizer_model_max_length
            warn_once(
                logger,
                "%d tokens of a prompt were cut off: tokenizer_model_max_length is %d.",
                spliced.cut,
                limit,
                about=limit,
                everywhere=True,
            )
        for dummy in dummies:  # adds nothing, but keeps tower and projector in the graph of a text-only batch
            spliced = spliced._replace(embeds=spliced.embeds + dummy[:0].sum())
        return spliced


OUR_FORWARD = MultimodalMixin.forward
OUR_PREPARATION = MultimodalMixin.prepare_inputs_labels_for_multimodal


def require_images_only(modalities: Sequence[str] | None) -> None:
    """Refuse media other than images, which would be taken for images.

    Args:
        modalities: what each of `images` is, as callers of LLaVA-NeXT say it; None: all are images.

    Raises:
        ValueError: one of them is not "image".
    """
    modalities = list(modalities or ())
    if other := sorted(set(modalities) - {"image"}):
        raise ValueError(f"modalities={modalities}: {', '.join(other)} cannot be given; only image can.")


def part_dummies(features: list[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Part the features of images from those of dummies, which stand for rows without an image.

    Args:
        features: per image or dummy (n_i, C), in the order of the rows.
        counts: how many <image> each row holds.

    Returns:
        Features of the images, and of the dummies; all of them as images where they cannot count dummies.
    """
    if len(features) == 1 and not any(counts):
        return [], features
    if len(features) == sum(counts) or len(features) != sum(max(1, count) for count in counts):
        return features, []
    shown = [is_shown for count in counts for is_shown in ([True] * count or [False])]
    images = [f for f, is_shown in zip(features, shown, strict=True) if is_shown]
    return images, [f for f, is_shown in zip(features, shown, strict=True) if not is_shown]


def infer_mask(input_ids: Tensor, pad_token_id: int | None) -> Tensor:
    """Find the padding of a batch, runs of the pad token at either end of a row: (B, T) -> (B, T) bool, False there."""
    if pad_token_id is None or len(input_ids) == 1:
        return torch.ones_like(input_ids, dtype=torch.bool)
    pad = (input_ids == pad_token_id).long()
    leading, trailing = pad.cumprod(1), pad.flip(1).cumprod(1).flip(1)
    return (leading | trailing) == 0
