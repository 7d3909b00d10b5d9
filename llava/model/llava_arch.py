"""What turns a language model into LLaVA: a vision tower, a projector, and the splice of their tokens into the prompt.

LlavaMetaModel is mixed into a decoder and owns the parts. LlavaMetaForCausalLM is mixed into a causal language model:
`vision` encodes images, `multimodal` embeds prompts around them, `generation` answers, `pretrained` loads and saves.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN
from llava.model.anyres import merge_type
from llava.model.anyres import unpad_image as unpad_image  # upstream has it here
from llava.model.checkpoint import resolve_folder
from llava.model.fields import owns_tower
from llava.model.generation import AnsweringMixin
from llava.model.multimodal_encoder.builder import build_vision_tower, vision_config
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.pretrained import PretrainedMixin
from llava.model.typed import Decoder
from llava.model.vocabulary import add_image_tokens, embedding_tables
from llava.model.weight_files import load_tensors
from llava.model.weights import load_projector


class LlavaMetaModel(Decoder):
    """Mixed into a decoder, makes it own `vision_tower`, `mm_projector` and, for anyres, `image_newline`, (C,)."""

    vision_tower: VisionTower | list[VisionTower]

    def __init__(self, config):
        super().__init__(config)
        if getattr(config, "mm_vision_tower", None) is None:
            return
        config.mm_vision_tower = resolve_folder(config.name_or_path, config.mm_vision_tower)
        self.vision_tower = build_vision_tower(config, delay_load=True)
        if owns_tower(config):
            self.vision_tower.build()
        self._make_projector()

    def get_vision_tower(self) -> VisionTower | None:
        """Return the vision tower; None if the model sees no images."""
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower  # FSDP hides frozen modules in a list

    def initialize_vision_modules(self, model_args, fsdp=None) -> None:
        """Give a language model a loaded tower and a projector, as upstream's training code asks for them.

        What the model has already stays; the projector is trained. The config says afterwards what there is.

        Args:
            model_args: `vision_tower`, `mm_projector_type`, `pretrain_mm_mlp_adapter` (an mm_projector.bin to begin
                with, or None) and what else `vision_config` reads.
            fsdp: what `TrainingArguments.fsdp` holds; if anything, the tower is hidden from FSDP.

        Raises:
            ValueError: no such tower, or a file that does not hold this projector.
        """
        for name, value in vision_config(model_args).items():
            setattr(self.config, name, value)
        if (tower := self.get_vision_tower()) is None:
            tower = build_vision_tower(self.config, delay_load=True)
            self.vision_tower = [tower] if fsdp else tower
        tower.load_model()
        if getattr(self, "mm_projector", None) is None:
            self._make_projector()
        self.mm_projector.requires_grad_(True)
        if file := getattr(model_args, "pretrain_mm_mlp_adapter", None):
            load_projector(self, file)

    def _make_projector(self) -> None:
        """Make a new projector, and with spatial_unpad a new end of a row, as the config says."""
        config = self.config
        self.mm_projector = build_vision_projector(config)
        if merge_type(config) == "spatial_unpad":
            self.image_newline = nn.Parameter(torch.randn(config.hidden_size) * config.hidden_size**-0.5)


class LlavaMetaForCausalLM(PretrainedMixin, AnsweringMixin):
    """Mixed into a causal language model, makes it take `images` next to `input_ids`.

    Attributes:
        decoder_class: the class of `model`, a decoder with LlavaMetaModel mixed in.
    """

    decoder_class: type[LlavaMetaModel]

    def __init__(self, config):
        PreTrainedModel.__init__(self, config)  # not the causal language model's own, which would make a plain decoder
        self.model = self.decoder_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def initialize_vision_tokenizer(self, model_args, tokenizer) -> None:
        """Add the image tokens that `model_args` asks for to `tokenizer`, with rows for them in both embeddings.

        Args:
            tokenizer: the model's, to which the tokens are added.
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
        inputs, outputs = embedding_tables(self)
        if getattr(model_args, "tune_mm_mlp_adapter", False):
            inputs.requires_grad_(has_marks)
            outputs.requires_grad_(False)
        file = getattr(model_args, "pretrain_mm_mlp_adapter", None)
        rows = (
            [value for key, value in load_tensors(file).items() if "embed_tokens" in key] if has_marks and file else ()
        )
        for trained in rows:
            weight = inputs.weight
            if trained.shape[1:] != weight.shape[1:] or len(trained) not in (2, len(weight)):
                raise ValueError(
                    f"embed_tokens in {file} has shape {tuple(trained.shape)}; expected {tuple(weight.shape)}, or 2 "
                    f"rows of it for <im_start> and <im_end>."
                )
            marks = tokenizer.convert_tokens_to_ids([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN])
            weight.data[marks] = (trained if len(trained) == 2 else trained[marks]).to(weight)
