"""CLIP as a vision tower."""

from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig
from transformers import CLIPVisionModel as Encoder

from llava.model.multimodal_encoder.tower import AlsoNested, VisionTower


class CLIPVisionModel(AlsoNested, Encoder):
    """transformers' CLIP encoder, which also answers to `vision_model`."""


class CLIPVisionTower(VisionTower):
    """CLIP: token 0 is CLS. Pixels by the PIL processor, with which LLaVA's numbers were made."""

    model_class = CLIPVisionModel
    config_class = CLIPVisionConfig
    processor_class = CLIPImageProcessorPil
    has_cls = True

    def embed(self, pixels: Tensor) -> Tensor:
        """Compute the input of the first layer: (B, 3, S, S) -> (B, 1 + P, C)."""
        return self.vision_tower.pre_layrnorm(self.vision_tower.embeddings(pixels))
