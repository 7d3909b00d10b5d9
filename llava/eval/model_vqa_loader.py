"""Answer a JSONL file of questions, with LLaVA's own flags: `python -m llava.eval.model_vqa_loader`.

Batched and resumable as `llava.eval.run`, which also scores; here only the answers are written.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from llava.eval.answers import AnswerFile, current_shard, read_questions
from llava.eval.chunks import get_chunk
from llava.eval.files import fingerprint
from llava.eval.generate import Decoding, missing_images
from llava.eval.run import QUESTIONS_REFUSED, device_of, fill, positive, status_of, tell
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return status_of(eval_model, parse_arguments(argv))


def eval_model(args: argparse.Namespace) -> int:
    """Answer the questions that have no answer yet; returns the exit status.

    Raises:
        ValueError: bad files, settings or checkpoint, before any work where that can be known.
    """
    decoding = Decoding(args.conv_mode, args.max_new_tokens, args.temperature, args.top_p, args.num_beams)
    questions = list(get_chunk(read_questions(args.question_file), args.num_chunks, args.chunk_idx))
    shard, name = current_shard(), get_model_name_from_path(args.model_path)
    settings = describe_settings(args, decoding, [(q.question_id, q.image, q.text) for q in questions])
    answers = AnswerFile(args.answers_file, questions, settings, shard=shard, model_id=name, overwrite=args.overwrite)
    missing = missing_images(answers.todo, args.image_folder)
    if missing and not args.skip_bad:
        raise ValueError(
            f"{len(missing)} images are not in --image-folder {args.image_folder!r}; the first is {missing[0].image} "
            f"({args.question_file}, line {missing[0].line}). Put them there, or leave them out with --skip-bad."
        )
    loaded = None
    if answers.todo:
        device = device_of("auto", shard)
        loaded = load_pretrained_model(args.model_path, args.model_base, name, device=device)[:3]
    progress = None if shard.index else name
    if not fill(answers, loaded, args.image_folder, decoding=decoding, batch_size=args.batch_size, progress=progress):
        return 0
    tell(f"{len(answers.rows)} of {len(questions)} answers are in {answers.path}.")
    for refusal in answers.refused:
        tell(f"{args.question_file}, line {refusal.question.line}, not answered: {refusal.reason}")
    return QUESTIONS_REFUSED if answers.refused and not args.skip_bad else 0


def describe_settings(args: argparse.Namespace, decoding: Decoding, content: list) -> dict:
    """What must be equal for answers of two runs to be mixed."""
    return {
        "model_path": args.model_path,
        "model_base": args.model_base,
        "weights": fingerprint(args.model_path),
        "image_folder": args.image_folder,
        "questions": f"{len(content)}, sha256 {hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}",
        **asdict(decoding),
    }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.model_vqa_loader",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Answer the questions of a JSONL file. An interrupted run goes on with the same command.",
        epilog="Exit status: 0 done, 1 some questions could not be answered, 2 bad request, 130 interrupted.",
    )
    add = parser.add_argument
    add("--model-path", default="facebook/opt-350m", help="checkpoint: folder or hub id")
    add("--model-base", help="language model that a projector-only or LoRA checkpoint goes on")
    add("--image-folder", default="", help="what `image` is relative to")
    add("--question-file", default="tables/question.jsonl", help="JSONL with question_id, image, text")
    add("--answers-file", default="answer.jsonl", help="JSONL to write")
    add("--conv-mode", default="llava_v1", help="prompt template")
    add("--num-chunks", type=int, default=1, help="parts the questions are cut into")
    add("--chunk-idx", type=int, default=0, help="which part to answer, from 0")
    add("--temperature", type=float, default=0.2, help="0 is greedy; above, answers are sampled")
    add("--top_p", type=float, help="sample from the likeliest tokens that hold this share of the probability")
    add("--num_beams", type=int, default=1, help="beams of beam search")
    add("--max_new_tokens", type=int, default=128, help="longest answer, in tokens")
    add("--batch-size", type=positive, default=16, help="questions at a time")
    add("--skip-bad", action="store_true", help="leave out questions whose image cannot be used, and count them")
    add("--overwrite", action="store_true", help="throw earlier answers away instead of going on from them")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
