from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from llava.model.multimodal_encoder.tower import VisionTower


class CLIPVisionTower(VisionTower):
    """CLIP: token 0 is CLS. Pixels by the PIL processor, with which LLaVA's numbers were made."""

    model_class = CLIPVisionModel
    config_class = CLIPVisionConfig
    processor_class = CLIPImageProcessorPil
    has_cls = True

    def embed(self, pixels: Tensor) -> Tensor:
        return self.vision_tower.pre_layrnorm(self.vision_tower.embeddings(pixels))
