"""The classes that LLaVA's mixins are mixed into, declared for the type checker.

`nn.Module.__getattr__` returns `Tensor | Module` for any name, so a checker knows no part of a model by itself. These
classes name the parts that are used here. Nothing depends on them when the program runs: there the mixins are mixed
into transformers' own classes.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel

    from llava.model.multimodal_encoder.tower import VisionTower

    class LlavaFields(PretrainedConfig):
        """A config with LLaVA's fields; one that a checkpoint may lack is read with `getattr`."""

        hidden_size: int
        vocab_size: int
        num_attention_heads: int
        num_key_value_heads: int
        pad_token_id: int | None
        tie_word_embeddings: bool
        mm_vision_tower: str
        mm_vision_tower_config: dict
        mm_use_im_patch_token: bool
        mm_use_im_start_end: bool
        image_grid_pinpoints: str | list[tuple[int, int]]
        tokenizer_model_max_length: int
        unfreeze_mm_vision_tower: bool

    class Decoder(PreTrainedModel):
        """A language model without its head: LlamaModel, MistralModel or Qwen2Model, with LLaVA's parts."""

        config: LlavaFields
        embed_tokens: nn.Embedding
        layers: nn.ModuleList
        norm: nn.Module
        rotary_emb: nn.Module
        mm_projector: nn.Module

        def get_vision_tower(self) -> VisionTower | None:
            """Return the vision tower; None if the model sees no images."""

    class CausalLM(PreTrainedModel, GenerationMixin):
        """A language model with its head: LlamaForCausalLM, MistralForCausalLM or Qwen2ForCausalLM."""

        config: LlavaFields
        generation_config: GenerationConfig
        model: Decoder
        lm_head: nn.Linear
else:
    LlavaFields = Decoder = CausalLM = object
