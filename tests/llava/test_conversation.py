import json
from pathlib import Path

import pytest

from llava.conversation import Conversation, SeparatorStyle, conv_templates, default_conversation

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/json/conversations.json").read_text())
TEMPLATES = GOLDEN["templates"]
FIELDS = ("system", "version", "offset", "sep", "sep2")


def talk(name: str, *texts: str | None) -> Conversation:
    conversation = conv_templates[name].copy()
    for i, text in enumerate(texts):
        conversation.append_message(conversation.roles[i % 2], text)
    return conversation


def test_every_template_is_there():
    assert len(TEMPLATES) >= 16
    assert set(TEMPLATES) | {"qwen_1_5", "qwen_2", "llava_llama_3"} == set(conv_templates)
    assert all(default_conversation is conv_templates[name] for name in GOLDEN["default_template"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_fields_and_prompts(name):
    golden, template = TEMPLATES[name], conv_templates[name]
    assert {field: getattr(template, field) for field in FIELDS} == {field: golden[field] for field in FIELDS}
    assert list(template.roles) == golden["roles"]
    assert template.sep_style is SeparatorStyle[golden["sep_style"]]

    (question, answer), (second, _) = GOLDEN["turns"]
    prompts = {
        "prompt": talk(name, question, answer, second, None),
        "prompt_complete": talk(name, question, answer, second, "Yes."),
        "prompt_first_turn": talk(name, question, None),
        "prompt_image_tuple": talk(name, ("Look <image> here", None, "Default"), None),
    }
    for key, conversation in prompts.items():
        if golden.get(key) is not None:
            assert conversation.get_prompt() == golden[key], key


def test_plain_can_hold_an_answer():
    # LLaVA 1.x raises TypeError here: its second separator is None.
    assert TEMPLATES["plain"]["prompt_error"] == "TypeError"
    assert talk("plain", "<image>", "A dog.").get_prompt() == "<image>\nA dog.\n"


def test_qwen_writes_chatml():
    assert talk("qwen_1_5", "<image>\nWhat?", "A dog.", "Sure?", None).get_prompt() == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_copy_leaves_the_template_alone():
    first, second = conv_templates["v0"].copy(), conv_templates["v0"].copy()
    first.append_message(first.roles[0], "Hello")
    first.messages[0][1] = "changed"
    assert len(conv_templates["v0"].messages) == len(second.messages) == 2
    assert second.messages[0][1] == conv_templates["v0"].messages[0][1] != "changed"
    with pytest.raises(AttributeError):
        conv_templates["v1"].append_message("USER", "Hello")


def test_llama_2_must_begin_with_the_user():
    with pytest.raises(ValueError, match="begins with a message of 'USER'"):
        talk("llava_llama_2", None).get_prompt()
    conversation = conv_templates["llava_llama_2"].copy()
    conversation.append_message("ASSISTANT", "Hello")
    with pytest.raises(ValueError, match="'Hello' of 'ASSISTANT'"):
        conversation.get_prompt()


def test_an_empty_talk_is_the_system_text():
    assert conv_templates["v1"].copy().get_prompt() == TEMPLATES["v1"]["system"] + " "
