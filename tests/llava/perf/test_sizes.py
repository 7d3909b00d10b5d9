"""Shapes are those of the models they name, of checkpoints, and of what is built from them."""

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.description import read_config
from llava.perf.sizes import SIZES, ModelSize, build_model, find_size
from visionzip_patch import zipped

SMALL = ModelSize(
    **{"hidden": 48, "intermediate": 96, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 200},
    **{"tower_hidden": 32, "tower_intermediate": 64, "tower_layers": 3, "tower_heads": 4, "image_size": 56},
)  # tests' small LLaVA


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "llm"),
    [
        ("llava-1.5-7b", 6_738_415_616),
        ("llava-next-7b", 6_738_415_616),
        ("llava-1.5-13b", 13_015_864_320),
        ("llava-next-13b", 13_015_864_320),
    ],
)
def test_known_shapes_have_the_parameters_of_their_models(name, llm):
    size = SIZES[name]
    model = build_model(size, "meta", torch.float16)
    newline = size.hidden if size.crops > 1 else 0  # the token after each row of patches
    tower, projector = model.get_vision_tower(), model.get_model().mm_projector
    assert count(tower) == size.tower_parameters == 303_507_456
    assert count(projector) == (1024 + 1) * size.hidden + (size.hidden + 1) * size.hidden
    assert count(model) == llm + count(tower) + count(projector) + newline
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_a_siglip_has_its_parameters():
    config = SiglipVisionConfig()  # SigLIP-base at 224 pixels
    with torch.device("meta"):
        expected = count(SiglipVisionModel(config))
    tower = {"tower_hidden": config.hidden_size, "tower_intermediate": config.intermediate_size}
    tower |= {"tower_layers": config.num_hidden_layers, "tower_heads": config.num_attention_heads}
    size = SMALL._replace(**tower, image_size=config.image_size, patch_size=config.patch_size, has_cls=False)
    assert size.tower_parameters == expected


def test_sizes_that_follow():
    clip = SIZES["llava-next-7b"]
    assert (clip.patches, clip.tower_length, clip.tower_depth) == (576, 577, 23)
    assert (clip.head_dim, clip.tower_head_dim, clip.crops) == (128, 64, 5)
    assert clip._replace(select_layer=5).tower_depth == 5
    assert clip._replace(select_layer=-1).tower_depth == 24
    siglip = clip._replace(image_size=384, patch_size=14, has_cls=False)
    assert siglip.patches == siglip.tower_length == 729


@pytest.mark.parametrize(
    ("family", "tower", "changes", "expected"),
    [
        ("llama", "clip", {}, {}),
        ("mistral", "clip", {"image_aspect_ratio": "pad"}, {}),
        (
            *("llama", "clip"),
            {"image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": [[112, 112]]},
            {"crops": 5},
        ),
        ("qwen", "siglip", {"tie_word_embeddings": True}, {"has_cls": False, "is_tied": True}),
    ],
)
def test_a_checkpoint_tells_its_shape(tiny_llava, tmp_path, family, tower, changes, expected):
    model, folder = tiny_llava(family, tower, **changes), tmp_path / "llava-small"
    model.save_pretrained(folder)
    size = SMALL._replace(**expected)
    assert ModelSize.from_config(*read_config(str(folder))) == size
    assert ModelSize.from_config(model.config, model.get_vision_tower()) == size
    assert find_size(str(folder)) == ("llava-small", size)


def test_names_are_found_in_any_case():
    assert find_size("LLaVA-1.5-7B") == ("llava-1.5-7b", SIZES["llava-1.5-7b"])
    assert find_size("MINE", {"Mine": SMALL}) == ("Mine", SMALL)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("llava-2-7b", "'llava-2-7b' is neither one of Mine nor a checkpoint: a folder, or a hub id"),
        ("/no/such/folder", "nor a checkpoint. No checkpoint at '/no/such/folder': there is no such folder"),
    ],
)
def test_an_unknown_model_is_told_what_there_is(model, message):
    with pytest.raises(ValueError, match="neither") as caught:
        find_size(model, {"Mine": SMALL})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "size",
    [SMALL, SMALL._replace(crops=5, is_tied=True, select_layer=-1), SMALL._replace(kv_heads=4, patch_size=28)],
    ids=["plain", "five crops", "coarse"],
)
def test_what_is_built_has_the_shape_and_answers(size):
    torch.manual_seed(0)
    model = build_model(size, torch.device("cpu"), torch.float32)
    tower = model.get_vision_tower()
    assert ModelSize.from_config(model.config, tower) == size
    assert count(tower) == size.tower_parameters
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.get_vision_tower().parameters())
    assert torch.get_default_dtype() == torch.float32

    crops = (1, size.crops) if size.crops > 1 else (1,)
    ids = torch.tensor([[5, IMAGE_TOKEN_INDEX, 6]])
    images, sizes = torch.randn(*crops, 3, 56, 56), [(112, 112)]
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        assert model.generate(ids, images=images, image_sizes=sizes, **options).shape == (1, 3)
        with zipped(model, dominant=2, contextual=1):
            assert len(model.image_features(images, sizes)[0]) == 3 * size.crops
            assert model.generate(ids, images=images, image_sizes=sizes, **options).shape == (1, 3)


def test_the_data_type_is_put_back_if_building_fails():
    with pytest.raises(ZeroDivisionError):
        build_model(SMALL._replace(tower_heads=0), torch.device("cpu"), torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32
