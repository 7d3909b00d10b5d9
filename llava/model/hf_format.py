"""Checkpoints in Hugging Face's LLaVA and LLaVA-NeXT format: their names and their config under LLaVA's."""

from transformers import CONFIG_MAPPING

from llava.model.checkpoint import TOWER_KEYS, Checkpoint, language_model, processor_folder
from llava.model.library_errors import blaming

# Hugging Face's names, old (hub) and new (saved by transformers 5), to ours. Applied in order, each at most once a key.
HF_KEYS = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?vision_tower\.(?:vision_model\.)?(?=embeddings|pre_|encoder|post_|head)": TOWER_KEYS,
    r"^(?:model\.)?multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^(?:model\.)?multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^image_newline$": "model.image_newline",
}
HF_FIELDS = (  # of its own config, which callers may want to replace
    "vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act", "multimodal_projector_bias",
    "text_config", "vision_config", "image_token_index", "image_token_id",
)  # fmt: skip
HF_SELECT = {"default": "patch", "full": "cls_patch"}  # vision_feature_select_strategy


def from_hf_config(checkpoint: Checkpoint) -> dict:
    """Translate a Hugging Face LLaVA or LLaVA-NeXT config into LLaVA's names.

    Raises:
        ValueError: a model type, projector or choice of layers that LLaVA's classes do not have.
    """
    kind = checkpoint.config.get("model_type")
    if kind not in ("llava", "llava_next"):
        raise ValueError(f"{checkpoint.path!r} is a Hugging Face {kind!r} model; llava and llava_next can be loaded.")
    with blaming(f"config.json of {checkpoint.path!r} makes no model"):
        config = CONFIG_MAPPING[kind].from_dict(checkpoint.config)  # fills in what published configs leave out
        text, vision = config.text_config.to_dict(), config.vision_config
    if config.vision_config.model_type.startswith("siglip") and config.vision_feature_select_strategy == "default":
        raise ValueError(
            f"{checkpoint.path!r} has vision_feature_select_strategy='default' with a SigLIP tower: transformers' own "
            f"class drops the first patch then, as if it were CLS. 'full' can be loaded."
        )
    for name, is_known, possible in (
        ("projector_hidden_act", config.projector_hidden_act == "gelu", "'gelu'"),
        ("multimodal_projector_bias", config.multimodal_projector_bias is True, "true"),
        ("vision_feature_layer", type(config.vision_feature_layer) is int, "a single layer"),
        ("vision_feature_select_strategy", config.vision_feature_select_strategy in HF_SELECT, " or ".join(HF_SELECT)),
    ):
        if not is_known:
            raise ValueError(
                f"{checkpoint.path!r} has {name}={getattr(config, name)!r}; only {possible} can be loaded."
            )
    is_next = kind == "llava_next"
    return {
        **text,
        "model_type": language_model({"model_type": text["model_type"]}),
        "architectures": None,
        "mm_vision_tower": checkpoint.path,
        "mm_vision_tower_config": {**vision.to_diff_dict(), "name_or_path": processor_folder(checkpoint)},
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": HF_SELECT[config.vision_feature_select_strategy],
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "unfreeze_mm_vision_tower": True,
        "image_aspect_ratio": "anyres" if is_next else "pad",
        "image_grid_pinpoints": [(w, h) for h, w in config.image_grid_pinpoints] if is_next else None,
        "mm_patch_merge_type": "spatial_unpad" if is_next else "flat",
        "pad_token_id": first_given(text.get("pad_token_id"), checkpoint.config.get("pad_token_id")),
        "tie_word_embeddings": config.tie_word_embeddings,
        "visionzip": checkpoint.config.get("visionzip"),
    }


def first_given(*values):
    """Return the first value that is not None; None if all are."""
    return next((value for value in values if value is not None), None)
