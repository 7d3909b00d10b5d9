import json
from itertools import groupby
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import SeparatorStyle, conv_templates
from llava.data.preprocess import preprocess
from llava.mm_utils import tokenizer_image_token
from llava.model.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden"
TABLE = json.loads((GOLDEN / "json/train_preprocess.json").read_text())
MENDED = {("mistral_instruct", 1), ("mpt", 0), ("mpt", 1), ("mpt", 2)}  # LLaVA warns and learns nothing of these
TALKS = TABLE["conversations"]


def name(case: dict) -> str:
    fields = ("template", "conversation_index", "legacy", "model_max_length", "mm_use_im_start_end")
    return "-".join(str(case[field]) for field in fields)


CASES = {name(case): case for case in TABLE["cases"]}


@pytest.fixture(scope="module")
def tokenizers():
    return {legacy: load_tokenizer(GOLDEN / "models/llava-v1.5-tiny", legacy=legacy) for legacy in (False, True)}


@pytest.fixture(scope="module")
def tokenizer(tokenizers):
    return tokenizers[False]


@pytest.fixture(scope="module")
def qwen():
    """A byte-level tokenizer that, as Qwen's, has no BOS and knows the turns' marks."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator([str(TALKS)] * 3, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    marks = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **marks)


def talk(*texts: str, first: str = "human") -> list[dict]:
    roles = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    return [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]


def learnt(example, tokenizer) -> list[str]:
    """The texts that labels are on, one by one."""
    runs = groupby(example.labels.tolist(), key=lambda label: label != IGNORE_INDEX)
    return [tokenizer.decode(list(run)) for is_learnt, run in runs if is_learnt]


def run(case: dict, tokenizers: dict):
    return preprocess(
        TALKS[case["conversation_index"]],
        tokenizers[case["legacy"]],
        conv_templates[case["template"]],
        has_image=case["has_image"],
        use_start_end=case["mm_use_im_start_end"],
        max_length=case["model_max_length"],
    )


def test_the_table_is_whole():
    assert len(CASES) == len(TABLE["cases"]) == 43
    warned = {(case["template"], case["conversation_index"]) for case in CASES.values() if case["warning"]}
    assert warned == MENDED
    assert sum(case["template"] == "llava_v0" for case in CASES.values()) == 3


@pytest.mark.parametrize("key", [key for key, case in CASES.items() if case["template"] != "llava_v0"])
def test_ids_and_labels_are_the_golden_ones(key, tokenizers):
    case = CASES[key]
    example = run(case, tokenizers)
    assert example.input_ids.tolist() == case["input_ids"]
    if case["warning"] is None:
        assert example.labels.tolist() == case["labels"]
    else:
        assert case["supervised_tokens"] == 0  # what LLaVA makes of it


@pytest.mark.parametrize("key", [key for key, case in CASES.items() if case["warning"]])
def test_where_llava_warns_the_answers_are_learnt(key, tokenizers):
    case = CASES[key]
    example = run(case, tokenizers)
    answers = [turn["value"] for turn in TALKS[case["conversation_index"]] if turn["from"] == "gpt"]
    closed = "{} </s>" if case["template"] == "mistral_instruct" else "{}<|im_end|>"
    assert learnt(example, tokenizers[False]) == [closed.format(answer) for answer in answers]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_hash_templates_learn_the_answers(index, tokenizers):
    # LLaVA's labels lie beside the answers here, and it trains on a text that it never asks with ("\n### Human: ").
    case = CASES[f"llava_v0-{index}-False-2048-False"]
    answers = [turn["value"] for turn in TALKS[index] if turn["from"] == "gpt"]
    assert case["supervised_text"].startswith("### Assistant: ")
    assert learnt(run(case, tokenizers), tokenizers[False]) == [f"{answer}###" for answer in answers]


@pytest.mark.parametrize("template", ["qwen_1_5", "mpt", "chatml_direct"])
def test_byte_level_tokenizers(template, qwen):
    turns = talk("<image>\nWhat é?", "A 🙂.\n", "\nSure?", "\n\nYes.")
    example = preprocess(turns, qwen, conv_templates[template], has_image=True)
    end = "<|im_end|>\n" if conv_templates[template].sep_style is SeparatorStyle.CHATML else "<|im_end|>"
    assert learnt(example, qwen) == [f"A 🙂.\n{end}", f"\n\nYes.{end}"]
    assert example.input_ids.tolist().count(IMAGE_TOKEN_INDEX) == 1


@pytest.mark.parametrize("adds_bos", [True, False])
def test_llama_3_learns_answers_and_their_ends_behind_one_bos(ascii_tokenizer, adds_bos):
    marks = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = ascii_tokenizer(*marks, bos="<|begin_of_text|>", eos="<|end_of_text|>", adds_bos=adds_bos)
    turns = talk("<image>\nWhat?", " A dog.\n", "Sure?", "Yes.")
    example = preprocess(turns, tokenizer, conv_templates["llava_llama_3"], has_image=True)
    assert learnt(example, tokenizer) == ["A dog.<|eot_id|>", "Yes.<|eot_id|>"]
    ids = example.input_ids.tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == ids.count(IMAGE_TOKEN_INDEX) == 1
    conversation = conv_templates["llava_llama_3"].copy()
    for i, turn in enumerate(turns):
        conversation.append_message(conversation.roles[i % 2], turn["value"])
    assert ids == tokenizer_image_token(conversation.get_prompt(), tokenizer)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("template", [name for name in conv_templates if "plain" not in name])
def test_training_reads_what_asking_writes(template, legacy, tokenizers):
    tokenizer, conversation = tokenizers[legacy], conv_templates[template].copy()
    conversation.messages = [[conversation.roles[i % 2], text] for i, text in enumerate(["Hi. </s>", "Yo", "a", " b"])]
    example = preprocess(talk("Hi. </s>", "Yo", "a", " b"), tokenizer, conv_templates[template], has_image=False)
    assert example.input_ids.tolist() == tokenizer_image_token(conversation.get_prompt(), tokenizer)

    conversation.messages = [*conversation.messages[:3], [conversation.roles[1], None]]
    asked = tokenizer_image_token(conversation.get_prompt(), tokenizer)
    last = (example.labels != IGNORE_INDEX).int().diff().eq(1).nonzero()[-1].item() + 1
    assert example.input_ids[:last].tolist() == asked  # so all of the answer is learnt, and nothing before it


def test_an_image_moves_to_the_front_of_its_message(tokenizer):
    def ids(*texts):
        return preprocess(talk(*texts), tokenizer, conv_templates["v1"], has_image=True).input_ids.tolist()

    assert ids("What <image> is it?", "A.") == ids("<image>\nWhat  is it?", "A.") != ids("What is it?<image>", "A.")
    assert ids("a\n<image>\n<image>", "b") == ids("<image>\n<image>\na", "b")
    assert ids("a", "b", "c<image>", "d") == ids("a", "b", "<image>\nc", "d")
    assert ids("<image>", "b").count(IMAGE_TOKEN_INDEX) == 1


def test_without_images_the_word_is_a_text(tokenizer):
    example = preprocess(talk("an <image> tag", "Yes."), tokenizer, conv_templates["v1"], has_image=False)
    assert IMAGE_TOKEN_INDEX not in example.input_ids
    assert "an <image> tag" in tokenizer.decode(example.input_ids)


def test_an_image_in_an_answer_is_not_learnt(tokenizer):
    example = preprocess(talk("Draw.", "<image>\nHere."), tokenizer, conv_templates["v1"], has_image=True)
    assert (example.input_ids == IMAGE_TOKEN_INDEX).sum() == 1
    assert set(example.labels[example.input_ids == IMAGE_TOKEN_INDEX].tolist()) == {IGNORE_INDEX}
    assert "".join(learnt(example, tokenizer)).endswith("Here.</s>")


def test_separators_in_a_text_do_not_end_a_turn(tokenizer):
    answers = ["ASSISTANT: USER: a</s> b", "c"]
    turns = talk("</s> ASSISTANT: x", answers[0], "USER: </s>", answers[1])
    example = preprocess(turns, tokenizer, conv_templates["v1"], has_image=False)
    assert learnt(example, tokenizer) == [f"{answer}</s>" for answer in answers]


def test_what_gpt_says_first_is_left_out(tokenizer):
    def ids(turns):
        return preprocess(turns, tokenizer, conv_templates["v1"], has_image=False).input_ids.tolist()

    assert ids(talk("Hello.", "Q", "A", first="gpt")) == ids(talk("Q", "A"))


def test_a_last_question_is_read_but_not_learnt(tokenizer):
    example = preprocess(talk("Q", "A", "And?"), tokenizer, conv_templates["v1"], has_image=False)
    assert learnt(example, tokenizer) == ["A</s>"]
    assert tokenizer.decode(example.input_ids).endswith("USER: And? ")


def test_plain_takes_nothing_but_images_from_the_question(tokenizer):
    example = preprocess(
        talk("<image>\n<image> Tell.", "A dog."), tokenizer, conv_templates["plain"], has_image=True, use_start_end=True
    )
    assert example.input_ids[:3].tolist() == [1, IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX]
    assert learnt(example, tokenizer) == ["A dog.\n"]
    for texts in (("Tell.", "A dog."), ("<image>", "A dog.", "Sure?", "Yes.")):
        with pytest.raises(ValueError, match="plain template takes one question with <image>"):
            preprocess(talk(*texts), tokenizer, conv_templates["plain"], has_image=True)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "must be a list of turns"),
        ([{"from": "human", "value": "a"}, {"from": "bot", "value": "b"}], "turn 2 of 2 is from 'bot'"),
        ([{"from": "human", "value": "a"}] * 2, "turn 2 of 2 is from 'human', as the one before"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": None}], "value of turn 2 of 2 is .*None"),
        (talk("Hi"), "1 turns, but .* gpt says nothing"),
        (talk("Hi", "  "), "2 turns, but .* gpt says nothing"),
        (talk("Hi", "Q", first="gpt"), "2 turns, but after a question gpt says nothing"),
    ],
)
def test_what_cannot_be_learnt_from_is_told(turns, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        preprocess(turns, tokenizer, conv_templates["v1"], has_image=False)
