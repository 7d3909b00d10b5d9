"""What lmms-eval finds of this project, by its entry points: `--model llava_visionzip`."""


def manifest():
    """The registration that lmms-eval asks for; `lmms_model` is imported when it is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("llava_visionzip", simple_class_path="llava.eval.lmms_model.LlavaVisionZip")
