"""A conversation that computes only what is new in a turn: `python examples/chat_session.py [CHECKPOINT]`."""

import time

from _common import CHECKPOINT, CONTEXTUAL, DOMINANT, PICTURE
from PIL import Image

from llava.inference.chat import ChatSession
from llava.inference.instructions import SHORT
from llava.model.builder import load_pretrained_model
from visionzip_patch import visionzip

tokenizer, model, processor, _ = load_pretrained_model(CHECKPOINT)


def ask(chat: ChatSession, question: str, *images: Image.Image) -> None:
    start = time.perf_counter()
    print(f"{question} ", end="")
    for piece in chat.ask(question + SHORT, images):
        print(piece, end="", flush=True)
    spent = 1000 * (time.perf_counter() - start)
    print(f"  ({chat.computed} tokens computed, {chat.reused} reused, {spent:.0f} ms)")


with ChatSession(model, tokenizer, processor) as chat:
    ask(chat, "what word is on the green sign?", Image.open(PICTURE))
    ask(chat, "what number is on the black sign?")  # neither the picture nor the first turn is computed again
    visionzip(model, dominant=DOMINANT, contextual=CONTEXTUAL)
    ask(chat, "what word is on the green sign?")  # the picture is encoded anew, what was said stays
