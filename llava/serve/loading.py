"""From the options of `llava.serve.options` to a model that can be talked with."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from llava.conversation import TEMPLATES as TEMPLATES  # for callers that look for it here
from llava.inference.decoding import Decoding
from llava.inference.embedded import EMBEDDED_CHECKPOINT, playground
from llava.inference.loading import load
from llava.inference.prompts import SHORT
from llava.mm_utils import get_model_name_from_path
from llava.model.description import read_config
from llava.utils.environment import device_of, use_one_thread
from llava.utils.processes import ALONE


class ChatOptions(NamedTuple):
    """What was asked for, and what is known of it before it is loaded."""

    checkpoint: str
    name: str  # what to call the model
    is_embedded: bool
    config: Any
    tower: Any  # without weights
    device: str
    decoding: Decoding  # its template unsettled, unless it was asked for
    suffix: str  # a line put under every question
    loading: dict  # options of `load`, device included

    def load(self, **options) -> tuple:
        """(tokenizer, model, image processor)."""
        if self.is_embedded:
            use_one_thread()
        return load(self.checkpoint, **self.loading, **options)


def read_options(args: argparse.Namespace) -> ChatOptions:
    """What `add_talk_options` and `checkpoint` say; None is the embedded model. Raises ValueError if that cannot be."""
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
