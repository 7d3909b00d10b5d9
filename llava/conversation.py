"""Prompt templates: how a talk between a user and an assistant becomes one text, and which one a checkpoint takes.

The texts, spaces and separators are part of every checkpoint trained with them; a changed character changes answers.
"""

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import NamedTuple, cast

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN, TEMPLATE_FIELDS

CLIP_MEAN_COLOUR = (122, 116, 104)

logger = logging.getLogger(__name__)


class SeparatorStyle(Enum):
    """How turns are joined."""

    SINGLE = auto()  # "role: message" and one separator
    TWO = auto()  # "role: message", separators of user and assistant differ
    MPT = auto()  # the role holds its own line break
    PLAIN = auto()  # messages alone
    LLAMA_2 = auto()  # [INST] question [/INST] answer
    CHATML = auto()  # as MPT, with a line break after role and after separator
    LLAMA_3 = auto()  # a header with the role, an empty line, the message without blanks around it, <|eot_id|>


@dataclass
class Conversation:
    """A talk so far, and the style in which it is written down.

    Take a template with `conv_templates[name].copy()`, add messages, ask for `get_prompt()`.

    Args:
        system: opening text.
        roles: names of user and assistant.
        messages: [role, text] pairs. None as text asks the model to go on from there. A text can be a tuple
            (text, image, mode), as LLaVA's web server keeps it. Templates hold a tuple of messages, so that only a
            copy can be appended to.
        offset: how many of the messages are examples that belong to the template.
        sep_style, sep, sep2: how turns are joined; `sep2` closes the assistant's, where that differs.
        version: family of templates; decides how training masks the prompt.
        skip_next: for LLaVA's web server, which notes here that a request is not to be answered.
    """

    system: str
    roles: tuple[str, str]
    messages: Sequence[Sequence] = ()
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    skip_next: bool = False

    def copy(self) -> "Conversation":
        """Return the same talk, free to be continued without changing this one."""
        return replace(self, messages=[list(message) for message in self.messages])

    def __deepcopy__(self, memo) -> "Conversation":
        return self.copy()  # the other way in which callers take a template

    def append_message(self, role: str, message: str | tuple | None) -> None:
        """Add a turn to a copy of a template.

        Args:
            role: one of `roles`.
            message: text, (text, image, mode), or None to ask the model to go on from there.
        """
        cast(list, self.messages).append([role, message])  # a template's own are a tuple, which refuses

    def get_images(self, return_pil: bool = False) -> list:
        """List the images of the user's messages, in order, as `process_image` gives them in the mode of each."""
        shown = [message for _, message in self.messages[self.offset :: 2] if isinstance(message, tuple)]
        return [self.process_image(image, mode, return_pil) for _, image, mode in shown]

    def process_image(
        self,
        image,
        image_process_mode: str,
        return_pil: bool = False,
        image_format: str = "PNG",
        max_len: int = 1344,
        min_len: int = 672,
    ):
        """Make a PIL image ready for a worker or a page; returns it, or without `return_pil` base64 of `image_format`.

        Args:
            image_process_mode: "Pad" makes it square, with bars in CLIP's mean colour; "Resize" makes it 336x336;
                "Default" and "Crop" leave that to the worker.
            max_len, min_len: in pixels. An image with a side above `max_len` is made smaller: its short side becomes
                `min_len`, or less where the long one would still be above `max_len`.

        Raises:
            ValueError: another mode.
        """
        from llava.mm_utils import expand2square  # imports torch, which a template does not need

        if image_process_mode == "Pad":
            image = expand2square(image, CLIP_MEAN_COLOUR)
        elif image_process_mode == "Resize":
            image = image.resize((336, 336))
        elif image_process_mode not in ("Default", "Crop"):
            raise ValueError(f"image_process_mode={image_process_mode!r}: choose Pad, Resize, Crop or Default.")
        short, long = sorted(image.size)
        if long > max_len:
            least = max(1, int(min(max_len * short / long, min_len)))
            most = int(least * long / short)
            image = image.resize((most, least) if image.width > image.height else (least, most))
        if return_pil:
            return image
        content = io.BytesIO()
        image.save(content, format=image_format)
        return base64.b64encode(content.getvalue()).decode()

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """Return the talk as [question, answer] pairs for gradio's chatbot, an image as an <img> with the text."""
        pairs = []
        for i, (_, message) in enumerate(self.messages[self.offset :]):
            if i % 2:
                pairs[-1][1] = message
                continue
            if isinstance(message, tuple):
                text, image, _ = message
                content = self.process_image(image, "Default", image_format="JPEG")
                shown = f'<img src="data:image/jpeg;base64,{content}" alt="picture from the user" />'
                message = shown + text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            pairs.append([message, None])
        return pairs

    def dict(self) -> dict:
        """Return what a server hands on as JSON: system, roles, messages without images, offset and separators."""
        messages = [[role, text[0] if isinstance(text, tuple) else text] for role, text in self.messages]
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": messages,
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }

    def get_prompt(self) -> str:
        """Write the whole talk as one text.

        Raises:
            ValueError: a LLAMA_2 talk that does not begin with a message of the user.
        """
        turns = self._turns()
        seps = (self.sep, self.sep2 or self.sep)
        match self.sep_style:
            case SeparatorStyle.SINGLE:
                said = (f"{role}: {text}{self.sep}" if text else f"{role}:" for role, text in turns)
                return self.system + self.sep + "".join(said)
            case SeparatorStyle.TWO:
                said = (f"{role}: {text}{seps[i % 2]}" if text else f"{role}:" for i, (role, text) in enumerate(turns))
                return self.system + self.sep + "".join(said)
            case SeparatorStyle.MPT:
                said = (f"{role}{text}{self.sep}" if text else role for role, text in turns)
                return self.system + self.sep + "".join(said)
            case SeparatorStyle.CHATML:
                said = (f"{role}\n{text}{self.sep}\n" if text else f"{role}\n" for role, text in turns)
                return (f"{self.system}{self.sep}\n" if self.system else "") + "".join(said)
            case SeparatorStyle.PLAIN:
                return self.system + "".join(f"{text}{seps[i % 2]}" for i, (_, text) in enumerate(turns) if text)
            case SeparatorStyle.LLAMA_2:
                return self._llama_2(turns)
            case SeparatorStyle.LLAMA_3:
                return self._llama_3(turns)
        raise AssertionError(self.sep_style)

    def _turns(self) -> list[tuple[str, str | None]]:
        """Return (role, text) pairs. If the first message brought an image, <image> comes to the front of it."""
        if not self.messages:
            return []
        turns = [(role, text[0] if isinstance(text, tuple) else text) for role, text in self.messages]
        if not isinstance(self.messages[0][1], tuple):
            return turns
        role, text = turns[0]
        text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        if "mmtag" in self.version:  # these show the image in a turn of its own
            shown = [(self.roles[0], f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>"), (self.roles[1], "Received.")]
            return [*shown, (role, text), *turns[1:]]
        return [(role, f"{DEFAULT_IMAGE_TOKEN}\n{text}"), *turns[1:]]

    def _llama_2(self, turns: list[tuple[str, str | None]]) -> str:
        """Write the talk with [INST] around questions, and the system text inside of the first."""
        if turns and (turns[0][0] != self.roles[0] or not turns[0][1]):
            raise ValueError(
                f"A LLAMA_2 conversation begins with a message of {self.roles[0]!r}, which carries the system text; "
                f"this one begins with {turns[0][1]!r} of {turns[0][0]!r}."
            )
        prompt = ""
        for i, (_, text) in enumerate(turns):
            if not text:
                continue
            if i == 0 and self.system:
                text = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n{text}"
            prompt += f"{self.sep}[INST] {text} [/INST]" if i % 2 == 0 else f" {text} {self.sep2}"
        return prompt.removeprefix(self.sep)  # the tokenizer puts the first <s>

    def _llama_3(self, turns: list[tuple[str, str | None]]) -> str:
        """Write the talk as the chat template of Llama-3's tokenizer does, without a tokenizer."""
        if self.system:
            turns = [("<|start_header_id|>system", self.system), *turns]
        headed = ((f"{role}<|end_header_id|>\n\n", text) for role, text in turns)
        said = (f"{head}{text.strip()}{self.sep}" if text else head for head, text in headed)
        return "<|begin_of_text|>" + "".join(said)


_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_TAGGED = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_LLAVA_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_MPT_SYSTEM = (
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)
_EXAMPLE_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
_EXAMPLE_ANSWER = """\
Renewable energy sources are those that can be replenished naturally in a relatively short amount of time, such as \
solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other hand, are finite and will \
eventually be depleted, such as coal, oil, and natural gas. Here are some key differences between renewable and \
non-renewable energy sources:
1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy sources are finite \
and will eventually run out.
2. Environmental impact: Renewable energy sources have a much lower environmental impact than non-renewable sources, \
which can lead to air and water pollution, greenhouse gas emissions, and other negative effects.
3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have lower operational \
costs than non-renewable sources.
4. Reliability: Renewable energy sources are often more reliable and can be used in more remote locations than \
non-renewable sources.
5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different situations and needs, \
while non-renewable sources are more rigid and inflexible.
6. Sustainability: Renewable energy sources are more sustainable over the long term, while non-renewable sources are \
not, and their depletion can lead to economic and social instability.
"""

_HUMAN_ROLES = ("Human", "Assistant")
_USER_ROLES = ("USER", "ASSISTANT")
_CHATML_ROLES = ("<|im_start|>user\n", "<|im_start|>assistant\n")

_v0 = Conversation(
    system=_HUMAN,
    roles=_HUMAN_ROLES,
    messages=(("Human", _EXAMPLE_QUESTION), ("Assistant", _EXAMPLE_ANSWER)),
    offset=2,
)
_vicuna_v1 = Conversation(
    system=_USER, roles=_USER_ROLES, version="v1", sep_style=SeparatorStyle.TWO, sep=" ", sep2="</s>"
)
_llama_2 = Conversation(
    system=_LLAMA_2_SYSTEM,
    roles=_USER_ROLES,
    version="llama_v2",
    sep_style=SeparatorStyle.LLAMA_2,
    sep="<s>",
    sep2="</s>",
)
_mpt = Conversation(
    system=_MPT_SYSTEM, roles=_CHATML_ROLES, version="mpt", sep_style=SeparatorStyle.MPT, sep="<|im_end|>"
)
_chatml_direct = replace(_mpt, system="<|im_start|>system\nAnswer the questions.")
_plain = Conversation(system="", roles=("", ""), sep_style=SeparatorStyle.PLAIN, sep="\n")
_qwen = Conversation(
    system="<|im_start|>system\nYou are a helpful assistant.",
    roles=("<|im_start|>user", "<|im_start|>assistant"),
    version="qwen",
    sep_style=SeparatorStyle.CHATML,
    sep="<|im_end|>",
)
_llama_3 = Conversation(
    system=_LLAVA_LLAMA_2_SYSTEM,
    roles=("<|start_header_id|>user", "<|start_header_id|>assistant"),
    version="llama_v3",
    sep_style=SeparatorStyle.LLAMA_3,
    sep="<|eot_id|>",
)

default_conversation = _vicuna_v1
conv_templates = {
    "default": _v0,
    "v0": _v0,
    "v1": _vicuna_v1,
    "vicuna_v1": _vicuna_v1,
    "llama_2": _llama_2,
    "mistral_instruct": replace(_llama_2, system="", sep=""),
    "chatml_direct": _chatml_direct,
    "mistral_direct": _chatml_direct,
    "plain": _plain,
    "v0_plain": _plain,
    "llava_v0": Conversation(system=_HUMAN, roles=_HUMAN_ROLES),
    "v0_mmtag": Conversation(system=_TAGGED, roles=_HUMAN_ROLES, version="v0_mmtag"),
    "llava_v1": replace(_vicuna_v1, system=_HUMAN),
    "v1_mmtag": replace(_vicuna_v1, system=_TAGGED, version="v1_mmtag"),
    "llava_llama_2": replace(_llama_2, system=_LLAVA_LLAMA_2_SYSTEM),
    "llava_llama_3": _llama_3,
    "mpt": _mpt,
    "qwen_1_5": _qwen,
    "qwen_2": _qwen,
}


# Upstream's names of some of them.
conv_vicuna_v0 = conv_templates["v0"]
conv_vicuna_v1 = conv_templates["vicuna_v1"]
conv_llama_2 = conv_templates["llama_2"]
conv_mistral_instruct = conv_templates["mistral_instruct"]
conv_chatml_direct = conv_templates["chatml_direct"]
conv_mpt = conv_templates["mpt"]
conv_llava_plain = conv_templates["plain"]
conv_llava_v0 = conv_templates["llava_v0"]
conv_llava_v0_mmtag = conv_templates["v0_mmtag"]
conv_llava_v1 = conv_templates["llava_v1"]
conv_llava_v1_mmtag = conv_templates["v1_mmtag"]
conv_llava_llama_2 = conv_templates["llava_llama_2"]

# Which template a checkpoint takes. In order: what its config.json says, what its tokenizer shows, the language model.

MARKS = {  # in a tokenizer's chat template or vocabulary -> template, by language model; "" is any other
    "<|start_header_id|>": {"": "llava_llama_3"},
    "<|im_start|>": {"llava_qwen": "qwen_1_5", "": "chatml_direct"},
    "[INST]": {"llava_mistral": "mistral_instruct", "": "llava_llama_2"},
    "ASSISTANT:": {"": "vicuna_v1"},
}
TEMPLATES = {  # LLaVA's own by language model, where nothing else says; LLaMA's have several
    "llava_mistral": "mistral_instruct",
    "llava_qwen": "qwen_1_5",
}


class Template(NamedTuple):
    """Which template a checkpoint takes, and how that is known."""

    name: str  # key of `conv_templates`
    reason: str
    is_assumed: bool = False  # nothing in the checkpoint says so


def template_for(config, tokenizer) -> Template:
    """Find the template of a checkpoint in its config and its tokenizer; a name or a path never decides.

    Args:
        config: the model's, of one of our classes.
        tokenizer: the model's; its chat template and its vocabulary are looked at.
    """
    if found := recorded_template(config) or marked_template(config, tokenizer):
        return found
    said = next((f"{field} {name!r} is unknown" for field, name in recorded(config) if name not in conv_templates), "")
    kind = getattr(config, "model_type", None) or ""
    if name := TEMPLATES.get(kind):
        return Template(name, said or f"the tokenizer shows none, and LLaVA's {kind} models take it", is_assumed=True)
    is_llama = (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>") and not chat_template(tokenizer)
    if is_llama and not said:
        return Template("vicuna_v1", "the tokenizer is LLaMA's without a chat template, as Vicuna's is")
    return Template("vicuna_v1", said or "the tokenizer shows none that is known here", is_assumed=True)


def choose_template(asked: str | None, config, tokenizer, flag: str = "--conv-mode") -> str:
    """Choose the template that was asked for, else the checkpoint's; warn, once, where this is assumed or does not fit.

    Args:
        asked: key of `conv_templates`, which is taken whatever the checkpoint says.
        config, tokenizer: as for `template_for`.
        flag: by which the user can choose another.

    Raises:
        ValueError: there is no template of the name that was asked for.
    """
    if asked:
        if asked not in conv_templates:
            raise ValueError(f"{flag} {asked} is unknown; choose one of {', '.join(conv_templates)}.")
        own = recorded_template(config) or marked_template(config, tokenizer)
        styles = [conv_templates[name].sep_style for name in (asked, own.name if own else asked)]
        if own and SeparatorStyle.PLAIN not in styles and styles[0] is not styles[1]:
            warn(f"The prompt template is {asked}, as asked. The checkpoint's own seems {own.name}: {own.reason}.")
        return asked
    found = template_for(config, tokenizer)
    if found.is_assumed:
        warn(
            f"The checkpoint does not say its prompt template: {found.name} is assumed ({found.reason}). If it was "
            f"trained with another, choose that with {flag}: {', '.join(conv_templates)}."
        )
    return found.name


def recorded(config) -> list[tuple[str, str]]:
    """List the fields of a config that name a template, known or not; a mere `version` may be that of anything."""
    values = [(field, getattr(config, field, None)) for field in TEMPLATE_FIELDS]
    given = [(field, name) for field, name in values if isinstance(name, str) and name]
    return [(field, name) for field, name in given if name in conv_templates or field != "version"]


def recorded_template(config) -> Template | None:
    """Return the template that config.json names; "plain" is for captions, nothing can be asked with it."""
    for field, name in recorded(config):
        if name in conv_templates and conv_templates[name].sep_style is not SeparatorStyle.PLAIN:
            return Template(name, f"its config.json has {field} {name!r}")
    return None


def marked_template(config, tokenizer) -> Template | None:
    """Return the template that the tokenizer shows, by its chat template, else by its vocabulary."""
    written, kind = chat_template(tokenizer), getattr(config, "model_type", None) or ""
    for mark, names in MARKS.items():
        if mark in written:
            return Template(names.get(kind, names[""]), f"the tokenizer's chat template has {mark}")
    for mark, names in MARKS.items():
        if token_id(tokenizer, mark) is not None:
            return Template(names.get(kind, names[""]), f"the vocabulary has {mark}")
    return None


def chat_template(tokenizer) -> str:
    """Return the chat template of a tokenizer; of several, all of them; "" if there is none."""
    found = getattr(tokenizer, "chat_template", None) or ""
    return "\n".join(found.values()) if isinstance(found, dict) else found


def token_id(tokenizer, text: str) -> int | None:
    """Return the id of a text that is one token of the vocabulary, else None."""
    found = tokenizer.convert_tokens_to_ids(text)
    return found if found is not None and tokenizer.convert_ids_to_tokens(found) == text else None


def warn(message: str) -> None:
    """Warn once, as all of the library does."""
    from visionzip_patch.once import warn_once  # now: its package imports torch, and templates alone need none

    warn_once(logger, message)


def image_marker(use_start_end: bool) -> str:
    """Write the placeholder of one image as it stands in a prompt.

    Args:
        use_start_end: `mm_use_im_start_end` of the checkpoint: whether one more token stands on either side.

    Returns:
        "<image>" or "<im_start><image><im_end>".
    """
    if use_start_end:
        return DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
    return DEFAULT_IMAGE_TOKEN
