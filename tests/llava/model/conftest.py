"""Small checkpoints as folders, each a copy that a test may damage."""

import shutil
from pathlib import Path

import pytest

TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
SIZES = {
    "vocab_size": 1000,  # of the golden tokenizer
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HF_IMAGE_ID, HF_VOCABULARY = 1001, 1010  # as published: more rows than the tokenizer has tokens
HF_PINPOINTS = [[56, 168], [112, 56], [112, 112]]  # (height, width), as transformers reads them
TEXT_CONFIGS = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config"}


@pytest.fixture(scope="session")
def sizes():
    return SIZES


@pytest.fixture(scope="session")
def add_tokenizer(golden):
    def add(folder: Path) -> Path:
        for name in TOKENIZER:
            shutil.copy(golden / "models/vicuna-tiny" / name, folder)
        return folder

    return add


@pytest.fixture(scope="session")
def tower_of(tower_folder):
    folders = {}

    def get(kind: str) -> str:
        if kind not in folders:
            folders[kind] = tower_folder(kind)
        return folders[kind]

    return get


@pytest.fixture
def checkpoint(tower_of, add_tokenizer, tmp_path):
    """Makes a LLaVA checkpoint: `checkpoint("qwen", "siglip", unfreeze_mm_vision_tower=True)` -> its folder, model."""

    def make(family="llama", tower="clip", name="checkpoint", **changes):
        import torch

        from llava import model as llava_model

        prefix = {"llama": "Llava", "mistral": "LlavaMistral", "qwen": "LlavaQwen"}[family]
        values = {
            **SIZES,
            "mm_vision_tower": tower_of(tower) if tower else None,
            "mm_hidden_size": 32,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_use_im_patch_token": False,
        }
        torch.manual_seed(0)
        config = getattr(llava_model, f"{prefix}Config")(**{**values, **changes})
        model = getattr(llava_model, "LlavaLlamaForCausalLM" if family == "llama" else f"{prefix}ForCausalLM")(config)
        shake(model)
        if tower:
            model.get_vision_tower().load_model()
        folder = tmp_path / name
        model.save_pretrained(folder)
        return add_tokenizer(folder), model.eval()

    return make


@pytest.fixture
def hf_folder(tmp_path, add_tokenizer, sizes, tower_sizes, shaken):
    """Make a Hugging Face model and its folder, saved by today's transformers."""

    def make(family="llama", tower="clip", anyres=False, text=None, **options):
        import torch
        import transformers as hf

        if tower == "clip":
            vision = hf.CLIPVisionConfig(**tower_sizes)
            processor = hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=56)
        else:
            vision = hf.SiglipVisionConfig(**tower_sizes, vision_use_head=False)
            processor = hf.SiglipImageProcessorPil(size={"height": 56, "width": 56})
            options = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, **options}
        text = getattr(hf, TEXT_CONFIGS[family])(**{**sizes, "vocab_size": HF_VOCABULARY, **(text or {})})
        config_class, model_class = hf.LlavaConfig, hf.LlavaForConditionalGeneration
        if anyres:
            config_class, model_class = hf.LlavaNextConfig, hf.LlavaNextForConditionalGeneration
            options |= {"image_grid_pinpoints": HF_PINPOINTS}
        torch.manual_seed(0)
        config = config_class(vision_config=vision, text_config=text, image_token_index=HF_IMAGE_ID, **options)
        model = shaken(model_class(config)).eval()
        folder = tmp_path / "hf"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return add_tokenizer(folder), model

    return make


@pytest.fixture(scope="session")
def shaken():
    return shake


def shake(model):
    """Spread the weights out: a freshly drawn model answers every prompt alike."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="session")
def outputs():
    """What a model says of one image: logits of the prompt, and greedy ids."""

    def run(model):
        import torch

        from llava.constants import IMAGE_TOKEN_INDEX

        ids = torch.tensor([[1, 40, 50, IMAGE_TOKEN_INDEX, 60, 70, 80]])
        tower = model.get_vision_tower()
        if tower is None:
            ids, images = ids[ids >= 0][None], None
        else:
            side = tower.config.image_size
            images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2)).to(model.dtype)
        with torch.no_grad():
            logits = model(ids, images=images).logits[0]
            answer = model.generate(ids, images=images, do_sample=False, max_new_tokens=6, min_new_tokens=6)
        return logits, answer[0]

    return run


@pytest.fixture(scope="session")
def same():
    def check(one, other):
        import torch

        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)

    return check
