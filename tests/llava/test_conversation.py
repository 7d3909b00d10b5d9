import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from llava import conversation as conversations
from llava.conversation import (
    Conversation,
    SeparatorStyle,
    choose_template,
    conv_templates,
    default_conversation,
    template_for,
)

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


LLAMA_3_BEGIN = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, and assist the user with a variety of tasks "
    "using natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def test_llama_3_is_written_as_its_chat_template_writes_it():
    assert talk("llava_llama_3", "<image>\nWhat?", None).get_prompt() == LLAMA_3_BEGIN
    answered = talk("llava_llama_3", "<image>\nWhat?\n", " A dog. ", "Sure?", None).get_prompt()
    assert answered == LLAMA_3_BEGIN + (
        "A dog.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert talk("llava_llama_3", "<image>\nWhat?", "A dog.").get_prompt() == LLAMA_3_BEGIN + "A dog.<|eot_id|>"
    assert talk("llava_llama_3", ("What?", None, "Default"), None).get_prompt() == LLAMA_3_BEGIN


LLAMA_MARKS = {"bos": "<s>", "eos": "</s>"}
HEADERS = "{{ '<|start_header_id|>' + role + '<|end_header_id|>' }}"


@pytest.mark.parametrize(
    ("kind", "marks", "options", "name"),
    [
        ("llama", [], LLAMA_MARKS, "vicuna_v1"),
        ("llama", ["<|start_header_id|>", "<|eot_id|>"], {"bos": "<|begin_of_text|>"}, "llava_llama_3"),
        ("llama", ["<|im_start|>", "<|im_end|>"], {"eos": "<|im_end|>"}, "chatml_direct"),
        ("mistral", ["<|im_start|>", "<|im_end|>"], LLAMA_MARKS, "chatml_direct"),
        ("qwen", ["<|im_start|>", "<|im_end|>"], {}, "qwen_1_5"),
        ("mistral", ["[INST]", "[/INST]"], LLAMA_MARKS, "mistral_instruct"),
        ("llama", [], {**LLAMA_MARKS, "chat_template": "{{ '[INST] <<SYS>>' + text + '[/INST]' }}"}, "llava_llama_2"),
        ("mistral", [], {**LLAMA_MARKS, "chat_template": "{{ '[INST] ' + text + ' [/INST]' }}"}, "mistral_instruct"),
        ("llama", [], {**LLAMA_MARKS, "chat_template": "{{ 'USER: ' + text + ' ASSISTANT:' }}"}, "vicuna_v1"),
        ("llama", ["<|start_header_id|>"], {"chat_template": "<|im_start|>user"}, "chatml_direct"),  # what it is asked
        ("llama", ["<|im_start|>"], {"chat_template": {"default": HEADERS, "tool": "x"}}, "llava_llama_3"),
    ],
)
def test_a_tokenizer_shows_the_template(ascii_tokenizer, caplog, kind, marks, options, name):
    config = SimpleNamespace(model_type=f"llava_{kind}", _name_or_path="llava-llama-3-vicuna-34b")  # tells nothing
    tokenizer = ascii_tokenizer(*marks, **options)
    found = template_for(config, tokenizer)
    assert (found.name, found.is_assumed) == (name, False)
    assert choose_template(None, config, tokenizer) == name
    assert not caplog.records


@pytest.mark.parametrize("field", ["conv_mode", "conv_template", "conversation_template", "conv_version", "version"])
def test_what_a_config_says_comes_first(ascii_tokenizer, field):
    tokenizer = ascii_tokenizer("<|im_start|>", "<|im_end|>")
    config = SimpleNamespace(model_type="llava_qwen", **{field: "llava_llama_3"})
    assert template_for(config, tokenizer).name == "llava_llama_3"
    for captions_only in ("plain", "v0_plain"):
        setattr(config, field, captions_only)
        assert template_for(config, tokenizer)[::2] == ("qwen_1_5", False)


@pytest.mark.parametrize(
    ("kind", "fields", "name", "reason"),
    [
        ("mistral", {}, "mistral_instruct", "LLaVA's llava_mistral models"),
        ("qwen", {}, "qwen_1_5", "LLaVA's llava_qwen models"),
        ("llama", {"version": "1.6"}, "vicuna_v1", "none that is known"),
        ("llama", {"conv_mode": "gemma_instruct"}, "vicuna_v1", "conv_mode 'gemma_instruct' is unknown"),
    ],
)
def test_an_assumed_template_is_told_once(ascii_tokenizer, caplog, kind, fields, name, reason):
    config = SimpleNamespace(model_type=f"llava_{kind}", **fields)
    tokenizer = ascii_tokenizer(bos="<bos>", chat_template="{{ '<start_of_turn>' }}")
    for _ in range(2):
        assert choose_template(None, config, tokenizer, flag="--version") == name
    (told,) = (record.getMessage() for record in caplog.records)
    assert f"{name} is assumed" in told
    assert reason in told
    assert "--version: default, v0" in told


def test_what_is_asked_for_wins_and_a_misfit_is_told(ascii_tokenizer, caplog):
    config = SimpleNamespace(model_type="llava_llama")
    yi = ascii_tokenizer("<|im_start|>", "<|im_end|>")
    for asked in ("mpt", "chatml_direct", "plain"):  # written alike, or captions
        assert choose_template(asked, config, yi) == asked
    assert choose_template("v0", config, ascii_tokenizer(bos="<s>", eos="</s>")) == "v0"  # nothing speaks against it
    assert not caplog.records
    assert choose_template("vicuna_v1", config, yi) == "vicuna_v1"
    assert "own seems chatml_direct: the vocabulary has <|im_start|>" in caplog.text


def test_templates_have_upstreams_names():
    names = {name: value for name, value in vars(conversations).items() if isinstance(value, Conversation)}
    named = [value for name, value in names.items() if name.startswith("conv_")]
    assert len(named) == 12
    assert all(any(value is template for template in conv_templates.values()) for value in named)
    assert conversations.conv_vicuna_v1 is conv_templates["vicuna_v1"]
    assert conversations.conv_llava_v0_mmtag is conv_templates["v0_mmtag"]


@pytest.fixture
def shown():
    """A talk as LLaVA's web server keeps it: two questions, the first with a picture."""
    conversation = conv_templates["v1"].copy()
    picture = Image.new("RGB", (40, 20), "red")
    for message in (("<image>\nWhat is it?", picture, "Pad"), "A red picture.", "Sure?", None):
        conversation.append_message(conversation.roles[len(conversation.messages) % 2], message)
    return conversation


def test_a_talk_for_gradio(shown):
    (question, answer), second = shown.to_gradio_chatbot()
    assert question.startswith('<img src="data:image/jpeg;base64,')
    assert question.endswith(">What is it?")
    assert (answer, second) == ("A red picture.", ["Sure?", None])
    content = question.partition("base64,")[2].partition('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (40, 20)


def test_a_talk_as_json(shown):
    values = json.loads(json.dumps(shown.dict()))
    assert values["messages"][0] == ["USER", "<image>\nWhat is it?"]
    assert values.keys() == {"system", "roles", "messages", "offset", "sep", "sep2"}


def test_images_of_a_talk(shown):
    (padded,) = shown.get_images(return_pil=True)
    assert padded.size == (40, 40)
    assert padded.getpixel((0, 0)) == (122, 116, 104)
    (text,) = shown.get_images()
    assert Image.open(io.BytesIO(base64.b64decode(text))).format == "PNG"


@pytest.mark.parametrize(
    ("size", "mode", "expected"),
    [
        ((40, 20), "Default", (40, 20)),
        ((40, 20), "Resize", (336, 336)),
        ((2000, 1500), "Crop", (896, 672)),  # the short side becomes 672
        ((1500, 2000), "Default", (672, 896)),
        ((4000, 1000), "Default", (1344, 336)),  # or less, so that the long one stays at 1344
        ((9000, 1), "Default", (9000, 1)),
    ],
)
def test_large_images_are_made_smaller(shown, size, mode, expected):
    assert shown.process_image(Image.new("RGB", size), mode, return_pil=True).size == expected


def test_another_way_to_make_a_square_is_refused(shown):
    with pytest.raises(ValueError, match="choose Pad, Resize, Crop or Default"):
        shown.process_image(Image.new("RGB", (4, 4)), "Squeeze")


def test_a_template_that_is_not_there_is_refused_by_name(ascii_tokenizer):
    with pytest.raises(ValueError, match="conv_template nonsense is unknown; choose one of default, v0"):
        choose_template("nonsense", SimpleNamespace(model_type="llava_llama"), ascii_tokenizer(), flag="conv_template")
