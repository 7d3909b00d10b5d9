"""Tune LLaVA with VisionZip: `python -m llava.train.train --recipe configs/finetune_projector.yaml [--flag value ...]`.

Started by torchrun, deepspeed or accelerate, every process takes its part of each batch. The same command goes on where
an interrupted run was stopped.
"""

import logging
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from llava.cli import status_of, tell
from llava.files import make_folder
from llava.train.arguments import Run, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's, at every step
    return status_of(lambda _: train(parse(argv)), Namespace(verbose="--verbose" in argv))


def train(run: Run) -> int:
    """Load, check, tune, save; returns the exit status."""
    from llava.train import loading, session
    from llava.train.trainer import LLaVATrainer, checkpoints

    output = Path(run.training.output_dir)
    if session.is_finished(output, run):
        tell(f"{output} holds the finished result of this run. --overwrite_output_dir runs it again.")
        return 0

    make_folder(output)  # before anything takes time

    # 1. What there is to learn from.
    records, counts = session.read_data(run)
    tell(session.describe(counts))

    # 2. The model, of which one part is to move.
    tokenizer, model, image_processor = loading.load(run)
    model = loading.choose_trainable(model, run)
    part = loading.trained_part(run)

    with session.claimed(output, run):
        # 3. Samples, from pixels or from what the tower has made of them once.
        dataset, collator = session.make_dataset(run, records, tokenizer, model, image_processor)

        # 4. Learn.
        trainer = LLaVATrainer(
            model,
            part=part,
            args=run.training,
            train_dataset=dataset,
            data_collator=collator,
            processing_class=tokenizer,
        )
        kept = checkpoints(output)
        if kept:
            tell(f"Going on from {kept[-1]}.")
        trainer.train(resume_from_checkpoint=str(kept[-1]) if kept else None)

        # 5. Keep the result, and what can be told about it.
        session.save_result(trainer, run, counts)
    return 0


def leave(status: int) -> NoReturn:
    """End this process at once: gloo's threads sometimes abort one that takes itself apart, after all work is done."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
