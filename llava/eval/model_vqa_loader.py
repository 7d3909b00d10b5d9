"""Answer a JSONL file of questions, with LLaVA's own flags: `python -m llava.eval.model_vqa_loader`.

Batched and resumable as `llava.eval.run`, which also scores; here only the answers are written.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

from llava.eval.data_options import require_images
from llava.eval.questions import Question, read_questions
from llava.inference.budget import add_budget_options, choose_budget
from llava.utils.cli import (
    EXIT_STATUSES,
    QUESTIONS_REFUSED,
    add_decoding_options,
    add_verbose,
    completed,
    positive,
    print_once,
    run_command,
    whole,
)
from llava.utils.processes import current_shard

T = TypeVar("T")


def split_list(lst: Sequence[T], n: int) -> list[Sequence[T]]:
    """Cut `lst` into `n` runs of ceil(len / n) items; the last ones are shorter, or empty where items run out.

    Raises:
        ValueError: `n` is not positive.
    """
    if n < 1:
        raise ValueError(f"Cannot split {len(lst)} items into {n} chunks; ask for 1 or more.")
    size = max(1, -(-len(lst) // n))
    return [lst[i * size : (i + 1) * size] for i in range(n)]


def get_chunk(lst: Sequence[T], n: int, k: int) -> Sequence[T]:
    """Return the `k`-th of `n` chunks, counted from 0.

    Raises:
        ValueError: `n` is not positive or there is no `k`-th chunk.
    """
    chunks = split_list(lst, n)
    if not 0 <= k < n:
        raise ValueError(f"There is no chunk {k} among {n}: the first is 0, the last {n - 1}.")
    return chunks[k]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(eval_model, parse_arguments(argv))


def eval_model(args) -> int:
    """Answer the questions that have no answer yet; returns the exit status.

    Args:
        args: the options as attributes; those that are not there have their defaults.

    Raises:
        ValueError: bad files, settings or checkpoint, before any work where that can be known.
    """
    args = completed(args, parse_arguments([]))
    return answer(args, get_chunk(read_questions(args.question_file), args.num_chunks, args.chunk_idx))


def answer(
    args: argparse.Namespace,
    questions: Sequence[Question],
    *,
    prompt_suffix: str = "",
    fields: Mapping[int, dict] | None = None,
) -> int:
    """Answer those of `questions` that have no answer yet, as `model_vqa*` do; returns the exit status.

    Args:
        args: the options of `make_parser`.
        questions: all that the answers file is for.
        prompt_suffix: put after every question, and not written into the answers.
        fields: row of a question -> more fields that its answer carries.

    Raises:
        ValueError: bad files, settings or checkpoint, before any work where that can be known.
    """
    # torch and all: not before the flags are known to be right
    from llava.eval.answers import AnswerFile, describe_settings
    from llava.eval.generate import answer_and_merge
    from llava.inference.decoding import Decoding
    from llava.inference.loading import load, read_tokenizer
    from llava.mm_utils import get_model_name_from_path
    from llava.model.description import read_config
    from llava.utils.distributed import process_group
    from llava.utils.environment import device_of

    decoding = Decoding(args.conv_mode, args.max_new_tokens, args.temperature, args.top_p, args.num_beams)
    questions = list(questions)
    config, tower = read_config(args.model_path, args.model_base)
    budget = choose_budget(args, config, tower, usual=False)
    decoding = decoding.settled(config, read_tokenizer(args.model_path, args.model_base))
    settings = describe_settings(
        args.model_path,
        args.model_base,
        tower.vision_tower_name,
        questions,
        args.image_folder,
        visionzip=budget and budget.to_dict(),
        **({"prompt_suffix": prompt_suffix} if prompt_suffix else {}),
        **asdict(decoding),
    )
    shard, name = current_shard(), get_model_name_from_path(args.model_path)
    with process_group(shard):
        answers = AnswerFile(
            args.answers_file,
            questions,
            settings,
            shard=shard,
            model_id=name,
            overwrite=args.overwrite,
            fields=fields,
        )
        if not args.skip_bad:
            ways_out = "Put them there, or leave those questions out, and count them, with --skip-bad."
            require_images(answers.todo, args.question_file, args.image_folder, ways_out)
        loaded = None
        if answers.todo:
            device = device_of("auto", shard)
            loaded = load(args.model_path, model_base=args.model_base, device=device, visionzip=budget)
        options = {"decoding": decoding, "prompt_suffix": prompt_suffix, "batch_size": args.batch_size}
        options["progress"] = None if shard.index else name
        if not answer_and_merge(answers, loaded, args.image_folder, **options):
            return 0
    print_once(f"{len(answers.rows)} of {len(questions)} answers are in {answers.path}.")
    for refusal in answers.refused:
        print_once(f"{args.question_file}, line {refusal.question.line}, not answered: {refusal.reason}")
    return QUESTIONS_REFUSED if answers.refused and not args.skip_bad else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command line."""
    return make_parser("model_vqa_loader", max_new_tokens=128).parse_args(argv)


