"""Write yes/no questions about the evaluation scenes in POPE's own files.

    python -m playground.signs.make_pope

Each scene is asked, for each list, about a colour that one of its signs has and about one that none has: any at random,
one that many scenes have (popular), or one that often comes with those that the scene has (adversarial).
"""

import argparse
import json
import random
from collections import Counter
from itertools import permutations
from pathlib import Path

from playground.signs.make_textvqa import DEFAULT_OUT, SIGNS_FILE
from playground.signs.scenes import COLOURS
from playground.signs.tokenizer import SHORT_ANSWER

QUESTIONS_FILE = "llava_pope_test.jsonl"
ANSWERS_FOLDER = "coco"
LISTS = ("random", "popular", "adversarial")


def make_pope(out: Path) -> int:
    """Write the questions, and the answers of each list, about the scenes in `out`; returns how many there are."""
    scenes = json.loads((out / SIGNS_FILE).read_text())
    colours = {image: [sign["colour"] for sign in scene["signs"]] for image, scene in scenes.items()}
    often = Counter(colour for present in colours.values() for colour in present)
    together = Counter(pair for present in colours.values() for pair in permutations(present, 2))

    asked = []
    (out / ANSWERS_FOLDER).mkdir(exist_ok=True)
    for name in LISTS:
        rng, answers = random.Random(name), []
        for image, present in colours.items():
            absent = [colour for colour in COLOURS if colour not in present]
            rng.shuffle(absent)
            rank = {
                "random": {},
                "popular": often,
                "adversarial": {colour: sum(together[own, colour] for own in present) for colour in absent},
            }[name]
            missing = max(absent, key=lambda colour, rank=rank: rank.get(colour, 0))  # of equals the first
            for label, colour in (("yes", rng.choice(present)), ("no", missing)):
                article = "an" if colour[0] in "aeiou" else "a"
                text, file = f"is there {article} {colour} sign in the image?", f"{image}.png"
                answers.append({"question_id": len(answers) + 1, "image": file, "text": text, "label": label})
                question = {"question_id": len(asked), "image": file, "text": f"{text}\n{SHORT_ANSWER}"}
                asked.append({**question, "category": name})
        (out / ANSWERS_FOLDER / f"coco_pope_{name}.json").write_text(to_jsonl(answers))
    (out / QUESTIONS_FILE).write_text(to_jsonl(asked))
    return len(asked)


def to_jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the scenes (default: %(default)s)")
    out = parser.parse_args(arguments).out
    print(f"{make_pope(out)} questions in {out}")


if __name__ == "__main__":
    main()
