"""Answer ScienceQA's questions, with LLaVA's flags: `python -m llava.eval.model_vqa_science`.

Resumable and batched as `llava.eval.run scienceqa`; here only the answers are written: `llava.eval.eval_science_qa`
scores them.
"""

import argparse
import sys
from collections.abc import Sequence

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.model_vqa_loader import answer, get_chunk, make_parser
from llava.eval.questions import Question
from llava.eval.tasks.scienceqa import read_scienceqa
from llava.inference.instructions import LETTER
from llava.utils.cli import completed, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(eval_model, parse_arguments(argv))


def eval_model(args) -> int:
    """Answer the questions that have no answer yet; see `llava.eval.model_vqa_loader.eval_model`.

    The prompt of an answer begins with <image> where the question has one, by which its scorer knows it.
    """
    args = completed(args, parse_arguments([]))
    suffix = LETTER if args.single_pred_prompt else ""
    questions = get_chunk(read_scienceqa(args.question_file), args.num_chunks, args.chunk_idx)
    return answer(args, [question._replace(text=prompt_of(question) + suffix) for question in questions])


def prompt_of(question: Question) -> str:
    """Write the prompt as upstream notes it: <image> in front where the question has one."""
    return f"{DEFAULT_IMAGE_TOKEN}\n{question.text}" if question.images else question.text


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command line."""
    parser = make_parser(
        "model_vqa_science",
        max_new_tokens=1024,
        question_file="tables/question.json",
        form="llava_test_CQM-A.json",
    )
    add = parser.add_argument
    add("--single-pred-prompt", action="store_true", help="ask for the letter of an option alone")
    add("--answer-prompter", action="store_true", help="accepted for LLaVA's scripts: does nothing, as there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
