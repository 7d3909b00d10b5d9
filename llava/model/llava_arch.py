"""What turns a language model into LLaVA: a vision tower, a projector, and the splice of their tokens into the prompt.

Shapes: B rows, T ids in a row, S slots in the longest spliced row, N tokens of a crop, C channels of the LLM.
"""

import logging
import os
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from llava.model.anyres import VisionFeatures, get_anyres_image_grid_shape, is_anyres, most_tiles, pack
from llava.model.anyres import unpad_image as unpad_image  # upstream has it here
from llava.model.checkpoint import HUB_ARGUMENTS, Checkpoint, load_tensors, resolve_beside
from llava.model.engine import Engine, configure
from llava.model.fields import check_fields, owns_tower, settle_tower
from llava.model.finite import FiniteLogits, NotFinite, explain
from llava.model.graphs import MODES, OFF
from llava.model.loss import next_token_loss
from llava.model.multimodal_encoder.builder import build_vision_tower, vision_config
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.save import all_or_nothing, upstream_keys, without_idle_sampling
from llava.model.splice import Spliced, splice
from llava.model.vocabulary import add_image_tokens
from llava.model.weights import load_projector
from visionzip_patch.compat import CACHE, cache_in, with_one_cache
from visionzip_patch.hooks import changes_forward, is_hooked, is_replaced, warn_of_idle_encoder
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)

ENGINES: WeakKeyDictionary[nn.Module, dict[str, Engine]] = WeakKeyDictionary()  # not in the models: copies share none


class LlavaMetaModel:
    """Mixed into a decoder: owns `vision_tower`, `mm_projector` and, for anyres, `image_newline`."""

    def __init__(self, config):
        super().__init__(config)
        if getattr(config, "mm_vision_tower", None) is None:
            return
        config.mm_vision_tower = resolve_beside(config.name_or_path, config.mm_vision_tower)
        self.vision_tower = build_vision_tower(config, delay_load=True)
        if owns_tower(config):
            self.vision_tower.build()
        self._make_projector()

    def get_vision_tower(self):
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower  # FSDP hides frozen modules in a list

    def initialize_vision_modules(self, model_args, fsdp=None) -> None:
        """Give a language model a loaded tower and a projector, as upstream's training code asks for them.

        What the model has already stays; the projector learns. The config says afterwards what there is.

        Args:
            model_args: `vision_tower`, `mm_projector_type`, `pretrain_mm_mlp_adapter` (an mm_projector.bin to begin
                with, or None) and what else `vision_config` reads.
            fsdp: what `TrainingArguments.fsdp` holds; if anything, the tower is hidden from FSDP.

        Raises:
            ValueError: no such tower, or a file that does not hold this projector.
        """
        for name, value in vision_config(model_args).items():
            setattr(self.config, name, value)
        if self.get_vision_tower() is None:
            tower = build_vision_tower(self.config, delay_load=True)
            self.vision_tower = [tower] if fsdp else tower
        self.get_vision_tower().load_model()
        if getattr(self, "mm_projector", None) is None:
            self._make_projector()
        self.mm_projector.requires_grad_(True)
        if file := getattr(model_args, "pretrain_mm_mlp_adapter", None):
            load_projector(self, file)

    def _make_projector(self) -> None:
        config = self.config
        self.mm_projector = build_vision_projector(config)
        if merge_type(config) == "spatial_unpad":
            self.image_newline = nn.Parameter(torch.randn(config.hidden_size) * config.hidden_size**-0.5)


