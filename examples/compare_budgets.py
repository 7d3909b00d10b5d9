"""Answers, tokens and milliseconds at several budgets: `python examples/compare_budgets.py [CHECKPOINT]`.

The embedded model is too small for tokens to make much of a difference in time.
"""

import time
from contextlib import nullcontext
from statistics import median

from _common import CHECKPOINT, CONTEXTUAL, DOMINANT, PICTURE

from llava.inference.batch import generate_batch
from llava.inference.decoding import GREEDY
from llava.inference.instructions import SHORT
from llava.inference.preprocess import read_picture
from llava.model.builder import load_pretrained_model
from visionzip_patch import zipped

questions = ["what word is on the green sign?", "what number is on the black sign?", "how many signs are there?"]
budgets = [None, (3 * DOMINANT, 3 * CONTEXTUAL), (DOMINANT, CONTEXTUAL), (DOMINANT // 2, CONTEXTUAL // 2)]

tokenizer, model, processor, _ = load_pretrained_model(CHECKPOINT, fast="static")
picture = read_picture(PICTURE, processor, model.config)
asked = (model, tokenizer, [question + SHORT for question in questions], [[picture]] * len(questions), GREEDY)

print("tokens     ms  answers")
for budget in budgets:
    with zipped(model, *budget) if budget else nullcontext():  # afterwards the model is as it was
        generate_batch(*asked)  # the first time is slower
        times = []
        for _ in range(9):
            start = time.perf_counter()
            answers = generate_batch(*asked)
            times.append(1000 * (time.perf_counter() - start))
    print(f"{answers.image_tokens[0]:6} {median(times):6.1f}  {', '.join(answers.texts)}")
