"""Answer a JSONL file of questions, with LLaVA's own flags: `python -m llava.eval.model_vqa_loader`.

Batched and resumable as `llava.eval.run`, which also scores; here only the answers are written.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from llava.cli import (
    EXIT_STATUSES,
    QUESTIONS_REFUSED,
    add_conv_mode,
    add_verbose,
    not_negative,
    positive,
    share,
    status_of,
    tell,
    whole,
)
from llava.eval.chunks import get_chunk
from llava.eval.cli import require_images
from llava.eval.questions import read_questions
from llava.inference.budget import add_budget_options, budget_of, carried_budget, require_possible
from llava.shard import current_shard


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return status_of(eval_model, parse_arguments(argv))


def eval_model(args: argparse.Namespace) -> int:
    """Answer the questions that have no answer yet; returns the exit status.

    Raises:
        ValueError: bad files, settings or checkpoint, before any work where that can be known.
    """
    # torch and all: not before the flags are known to be right
    from llava.eval.answers import AnswerFile, describe_settings, process_group
    from llava.eval.generate import Decoding, answer_and_merge
    from llava.eval.loading import device_of, load, read_tokenizer
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import read_config

    decoding = Decoding(args.conv_mode, args.max_new_tokens, args.temperature, args.top_p, args.num_beams)
    questions = list(get_chunk(read_questions(args.question_file), args.num_chunks, args.chunk_idx))
    config, tower = read_config(args.model_path, args.model_base)
    if budget := budget_of(args, carried_budget(tower)):
        require_possible(budget, config, tower)
    decoding = decoding.settled(config, read_tokenizer(args.model_path, args.model_base))
    settings = describe_settings(
        args.model_path,
        args.model_base,
        tower.vision_tower_name,
        questions,
        args.image_folder,
        visionzip=budget and budget.to_dict(),
        **asdict(decoding),
    )
    shard, name = current_shard(), get_model_name_from_path(args.model_path)
    with process_group(shard):
        answers = AnswerFile(
            args.answers_file, questions, settings, shard=shard, model_id=name, overwrite=args.overwrite
        )
        if not args.skip_bad:
            ways_out = "Put them there, or leave those questions out, and count them, with --skip-bad."
            require_images(answers.todo, args.question_file, args.image_folder, ways_out)
        loaded = None
        if answers.todo:
            device = device_of("auto", shard)
            loaded = load(args.model_path, model_base=args.model_base, device=device, visionzip=budget)
        options = {"decoding": decoding, "batch_size": args.batch_size, "progress": None if shard.index else name}
        if not answer_and_merge(answers, loaded, args.image_folder, **options):
            return 0
    tell(f"{len(answers.rows)} of {len(questions)} answers are in {answers.path}.")
    for refusal in answers.refused:
        tell(f"{args.question_file}, line {refusal.question.line}, not answered: {refusal.reason}")
    return QUESTIONS_REFUSED if answers.refused and not args.skip_bad else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.model_vqa_loader",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        usage="%(prog)s --model-path CHECKPOINT --question-file FILE [option ...]; --help lists them",
        description="Answer the questions of a JSONL file. An interrupted run goes on with the same command.",
        epilog=EXIT_STATUSES,
    )
    add = parser.add_argument
    add("--model-path", default="facebook/opt-350m", help="checkpoint: folder or hub id")
    add("--model-base", help="language model that a projector-only or LoRA checkpoint goes on")
    add("--image-folder", default="", help="what `image` is relative to")
    add("--question-file", default="tables/question.jsonl", help="JSONL with question_id, image, text")
    add("--answers-file", default="answer.jsonl", help="JSONL to write")
    add_conv_mode(parser)
    add("--num-chunks", type=positive, default=1, help="parts the questions are cut into")
    add("--chunk-idx", type=whole, default=0, help="which part to answer, from 0")
    add("--temperature", type=not_negative, default=0.2, help="0 is greedy; above, answers are sampled")
    add("--top_p", type=share, help="sample from the likeliest tokens that hold this share of the probability")
    add("--num_beams", type=positive, default=1, help="beams of beam search")
    add("--max_new_tokens", type=positive, default=128, help="longest answer, in tokens")
    add("--batch-size", type=positive, default=16, help="questions at a time")
    add("--skip-bad", action="store_true", help="leave out questions whose image cannot be used, and count them")
    add("--overwrite", action="store_true", help="throw earlier answers away instead of going on from them")
    add_verbose(parser)
    add_budget_options(parser, default="what the checkpoint carries, else all tokens")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
