"""Answer the questions of one of MMBench's TSV files, with LLaVA's flags: `python -m llava.eval.model_vqa_mmbench`.

Resumable and batched as `llava.eval.run mmbench`; here only the answers are written. --all-rounds asks each question
with its options in every rotation, where the file holds one of them.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.eval.metrics.mmbench import options_of
from llava.eval.model_vqa_loader import answer, get_chunk, make_parser
from llava.eval.questions import Question
from llava.eval.tasks.base import Data
from llava.eval.tasks.mmbench import folder_of, image_name, question_text, read_rows, unpack
from llava.inference.instructions import LETTER, LETTER_CN
from llava.utils.cli import completed, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(eval_model, parse_arguments(argv))


def eval_model(args) -> int:
    """Answer the questions that have no answer yet; see `llava.eval.model_vqa_loader.eval_model`.

    The images of the file are unpacked into --image-folder, or next to the file.

    Raises:
        ValueError: also for a file that is not MMBench's.
    """
    args = completed(args, parse_arguments([]))
    file = Path(args.question_file)
    args.image_folder = args.image_folder or str(folder_of(file))
    rows = get_chunk([*enumerate(read_rows(file), start=1)], args.num_chunks, args.chunk_idx)
    unpack(Data(file, Path(args.image_folder), None))
    questions, fields = [], {}
    for number, row in rows:
        for turned, marks in rounds(row, all_rounds=args.all_rounds):
            place, index = len(questions), row["index"]
            name = int(index) if index.isdecimal() else index  # a number in LLaVA's answers
            questions.append(Question(place, name, (image_name(row),), question_text(turned), number))
            fields[place] = marks
    letter = LETTER_CN if args.lang == "cn" else LETTER
    return answer(args, questions, prompt_suffix=letter if args.single_pred_prompt else "", fields=fields)


def rounds(row: dict, *, all_rounds: bool) -> Iterator[tuple[dict, dict]]:
    """Turn the options of a row by none, one, two ... places; yields the row and what is noted with its answer.

    `options` are those of the round, and `option_char` the letter that each of them has in the file.
    """
    letters, options = list(options_of(row)), list(options_of(row).values())
    for turn in range(len(options) if all_rounds else 1):
        shown = options[turn:] + options[:turn]
        noted = {"round_id": turn, "options": shown, "option_char": letters[turn:] + letters[:turn]}
        yield {**row, **dict(zip(letters, shown, strict=True))}, noted


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command line."""
    parser = make_parser("model_vqa_mmbench", max_new_tokens=1024, form="one of MMBench's TSV files")
    add = parser.add_argument
    add("--all-rounds", action="store_true", help="ask each question once for every rotation of its options")
    add("--single-pred-prompt", action="store_true", help="ask for the letter of an option alone")
    add("--lang", choices=("en", "cn"), default="en", help="of that request: en, or cn for Chinese")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
