"""Write prompts, and set how answers are drawn and where they end."""

from dataclasses import dataclass, replace

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle, choose_template, conv_templates, image_marker, token_id
from llava.mm_utils import tokenizer_image_token
from llava.model.sampling import end_tokens


@dataclass(frozen=True)
class Decoding:
    """Settings of how answers are drawn.

    Args:
        conv_mode: key of `llava.conversation.conv_templates`. None is the template of the checkpoint that is asked:
            `settled` finds it, and until then there is none.
        max_new_tokens: longest answer, in tokens.
        temperature: 0 is greedy; above, answers are sampled.
        top_p: sample only from the most likely tokens that hold this share of the probability.
        num_beams: beams of beam search; 1 is none.

    Raises:
        ValueError: a value out of range; what is possible is named.
    """

    conv_mode: str | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1

    def __post_init__(self):
        if self.conv_mode is not None and self.conv_mode not in conv_templates:
            raise ValueError(
                f"conv_mode={self.conv_mode!r} is unknown; choose one of {', '.join(sorted(conv_templates))}."
            )
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
        if not 0 <= self.temperature < float("inf"):  # nor nan
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or more, and finite.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1.")

    def settled(self, config, tokenizer) -> "Decoding":
        """Choose the template of a checkpoint, by its config and tokenizer, if none was named."""
        return replace(self, conv_mode=choose_template(self.conv_mode, config, tokenizer))

    @property
    def template(self) -> Conversation:
        """Return the prompt template.

        Raises:
            ValueError: none was named, and no checkpoint was looked at.
        """
        if self.conv_mode is None:
            raise ValueError(
                "This Decoding has no prompt template yet: name one (conv_mode=), or take the checkpoint's own with "
                ".settled(config, tokenizer)."
            )
        return conv_templates[self.conv_mode]

    def prompt(self, question: str, use_start_end: bool = False, images: int = 1) -> str:
        """Write the prompt for a question about some images.

        Images stand where the question says <image>, else before it with blanks between, as lmms-eval shows several to
        LLaVA (generate_until of its model).

        Args:
            question: without a template.
            use_start_end: `mm_use_im_start_end` of the checkpoint.
            images: how many the question is about.
        """
        if images and DEFAULT_IMAGE_TOKEN not in question:
            question = " ".join([DEFAULT_IMAGE_TOKEN] * images) + f"\n{question}"
        conversation = self.template.copy()
        conversation.append_message(
            conversation.roles[0], question.replace(DEFAULT_IMAGE_TOKEN, image_marker(use_start_end))
        )
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def ids(self, question: str, tokenizer, config, images: int = 1) -> list[int]:
        """Tokenize the prompt for a question: ids, with one IMAGE_TOKEN_INDEX for each image."""
        prompt = self.prompt(question, getattr(config, "mm_use_im_start_end", False), images)
        return tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX)

    @property
    def stop(self) -> str:
        """Return the text by which the template ends an answer; it may be empty."""
        conversation = self.template
        two_seps = conversation.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2)
        return (conversation.sep2 or "") if two_seps else conversation.sep

    def cut(self, text: str) -> str:
        """Cut off what a model wrote past its own turn."""
        return text.split(self.stop)[0].strip() if self.stop else text.strip()

    def ends(self, model, tokenizer) -> list[int] | None:
        """List ids that end an answer: the checkpoint's own, and the template's `stop` where that is one token."""
        ids = end_tokens(model.generation_config)
        stop = token_id(tokenizer, self.stop)
        return [*ids, *([stop] if stop is not None and stop not in ids else [])] or None

    def options(self, model, tokenizer) -> dict:
        """Make arguments for `model.generate`; None overrides what a checkpoint's generation_config suggests."""
        sampled = self.temperature > 0
        return {
            "do_sample": sampled,
            "temperature": self.temperature if sampled else None,
            "top_p": self.top_p if sampled else None,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "eos_token_id": self.ends(model, tokenizer),
            "pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        }


GREEDY = Decoding()
