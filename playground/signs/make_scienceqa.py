"""Write questions with choices about the evaluation scenes in ScienceQA's own files, as LLaVA asks them.

    python -m playground.signs.make_scienceqa

They are the questions of the set in TextVQA's files, each with four choices, of which one is right.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from playground.signs.make_textvqa import DEFAULT_OUT, SIGNS_FILE
from playground.signs.scenes import Box, Sign, options, questions
from playground.signs.tokenizer import LETTERS, with_choices

QUESTIONS_FILE = "llava_test_CQM-A.json"
PROBLEMS_FILE = "problems.json"
SPLITS_FILE = "pid_splits.json"


def make_scienceqa(out: Path) -> int:
    """Write the questions, the problems and the split about the scenes in `out`; returns how many there are."""
    entries, problems = [], {}
    for image, signs in read_signs(out):
        rng = random.Random(image)
        for question in questions(signs, seed=0):
            if question.kind == "exists":
                continue  # yes or no: half right without looking
            offered, name = options(question, rng), str(len(problems))
            answer = offered.index(question.answer)
            entries.append(to_entry(name, image, with_choices(question.text, offered), LETTERS[answer]))
            problems[name] = {"question": question.text, "choices": offered, "answer": answer, "hint": ""}
            problems[name] |= {"image": f"{image}.png", "split": "test"}
    for file, content in ((QUESTIONS_FILE, entries), (PROBLEMS_FILE, problems), (SPLITS_FILE, {"test": [*problems]})):
        (out / file).write_text(json.dumps(content, indent=1) + "\n")
    return len(problems)


def read_signs(folder: Path) -> Iterator[tuple[str, tuple[Sign, ...]]]:
    """List each scene's image and its signs."""
    for image, scene in json.loads((folder / SIGNS_FILE).read_text()).items():
        yield image, tuple(Sign(sign["colour"], sign["text"], Box(*sign["box"])) for sign in scene["signs"])


def to_entry(name: str, image: str, text: str, letter: str) -> dict:
    turns = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": letter}]
    return {"id": name, "image": f"{image}.png", "conversations": turns}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the scenes (default: %(default)s)")
    out = parser.parse_args(arguments).out
    print(f"{make_scienceqa(out)} questions in {out}")


if __name__ == "__main__":
    main()
