"""Write training data of sign scenes in LLaVA's instruction format.

    python -m playground.signs.make_instructions

Its scenes come from seeds between FIRST_SEED and HELD_OUT: the embedded model was trained on scenes below them, and
evaluation sets lie above. A record asks one question, as the evaluation does, and several records share a picture. As
in LLaVA's own mix, some have no picture and ids are of mixed type.
"""

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.utils.cli import add_verbose, positive, run_command
from llava.utils.files import drop_lock, make_folder, read_json, take_lock, write_json
from playground.signs.make_textvqa import SEEDS_PER_SET
from playground.signs.scenes import HELD_OUT, Scene, make_scene, questions
from playground.signs.tokenizer import SHORT_ANSWER

RECORDS_FILE = "llava_instruct.json"
CAPTIONS_FILE = "captions.json"
IMAGE_FOLDER = "images"
MADE_WITH_FILE = "made_with.json"
DEFAULT_OUT = Path(__file__).parents[1] / "data" / "signs_instruct"
DEFAULT_IMAGES = 2000
FIRST_SEED = HELD_OUT // 2
SETS = (HELD_OUT - FIRST_SEED) // SEEDS_PER_SET
TEXT_ONLY_EVERY = 3  # scenes: 6 % of the records


def make_instructions(out: Path, *, seed: int, images: int, overwrite: bool = False) -> int:
    """Write records, captions, pictures and the numbers they were made with; returns the number of records.

    `out` appears when all of it is written and not before. If it is there with the same numbers, nothing is done.

    Args:
        out: folder, new or empty or made by this function.
        seed: 0 to 499; sets of different seeds share no scene.
        images: 1 to 1,000,000.
        overwrite: first throw away what an earlier call made.

    Raises:
        ValueError: a number out of its range, a folder that holds something else, or another process at work there.
    """
    if not 0 <= seed < SETS:
        raise ValueError(f"seed={seed} is not one of the {SETS} instruction sets. Give 0 to {SETS - 1}.")
    if not 1 <= images <= SEEDS_PER_SET:
        raise ValueError(f"images={images}: an instruction set holds 1 to {SEEDS_PER_SET} images.")
    numbers = {"seed": seed, "images": images}
    first = FIRST_SEED + seed * SEEDS_PER_SET
    make_folder(out.parent)
    lock, draft = out.with_name(f"{out.name}.lock"), out.with_name(f".{out.name}.unfinished")
    held = take_lock(lock)
    try:
        made = _read_made_with(out)
        if made and not overwrite:
            records = made.pop("records")
            if made != numbers:
                raise ValueError(f"{out} was made with {made}, not {numbers}. Choose another --out, or --overwrite.")
            return records
        shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
        if out.exists():
            out.rename(draft)  # so that what is half deleted never looks whole
            shutil.rmtree(draft)
        records = _write(draft, range(first, first + images))
        write_json(draft / MADE_WITH_FILE, {**numbers, "records": records})
        draft.rename(out)
        return records
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        drop_lock(held, lock)


def make_records(scene: Scene, seed: int) -> list[dict]:
    """Make the records of the scene of `seed`, one question each; for some scenes also one record without image."""
    *asked, yes, no = questions(scene.signs, seed)
    asked.append(yes if seed % 2 else no)  # one about existence, as often true as not
    image = f"sign{seed}"
    records = []
    for number, question in enumerate(asked):
        turns = _turns(f"{DEFAULT_IMAGE_TOKEN}\n{question.text}", question.answer)
        records.append({"id": f"{image}-{number}", "image": f"{image}.png", "conversations": turns})
    if seed % TEXT_ONLY_EVERY == 0:
        sign, question = scene.signs[0], asked[0]  # what is on it
        turns = _turns(f"the {sign.colour} sign says {sign.text}. {question.text}", question.answer)
        records.append({"id": seed, "conversations": turns})
    return records


def make_caption(scene: Scene, seed: int) -> dict:
    """Make a record in the form of LLaVA's pretraining data: an image and its caption."""
    said = " ".join(f"the {sign.colour} sign says {sign.text}." for sign in scene.signs)
    turns = [{"from": "human", "value": DEFAULT_IMAGE_TOKEN}, {"from": "gpt", "value": said}]
    return {"id": f"caption{seed}", "image": f"sign{seed}.png", "conversations": turns}


def _turns(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": f"{question}\n{SHORT_ANSWER}"}, {"from": "gpt", "value": answer}]


def _read_made_with(out: Path) -> dict | None:
    """Read what an earlier call noted in `out`, None if it is empty. Raises ValueError if it holds other files."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MADE_WITH_FILE).exists():
        raise ValueError(f"{out} holds something else (there is no {MADE_WITH_FILE} in it). Choose another --out.")
    return read_json(out / MADE_WITH_FILE)


def _write(folder: Path, seeds: range) -> int:
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    records, captions = [], []
    for seed in tqdm(seeds, desc="instructions", unit="image", dynamic_ncols=True):
        scene = make_scene(seed)
        # The grain of the scenes hardly shrinks: more effort takes twice the time and saves 3 %.
        Image.fromarray(scene.image).save(folder / IMAGE_FOLDER / f"sign{seed}.png", compress_level=1)
        records += make_records(scene, seed)
        captions.append(make_caption(scene, seed))
    write_json(folder / CAPTIONS_FILE, captions)
    write_json(folder / RECORDS_FILE, records)
    return len(records)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=DEFAULT_OUT, help="folder to write (default: %(default)s)")
    add("--seed", type=int, default=0, help=f"which set, 0 to {SETS - 1} (default: %(default)s)")
    add("--images", type=positive, default=DEFAULT_IMAGES, help="number of scenes (default: %(default)s)")
    add("--overwrite", action="store_true", help="throw away a set made with other numbers")
    add_verbose(parser)
    return run_command(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    fresh = args.overwrite or not (args.out / MADE_WITH_FILE).exists()
    records = make_instructions(args.out, seed=args.seed, images=args.images, overwrite=args.overwrite)
    print(f"{'Made' if fresh else 'Already there'}: {records} records about {args.images} images in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
