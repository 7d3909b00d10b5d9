"""Turn the options of `llava.serve.options` into a model that can be talked with."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from llava.conversation import TEMPLATES as TEMPLATES  # for callers that look for it here
from llava.inference.decoding import Decoding
from llava.inference.embedded import EMBEDDED_CHECKPOINT, playground
from llava.inference.instructions import SHORT
from llava.inference.loading import load
from llava.mm_utils import get_model_name_from_path
from llava.model.description import read_config
from llava.utils.environment import device_of, use_one_thread
from llava.utils.processes import ALONE


class ChatOptions(NamedTuple):
    """The model and the settings of a chat, as they are known before the model is loaded."""

    checkpoint: str
    name: str  # of the model, for people
    is_embedded: bool
    config: Any
    tower: Any  # without weights
    device: str
    decoding: Decoding  # without a template, unless one was named
    suffix: str  # a line added to every question
    loading: dict  # options of `load`, device included

    def load(self, **options) -> tuple[Any, Any, Any]:
        """Load (tokenizer, model, image processor); `options` are of `llava.inference.loading.load`."""
        if self.is_embedded:
            use_one_thread()
        return load(self.checkpoint, **self.loading, **options)


def read_options(args: argparse.Namespace) -> ChatOptions:
    """Read the options of `add_talk_options`, and `checkpoint`, where None is the embedded model.

    Raises:
        ValueError: no such checkpoint, or no such device.
    """
    embedded = playground() / EMBEDDED_CHECKPOINT
    checkpoint = args.checkpoint or str(embedded)
    is_embedded = Path(checkpoint).resolve() == embedded.resolve()
    config, tower = read_config(checkpoint, args.model_base)
    device = device_of(args.device, ALONE)
    return ChatOptions(
        checkpoint=checkpoint,
        name=get_model_name_from_path(checkpoint),
        is_embedded=is_embedded,
        config=config,
        tower=tower,
        device=device,
        decoding=Decoding(args.conv_mode, args.max_new_tokens, args.temperature),
        suffix=(SHORT.strip() if is_embedded else "") if args.suffix is None else args.suffix,
        loading={
            "model_base": args.model_base,
            "load_8bit": args.load_8bit,
            "load_4bit": args.load_4bit,
            "device": device,
        },
    )
