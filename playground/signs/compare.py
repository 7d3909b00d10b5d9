"""Compare the accuracy of the embedded model before and after its projector was tuned, at the budget of the tuning.

python -m playground.signs.compare playground/checkpoints/llava-signs TUNED
"""

import argparse
from pathlib import Path

from llava.utils.cli import add_verbose, print_once, run_command
from llava.utils.files import read_json


def compare(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    from llava.analysis.in_memory import prepare
    from llava.eval.tasks import TASKS
    from llava.train.saving import load_trained
    from visionzip_patch import VisionZipConfig

    setting = read_json(str(Path(args.tuned, "config.json"))).get("visionzip")
    budget = VisionZipConfig.from_dict(setting) if setting else None
    options = {"limit": None, "question_file": None, "image_folder": None, "annotation_file": None}
    options |= {"device": "cpu", "max_new_tokens": 16, "batch_size": 32, "checkpoint": None, "conv_mode": None}
    print_once("Answering the questions, before and after")
    evaluation = prepare(argparse.Namespace(**options), args.base, TASKS["textvqa"])
    full, before = evaluation.measure(None), evaluation.measure(budget)
    evaluation.model.requires_grad_(False).get_model().mm_projector.requires_grad_(True)
    load_trained("projector", evaluation.model, args.tuned)
    after = evaluation.measure(budget)
    print(f"\n{len(evaluation.questions)} questions          tokens   accuracy %")
    for name, row in (("untuned, all tokens", full), ("untuned, zipped", before), ("tuned, zipped", after)):
        print(f"{name:<22} {row.tokens:>6} {row.accuracy:>12.2f}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="folder of the untuned model")
    parser.add_argument("tuned", help="folder with mm_projector.bin and config.json")
    add_verbose(parser)
    return run_command(compare, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
