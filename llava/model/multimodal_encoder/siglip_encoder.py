from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from llava.model.multimodal_encoder.tower import VisionTower


class SiglipVisionTower(VisionTower):
    """SigLIP: patches only, so tokens are scored by the attention they receive."""

    model_class = SiglipVisionModel
    config_class = SiglipVisionConfig
    processor_class = SiglipImageProcessorPil
    has_cls = False
