"""Register this project with lmms-eval, by its entry points: `--model llava_visionzip`."""


def manifest():
    """Register the model; `lmms_model` is imported when it is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("llava_visionzip", simple_class_path="llava.eval.lmms_model.LlavaVisionZip")