class LlavaMetaForCausalLM:
    """Mixed into a causal language model: takes `images` beside `input_ids`.

    Attributes:
        fast: which way `generate` goes if its caller does not say; None is transformers' loop.
    """

    fast: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a LLaVA checkpoint as transformers does, with config.json checked, and the tower that was trained.

        `llava.model.builder.load_pretrained_model` brings tokenizer, image processor and mm_vision_tower's weights too.

        Raises:
            ValueError: config.json asks for something that is not computed here; it is named.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config = (loaded[0] if isinstance(loaded, tuple) else loaded).config  # a tuple with output_loading_info
        if pretrained_model_name_or_path is None or owns_tower(config):
            check_fields(config)
            return loaded
        place = os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or "").rstrip(os.sep)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        settle_tower(config, Checkpoint(place, "full", {}, hub))
        if owns_tower(config):  # which transformers, not knowing, has left out
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **{**kwargs, "config": config})
        return loaded

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
        vision_tokens: Sequence[Tensor] | None = None,
        vision_positions: Sequence[Tensor] | None = None,
        loss_only: bool = False,
        logits_to_keep: int | Tensor = 0,
        modalities: Sequence[str] | None = None,
        cache=None,
        **kwargs,
    ):
        """As the language model's, with `images` as in `prepare_inputs_labels_for_multimodal`.

        Args:
            vision_tokens, vision_positions: in place of `images`, what the tower made of each: (crops, N, C) before
                the projector, and (crops, N) if there are positions. The tower is not run.
            loss_only: return the loss alone, and compute logits for nothing but labelled tokens.
            logits_to_keep: compute those of so many last tokens, 0 for all. `generate` of transformers passes 1 to whom
                it finds this argument.
            cache: `past_key_values`, by its name from transformers 5.24 on.
            num_items_in_batch: divides the summed loss, where the batch is one of several.
            modalities: as in `generate`.
        """
        require_images_only(modalities)
        if inputs_embeds is not None and images is not None:
            raise ValueError("inputs_embeds stand in the place of input_ids and images: give one or the other.")
        past_key_values = cache_in({"cache": cache, "past_key_values": past_key_values})
        if vision_tokens is not None:
            positions = vision_positions or [None] * len(vision_tokens)
            side = self.get_vision_tower().num_patches_per_side
            images = [VisionFeatures(t, p, side) for t, p in zip(vision_tokens, positions, strict=True)]
        if inputs_embeds is None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes
                )
            )
        if loss_only:
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

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Tensor | Sequence[Tensor] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        image_features: Sequence[Tensor] | None = None,
        fast: str | None = None,
        modalities: Sequence[str] | None = None,
        **kwargs,
    ):
        """Answer prompts, one or a batch; a batch gives what its prompts give one by one.

        Args:
            inputs: (B, T) ids, also as `input_ids`; one IMAGE_TOKEN_INDEX per image; padding on either side.
            images, image_sizes: as in `prepare_inputs_labels_for_multimodal`.
            image_features: in their place, what `image_features` returned for them: an image that many questions are
                asked about goes through the tower once.
            fast: "static", "graphs" (CUDA graphs) or "compile" (by Inductor as well) instead of transformers' loop: the
                same greedy ids in fp32, sooner; the first call of a shape takes longer. "off" is transformers' loop.
                By default what the loader was told. Greedy and sampled answers only: if kwargs ask for more,
                transformers' loop runs, and a warning says so. One call at a time: no threads.
            modalities: what each of `images` is, as callers of LLaVA-NeXT say it: "image", for all of them.
            attention_mask: (B, T); if absent, runs of the pad token at either end of a row of a batch are padding.
            kwargs: as `transformers.GenerationMixin.generate`.

        Where a subclass or another program has its own `prepare_inputs_labels_for_multimodal`, images go through that,
        and transformers' loop runs, as in upstream.

        Returns:
            New token ids only, (B, new), or what `return_dict_in_generate` asks for.

        Raises:
            ValueError: the numbers of images and of <image> tokens differ, or another modality; as `finite.NotFinite`,
                the model's numbers are NaN or infinite.
        """
        require_images_only(modalities)
        kwargs = with_one_cache(kwargs)
        input_ids = kwargs.pop("input_ids", inputs)
        attention_mask = kwargs.pop("attention_mask", None)
        kwargs.pop("position_ids", None)  # follow from the mask
        if "max_new_tokens" in kwargs:
            kwargs.setdefault("max_length", None)  # old generation configs set it, and transformers warns of both
        if "inputs_embeds" in kwargs:
            raise ValueError("generate() makes inputs_embeds from input_ids and images; pass those.")
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (prompts, ids).")
        if self.is_prepared_by_others():
            if image_features is not None:
                raise ValueError(NOT_OURS)
            if images is not None:
                _, positions, attention_mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
                    input_ids, None, attention_mask, None, None, images, image_sizes=image_sizes
                )
                if (fast or self.fast) not in (None, OFF):
                    warn_once(logger, "%s transformers' loop runs, not fast=%r.", NOT_OURS, fast or self.fast)
                own = {"position_ids": positions, "attention_mask": attention_mask}
                own = {name: value for name, value in own.items() if value is not None}
                return self._watched(super().generate, inputs_embeds=embeds, **own, **kwargs)
        if attention_mask is None:
            pad = kwargs.get("pad_token_id", self.generation_config.pad_token_id)
            attention_mask = infer_mask(input_ids, self.config.pad_token_id if pad is None else pad)
        engine, config = self._engine_for(self.fast if fast is None else fast, kwargs)
        device, input_ids = input_ids.device, input_ids.cpu()  # now: behind the tower's work a copy would wait for it
        if image_features is None:
            self._require_images(input_ids, images)
            encode = engine.image_features if engine else self.image_features
            image_features = [] if images is None else encode(images, image_sizes)
        side = "right" if engine else "left"
        spliced = self._splice(input_ids, attention_mask.cpu(), image_features, device=device, padding_side=side)
        try:
            if engine:
                return engine.generate(spliced.embeds, spliced.lengths, config, kwargs.get("streamer"))
            return self._watched(super().generate, inputs_embeds=spliced.embeds, attention_mask=spliced.mask, **kwargs)
        except NotFinite:
            rows = (embeds[mask.bool()] for embeds, mask in zip(spliced.embeds, spliced.mask, strict=True))
            pixels = [] if images is None else [image for image in images if isinstance(image, Tensor)]
            raise explain(self, rows, pixels) from None

    def engine(self, mode: str | None = None) -> Engine:
        """The fast path of this model, made at the first call; `mode` as `fast` of `generate`, "static" if nobody says.

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

    def encode_images(self, images: Tensor) -> Tensor:
        """Projected tokens of crops: (B, 3, S, S) -> (B, N, C)."""
        return self._project(self.get_vision_tower()(images))

    def image_features(
        self,
        images: Tensor | Sequence[Tensor] | Sequence[VisionFeatures],
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor]:
        """Tokens of each image as the language model gets them: a list of (n_i, C).

        A 4-D tensor is one crop per image. In a list, or a 5-D tensor, an image is (3, S, S) or (crops, 3, S, S) and is
        packed as `config.mm_patch_merge_type` says. What the tower made of an image may stand in its place.
        """
        if len(images) == 0:
            return []
        if isinstance(images, Tensor) and images.ndim == 4:
            self._warn_of_idle_changes(in_list=False)
            return list(self.encode_images(images))
        if image_sizes is None:
            image_sizes = [None] * len(images)
        if len(image_sizes) != len(images):
            raise ValueError(f"{len(images)} images but {len(image_sizes)} image_sizes were given.")
        if all(isinstance(image, VisionFeatures) for image in images):
            features = images
        elif all(isinstance(image, Tensor) for image in images):
            crops = [image if image.ndim == 4 else image[None] for image in images]
            self._warn_of_idle_changes(in_list=True)
            if self.has_changed_encoding() and self.get_vision_tower().reducer is None:
                encoded = zip(self._encode_as_upstream(crops), image_sizes, strict=True)
                return [self._pack(features, size) for features, size in encoded]
            features = self.get_vision_tower().features_of(crops)
        else:
            raise ValueError(f"images holds {type(images[0]).__name__}: make tensors of them with process_images.")
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
        features = self.image_features(images, image_sizes)
        device = input_ids.device
        spliced = self._splice(input_ids, attention_mask, features, labels, device=device, padding_side=side)
        mask = spliced.mask if attention_mask is None else spliced.mask.to(attention_mask.dtype)
        if attention_mask is None and not spliced.is_padded:
            mask = None
        positions = None if position_ids is None else spliced.positions
        return None, positions, mask, past_key_values, spliced.embeds, spliced.labels

    def initialize_vision_tokenizer(self, model_args, tokenizer) -> None:
        """Add the image tokens that `model_args` asks for to `tokenizer`, with rows for them in both embeddings.

        Args:
            model_args: `mm_use_im_patch_token` and `mm_use_im_start_end`, which the config keeps. Where
                `tune_mm_mlp_adapter` trains the projector alone, the input embeddings learn too if there are <im_start>
                and <im_end>, whose rows then may come from `pretrain_mm_mlp_adapter`, as upstream has it.

        Raises:
            ValueError: the embeddings in that file are of another size.
        """
        self.config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
        self.config.mm_use_im_start_end = has_marks = model_args.mm_use_im_start_end
        add_image_tokens(self, tokenizer)
        if not (has_marks or model_args.mm_use_im_patch_token):
            return
        if getattr(model_args, "tune_mm_mlp_adapter", False):
            self.get_input_embeddings().requires_grad_(has_marks)
            self.get_output_embeddings().requires_grad_(False)
        file = getattr(model_args, "pretrain_mm_mlp_adapter", None)
        rows = (
            [value for key, value in load_tensors(file).items() if "embed_tokens" in key] if has_marks and file else ()
        )
        for trained in rows:
            weight = self.get_input_embeddings().weight
            if trained.shape[1:] != weight.shape[1:] or len(trained) not in (2, len(weight)):
                raise ValueError(
                    f"embed_tokens in {file} has shape {tuple(trained.shape)}; expected {tuple(weight.shape)}, or 2 "
                    f"rows of it for <im_start> and <im_end>."
                )
            marks = tokenizer.convert_tokens_to_ids([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN])
            weight.data[marks] = (trained if len(trained) == 2 else trained[marks]).to(weight)

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
        with all_or_nothing(save_directory) as folder, without_idle_sampling(self):
            super().save_pretrained(
                folder, is_main_process=is_main_process, state_dict=state, save_original_format=False, **kwargs
            )
            if tower is not None and is_main_process:
                tower.image_processor.save_pretrained(folder)

    def _engine_for(self, fast: str | None, kwargs: dict) -> tuple[Engine | None, GenerationConfig | None]:
        """The engine and its settings, if it was asked for and can do what else `generate` was asked for."""
        if fast in (None, OFF):
            return None, None
        config, beyond = configure(self, kwargs)
        if changes_forward(self, OUR_FORWARD) or changes_forward(self.model):
            beyond = beyond | {"another program's forward or hooks of the language model"}
        if beyond:
            warn_once(logger, "fast=%r cannot do %s: transformers' loop runs.", fast, ", ".join(sorted(beyond)))
            return None, None
        return self.engine(fast), config

    @staticmethod
    def _watched(generate: Callable, **kwargs):
        """Call transformers' loop. Raises NotFinite if logits are."""
        watch = FiniteLogits()
        kwargs["logits_processor"] = LogitsProcessorList([watch, *(kwargs.get("logits_processor") or [])])
        output = generate(**kwargs)
        watch.require()
        return output

    def has_changed_encoding(self) -> bool:
        """Tell whether another program has changed what encodes images: `encode_images`, or a call of the tower."""
        tower = self.get_vision_tower()
        return tower is not None and (
            is_replaced(self, "encode_images", OUR_ENCODING)
            or is_replaced(tower, "forward", OUR_TOWER)
            or is_hooked(tower)
        )

    def _warn_of_idle_changes(self, *, in_list: bool) -> None:
        """Warn, once, if another program has changed what encodes images, and it takes no effect on these."""
        tower = self.get_vision_tower()
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

    def _encode_as_upstream(self, images: Sequence[Tensor]) -> list[VisionFeatures]:
        """Encode and project images of (crops, 3, S, S) each by one call of `encode_images`."""
        tower = self.get_vision_tower()
        tokens = self.encode_images(torch.cat([image.to(tower.device) for image in images]))
        return [VisionFeatures(t, None, tower.num_patches_per_side) for t in tokens.split(list(map(len, images)))]

    def is_prepared_by_others(self) -> bool:
        """Tell whether a subclass or another program has its own `prepare_inputs_labels_for_multimodal`."""
        return is_replaced(self, "prepare_inputs_labels_for_multimodal", OUR_PREPARATION)

    def _project(self, tokens: Tensor) -> Tensor:
        embeddings = self.get_model().embed_tokens.weight  # says where to: parts that are offloaded have no device
        like = next(self.get_model().mm_projector.parameters(), embeddings)
        return self.get_model().mm_projector(tokens.to(device=embeddings.device, dtype=like.dtype))

    def _pack(self, features, image_size) -> Tensor:
        config = self.config
        grid = None
        if is_anyres(config) and image_size is not None and len(features.tokens) > 1:
            crop = self.get_vision_tower().config.image_size
            grid = get_anyres_image_grid_shape(image_size, config.image_grid_pinpoints, crop)
        return pack(
            features,
            merge_type=merge_type(config),
            grid=grid,
            image_size=image_size,
            newline=getattr(self.get_model(), "image_newline", None),
            max_tiles=most_tiles(config),
        )

    def _splice(self, input_ids, attention_mask, features, labels=None, *, device, padding_side) -> Spliced:
        """Embed the prompts around the features of their images.

        `features` may count a dummy for each row without an image, or be the one dummy of a batch without images.
        """
        ids = input_ids.cpu()
        keep = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
        counts = ((ids == IMAGE_TOKEN_INDEX) & keep).sum(1).tolist()
        dummies = []
        if len(features) == 1 and not any(counts):
            features, dummies = [], features
        elif len(features) != sum(counts) and len(features) == sum(max(1, count) for count in counts):
            shown = [is_shown for count in counts for is_shown in ([True] * count or [False])]
            dummies = [f for f, is_shown in zip(features, shown, strict=True) if not is_shown]
            features = [f for f, is_shown in zip(features, shown, strict=True) if is_shown]
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

    def _require_images(self, input_ids: Tensor, images) -> None:
        if images is not None and self.get_vision_tower() is None:
            raise ValueError("Images were given, but this model has no vision tower.")
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


