import json
import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.tokenizer import load_tokenizer, save_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden"
TINY = GOLDEN / "models/llava-v1.5-tiny"
PROMPTS = json.loads((GOLDEN / "json/tokenizer_image_token.json").read_text())
TRAINING = json.loads((GOLDEN / "json/train_preprocess.json").read_text())["cases"]
# These two are written down otherwise in training than get_prompt does.
TRAINING = [case for case in TRAINING if case["template"] not in ("plain", "llava_v0")]
HARD = (
    "  two spaces",
    "\n x",
    "a  b </s> c",
    "<s> a",
    "▁x",
    " ",
    "",
    "USER: Ünï 🙂 </s>USER: b",
    "a <im_start> b <im_end>",
)


@pytest.fixture(params=["llava", "llava_llama"])
def folder(tmp_path, request):
    """A tokenizer beside a config, whose model_type must not matter."""
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(TINY / name, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": request.param}))
    return tmp_path


def edit(folder, **changes):
    file = folder / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def test_prompts_have_the_golden_ids(folder):
    tokenizer = load_tokenizer(folder)
    assert len(PROMPTS) >= 13
    for case in PROMPTS:
        assert tokenizer_image_token(case["prompt"], tokenizer) == case["ids"], case["prompt"]


@pytest.mark.parametrize("legacy", [False, True])
def test_training_conversations_have_the_golden_ids(folder, legacy):
    edit(folder, legacy=legacy)
    tokenizer = load_tokenizer(folder)
    cases = [case for case in TRAINING if case["legacy"] is legacy]
    assert len(cases) >= 12
    for case in cases:
        conversation = conv_templates[case["template"]].copy()
        texts = case["after_preprocess_multimodal"]
        texts = texts[len(texts) % 2 :]  # a talk that the assistant begins loses that turn
        for i, text in enumerate(texts):
            conversation.append_message(conversation.roles[i % 2], text)
        prompt = conversation.get_prompt()
        assert (DEFAULT_IMAGE_TOKEN in prompt) == case["has_image"]
        ids = tokenizer_image_token(prompt, tokenizer)
        end = None if case["has_image"] else case["model_max_length"]  # LLaVA cuts these two at different places
        assert ids[:end] == case["input_ids"], prompt


def test_ids_equal_sentencepiece(folder):
    sentencepiece = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for legacy in (False, True):
        tokenizer = load_tokenizer(folder, legacy=legacy)
        for text in ("Hello there", " a leading space", "   three", "\n", "a  b", "trailing "):
            assert tokenizer(text).input_ids == [1, *sentencepiece.encode(text)], (legacy, text)


def test_legacy_puts_a_space_after_special_tokens(folder):
    after = {legacy: load_tokenizer(folder, legacy=legacy)("</s>USER").tokens()[2:] for legacy in (False, True)}
    assert "".join(after[False]) == "USER"
    assert "".join(after[True]) == "▁USER"


def test_unset_legacy_means_true_as_it_did(folder):
    edit(folder, legacy=...)
    unset, legacy = load_tokenizer(folder), load_tokenizer(folder, legacy=True)
    assert unset.legacy is True
    assert [unset(text).input_ids for text in HARD] == [legacy(text).input_ids for text in HARD]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("with_model_file", [False, True])
def test_saved_and_loaded_ids_are_the_same(folder, tmp_path_factory, legacy, with_model_file):
    tokenizer = load_tokenizer(folder, legacy=legacy, padding_side="left", model_max_length=77)
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    saved = tmp_path_factory.mktemp("saved")
    if with_model_file:
        save_tokenizer(tokenizer, saved)
        assert (saved / "tokenizer.model").read_bytes() == (TINY / "tokenizer.model").read_bytes()
    else:
        tokenizer.save_pretrained(saved)
        assert not (saved / "tokenizer.model").exists()
    shutil.copyfile(folder / "config.json", saved / "config.json")

    loaded = load_tokenizer(saved)
    assert [loaded(text).input_ids for text in HARD] == [tokenizer(text).input_ids for text in HARD]
    assert len(loaded) == len(tokenizer) == 1002
    assert (loaded.padding_side, loaded.model_max_length) == ("left", 77)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 0)


def test_saving_in_place_keeps_the_model_file(folder):
    save_tokenizer(load_tokenizer(folder), folder)
    assert (folder / "tokenizer.model").read_bytes() == (TINY / "tokenizer.model").read_bytes()


def test_a_model_without_dummy_prefix_gets_none(folder):
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 9),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=280,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    sentencepiece = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder, legacy=True)
    for text in ("the cat", " the cat", "cat"):
        assert tokenizer(text).input_ids == [1, *sentencepiece.encode(text)]
    assert tokenizer.tokenize("the")[0] == "the"


def test_qwen_is_left_to_auto_tokenizer(tmp_path):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(["user hello world"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    bpe.model.save(str(tmp_path))
    chat = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|endoftext|>"}
    config = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "pad_token": "<|endoftext|>", **chat}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_qwen"}))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer_image_token("<|im_start|>user\n<image>\n hello", tokenizer)
    assert tokenizer.decode(ids[: ids.index(-200)]) == "<|im_start|>user\n"
    assert tokenizer.decode(ids[ids.index(-200) + 1 :]) == "\n hello"


def test_no_tokenizer_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.*needs tokenizer\.model"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
    with pytest.raises(ValueError, match="load its base model's"):
        load_tokenizer(tmp_path)


def test_a_pointer_in_place_of_the_model_file_is_named(folder):
    (folder / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"tokenizer.model \(43 bytes\) is no SentencePiece model"):
        load_tokenizer(folder)


def test_a_config_without_its_files_is_an_error(folder):
    (folder / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        load_tokenizer(folder)
