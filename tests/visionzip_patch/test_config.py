import pytest

from visionzip_patch import VisionZipConfig
from visionzip_patch.config import with_current_names


def test_a_config_survives_json():
    config = VisionZipConfig(27, 5, merge="mean", selector="random", seed=3)
    assert VisionZipConfig.from_dict(config.to_dict()) == config


def test_a_count_that_nobody_says_is_that_of_the_published_code():
    assert VisionZipConfig() == VisionZipConfig(191, 30)
    assert VisionZipConfig(500) == VisionZipConfig(500, 30)
    assert VisionZipConfig(contextual=0) == VisionZipConfig(191, 0)


def test_a_budget_per_image_is_saved_without_counts_per_crop():
    config = VisionZipConfig(tokens_per_image=160, merge="mean")
    saved = config.to_dict()
    assert not {"dominant", "contextual"} & set(saved)
    assert VisionZipConfig.from_dict(saved) == VisionZipConfig(**saved) == config
    assert VisionZipConfig.from_dict({**saved, "dominant": 54, "contextual": 10}) == config  # of earlier versions


def test_a_budget_per_crop_is_saved_whole():
    assert VisionZipConfig(27, 5).to_dict() == {
        **{"dominant": 27, "contextual": 5, "tokens_per_image": None},
        **{"merge": "sum", "selector": "visionzip", "seed": 0},
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dominant": 30, "contextual": 2, "tokens_per_image": 64}, "image=64 .* dominant=30 and contextual=2"),
        ({"contextual": 0, "tokens_per_image": 64}, "image=64 .* but contextual=0 came"),
        ({"tokens_per_image": 2.5}, "whole number"),
        ({"dominant": 0}, "dominant=0"),
        ({"dominant": 2.5}, "whole number"),
        ({"dominant": True}, "whole number"),
        ({"contextual": "10"}, "whole number"),
        ({"contextual": -1}, "contextual=-1"),
        ({"tokens_per_image": 0}, "tokens_per_image=0"),
        ({"tokens_per_image": -64}, "tokens_per_image=-64"),
        ({"merge": "max"}, "sum, mean"),
        ({"selector": "best"}, "visionzip, random, uniform"),
        ({"selector": ["random"]}, "visionzip, random, uniform"),
        ({"seed": None}, "whole number"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        VisionZipConfig(**values)


def test_an_unknown_setting_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"budget.*dominant, contextual"):
        VisionZipConfig.from_dict({"budget": 64})


@pytest.mark.parametrize("values", ["64", 64, [54, 10]])
def test_settings_that_are_no_table(values):
    with pytest.raises(ValueError, match="expected a table of dominant"):
        VisionZipConfig.from_dict(values)


@pytest.mark.parametrize(
    ("tokens", "crops", "split"),
    [(64, 1, (54, 10)), (128, 1, (108, 20)), (192, 1, (162, 30)), (160, 5, (27, 5)), (320, 5, (54, 10)),
     (640, 5, (108, 20)), (160, 3, (45, 8)), (5, 5, (1, 0)), (99999, 1, (487, 90))],
)  # fmt: skip
def test_a_budget_per_image_is_split_as_the_paper_splits(tokens, crops, split):
    assert VisionZipConfig(tokens_per_image=tokens).per_crop(crops, available=577) == split


def test_a_budget_below_one_token_per_crop_says_both_numbers():
    with pytest.raises(ValueError, match=r"tokens_per_image=4.*5 crops"):
        VisionZipConfig(tokens_per_image=4).per_crop(5, available=577)


def test_the_former_name_of_visionzips_own_selector_is_still_read():
    saved = {**VisionZipConfig(27, 5).to_dict(), "selector": "attention"}
    assert VisionZipConfig.from_dict(saved) == VisionZipConfig(**saved) == VisionZipConfig(27, 5)
    assert VisionZipConfig.from_dict(saved).to_dict()["selector"] == "visionzip"


def test_records_of_earlier_versions_are_known_as_those_of_the_same_setting():
    now = {"task": "textvqa", "visionzip": VisionZipConfig(27, 5).to_dict()}
    assert with_current_names({**now, "visionzip": {**now["visionzip"], "selector": "attention"}}) == now
    assert with_current_names({"task": "textvqa", "visionzip": None}) == {"task": "textvqa", "visionzip": None}


def test_a_setting_says_who_chooses_unless_it_is_visionzip():
    assert str(VisionZipConfig(54, 10)) == "54+10 tokens per crop"
    assert str(VisionZipConfig(tokens_per_image=160, selector="random")) == "160 tokens per image, selector random"
