"""SigLIP as a vision tower."""

from transformers import SiglipImageProcessorPil, SiglipVisionConfig
from transformers import SiglipVisionModel as Encoder

from llava.model.multimodal_encoder.tower import AlsoNested, VisionTower


class SiglipVisionModel(AlsoNested, Encoder):
    """transformers' SigLIP encoder, which also answers to `vision_model`."""


class SiglipVisionTower(VisionTower):
    """SigLIP: patches only, so tokens are scored by the attention they receive."""

    model_class = SiglipVisionModel
    config_class = SiglipVisionConfig
    processor_class = SiglipImageProcessorPil
    has_cls = False
