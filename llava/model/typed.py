"""The classes that LLaVA's mixins are mixed into, declared for the type checker.

`nn.Module.__getattr__` returns `Tensor | Module` for any name, so a checker knows no part of a model by itself. These
classes name the parts that are used here. Nothing depends on them when the program runs: there the mixins are mixed
into transformers' own classes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PreTrainedModel

    from llava.model.multimodal_encoder.tower import VisionTower

    class Decoder(PreTrainedModel):
        """A language model without its head: LlamaModel, MistralModel or Qwen2Model, with LLaVA's parts."""

        config: Any  # a config of three families, with fields of LLaVA's and of its forks; `fields` checks them
        embed_tokens: nn.Embedding
        layers: nn.ModuleList
        norm: nn.Module
        rotary_emb: nn.Module
        mm_projector: nn.Module

        def get_vision_tower(self) -> VisionTower | None:
            """Return the vision tower; None if the model sees no images."""

    class CausalLM(PreTrainedModel):
        """A language model with its head: LlamaForCausalLM, MistralForCausalLM or Qwen2ForCausalLM."""

        config: Any  # see Decoder
        generation_config: GenerationConfig
        model: Decoder
        lm_head: nn.Linear

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Compute logits; the arguments differ between versions of transformers."""

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            """Answer a prompt; transformers binds it to a class that it declares elsewhere."""
else:
    Decoder = CausalLM = object