def make_parser(
    module: str,
    *,
    max_new_tokens: int,
    question_file: str = "tables/question.jsonl",
    form: str = "JSONL with question_id, image, text",
) -> argparse.ArgumentParser:
    """Make a parser with the options that `model_vqa*` share, and upstream's defaults.

    Args:
        module: name of the command.
        max_new_tokens: default of the longest answer.
        question_file: default of the question file.
        form: what a question file holds, for --help.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m llava.eval.{module}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        usage="%(prog)s --model-path CHECKPOINT --question-file FILE [option ...]; --help lists them",
        description="Answer the questions of a file. An interrupted run goes on with the same command.",
        epilog=EXIT_STATUSES,
    )
    add = parser.add_argument
    add("--model-path", default="facebook/opt-350m", help="checkpoint: folder or hub id")
    add("--model-base", help="language model that a projector-only or LoRA checkpoint goes on")
    add("--image-folder", default="", help="what `image` is relative to")
    add("--question-file", default=question_file, help=form)
    add("--answers-file", default="answer.jsonl", help="JSONL to write")
    add("--num-chunks", type=positive, default=1, help="parts the questions are cut into")
    add("--chunk-idx", type=whole, default=0, help="which part to answer, from 0")
    add_decoding_options(parser, max_new_tokens=max_new_tokens)
    add("--batch-size", type=positive, default=16, help="questions at a time")
    add("--skip-bad", action="store_true", help="leave out questions whose image cannot be used, and count them")
    add("--overwrite", action="store_true", help="discard earlier answers instead of going on from them")
    add_verbose(parser)
    add_budget_options(parser, default="what the checkpoint carries, else all tokens")
    return parser


class CustomDataset:
    """Questions as upstream's loader has them: each (ids (T,) with IMAGE_TOKEN_INDEX, pixels, (width, height)).

    For programs that have a loop of their own; `answer` prepares pictures by `llava.inference.preprocess`.

    Args:
        questions: dicts with `image` and `text`.
        model_config: for `image_aspect_ratio`, `image_grid_pinpoints` and `mm_use_im_start_end`.
        conv_mode: prompt template, which upstream reads from its command line; by default the checkpoint's own.
    """

    def __init__(self, questions, image_folder, tokenizer, image_processor, model_config, conv_mode: str | None = None):
        from llava.inference.decoding import Decoding

        self.questions, self.image_folder = questions, image_folder
        self.tokenizer, self.image_processor, self.model_config = tokenizer, image_processor, model_config
        self.decoding = Decoding(conv_mode).settled(model_config, tokenizer)

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple:
        import torch

        from llava.mm_utils import load_image, process_images

        question = self.questions[index]
        image = load_image(os.path.join(self.image_folder, question["image"]))
        ids = self.decoding.ids(question["text"], self.tokenizer, self.model_config)
        return torch.tensor(ids), process_images(image, self.image_processor, self.model_config)[0], image.size


def collate_fn(batch: Sequence[tuple]) -> tuple:
    """Stack items of `CustomDataset`, of one length and shape: (B, T), (B, ...) and a tuple of sizes."""
    import torch

    ids, pixels, sizes = zip(*batch, strict=True)
    return torch.stack(ids), torch.stack(pixels), sizes


def create_data_loader(
    questions, image_folder, tokenizer, image_processor, model_config, batch_size=1, num_workers=4, **options
):
    """Load the items of `CustomDataset` one by one, in `num_workers` processes.

    `options` are as of `CustomDataset`.

    Raises:
        ValueError: `batch_size` is not 1.
    """
    from torch.utils.data import DataLoader

    if batch_size != 1:
        raise ValueError(f"batch_size={batch_size}: this loader gives one question at a time, so 1 alone is possible.")
    dataset = CustomDataset(questions, image_folder, tokenizer, image_processor, model_config, **options)
    return DataLoader(dataset, batch_size=1, num_workers=num_workers, shuffle=False, collate_fn=collate_fn)


if __name__ == "__main__":
    sys.exit(main())
