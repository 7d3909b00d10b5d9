"""Tune LLaVA with VisionZip: `python -m llava.train.train --recipe configs/finetune_projector.yaml [--flag value ...]`.

Started by torchrun, deepspeed or accelerate, every process takes its part of each batch. The same command continues
an interrupted run.

What upstream has in this module is in `arguments` and `upstream`, and can be imported from here too.
"""

import logging
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from typing import NoReturn

from llava.train.run import Run, parse
from llava.utils.cli import print_once, run_command
from llava.utils.files import make_folder

UPSTREAM = {
    "llava.train.arguments": ("ModelArguments", "DataArguments", "TrainingArguments"),
    "llava.train.llava_trainer": ("LLaVATrainer", "maybe_zero_3", "get_mm_adapter_state_maybe_zero_3"),
    "llava.utils": ("rank0_print",),
    "llava.train.upstream": (
        *("LazySupervisedDataset", "DataCollatorForSupervisedDataset", "make_supervised_data_module"),
        *("preprocess", "preprocess_multimodal", "preprocess_plain"),
        *("preprocess_v1", "preprocess_llama_2", "preprocess_mpt"),
        *("find_all_linear_names", "smart_tokenizer_and_embedding_resize", "safe_save_model_for_hf_trainer"),
        *("get_peft_state_maybe_zero_3", "get_peft_state_non_lora_maybe_zero_3"),
    ),
}
__all__ = ["main", "train", *chain(*UPSTREAM.values())]


def __getattr__(name: str):
    for module, names in UPSTREAM.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(argv: Sequence[str] | None = None, attn_implementation: str | None = None) -> int:
    """Run the command line; returns the exit status. `attn_implementation` holds where the command line names none."""
    argv = sys.argv[1:] if argv is None else argv
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's, at every step
    asked = Namespace(verbose="--verbose" in argv)
    return run_command(lambda _: tune(with_attention(parse(argv), attn_implementation)), asked)


def train(attn_implementation: str | None = None) -> None:
    """Run the command line of this process, as upstream starts a run. Errors are raised."""
    tune(with_attention(parse(), attn_implementation))


def with_attention(run: Run, attn_implementation: str | None) -> Run:
    """Set the attention of a run that names none."""
    run.training.attn_implementation = run.training.attn_implementation or attn_implementation
    return run


def tune(run: Run) -> int:
    """Load, check, tune, save; returns the exit status."""
    from llava.train import loading, session
    from llava.train.trainer import LLaVATrainer, checkpoints

    output = run.output
    if session.is_finished(output, run):
        print_once(f"{output} holds the finished result of this run. --overwrite_output_dir runs it again.")
        return 0

    make_folder(output)  # before anything takes time

    # 1. The data.
    records, counts = session.read_data(run)
    print_once(session.describe(counts))

    # 2. The model, of which one part is trained.
    tokenizer, model, image_processor = loading.load(run)
    model = loading.choose_trainable(model, run)
    part = loading.trained_part(run)

    with session.claimed(output, run):
        # 3. Samples, of pixels or of cached features.
        dataset, collator = session.make_dataset(run, records, tokenizer, model, image_processor)

        # 4. Training.
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
            print_once(f"Going on from {kept[-1]}.")
        trainer.train(resume_from_checkpoint=str(kept[-1]) if kept else None)

        # 5. The result, and a report on it.
        session.save_result(trainer, run, counts)
    return 0


def leave(status: int) -> NoReturn:
    """End this process at once: after all work is done, gloo's threads sometimes abort one that shuts down normally."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