OUR_FORWARD = LlavaMetaForCausalLM.forward
OUR_TOWER = VisionTower.forward
OUR_FEATURE_SELECT = VisionTower.feature_select
OUR_ENCODING = LlavaMetaForCausalLM.encode_images
OUR_PREPARATION = LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal
NOT_OURS = (
    "This model's prepare_inputs_labels_for_multimodal is another program's: only generate(input_ids, images=..., "
    "image_sizes=...) and forward go through it, not what encodes images by itself."
)


def require_images_only(modalities: Sequence[str] | None) -> None:
    """ValueError for anything but images: what else there is would be taken for one."""
    if other := sorted(set(modalities or ()) - {"image"}):
        raise ValueError(f"modalities={list(modalities)}: {', '.join(other)} cannot be given; only image can.")


def merge_type(config) -> str:
    return getattr(config, "mm_patch_merge_type", None) or "flat"


def infer_mask(input_ids: Tensor, pad_token_id: int | None) -> Tensor:
    """Mask of a padded batch, (B, T) bool: runs of the pad token at either end of a row are padding."""
    if pad_token_id is None or len(input_ids) == 1:
        return torch.ones_like(input_ids, dtype=torch.bool)
    pad = (input_ids == pad_token_id).long()
    leading, trailing = pad.cumprod(1), pad.flip(1).cumprod(1).flip(1)
    return (leading | trailing) == 0
