"""The console command `visionzip`, also `python -m llava`: every feature of the project is one of its verbs.

Imports nothing heavy: a list of verbs must not wait for torch.
"""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from llava.utils.cli import BAD_REQUEST, named_program


class Verb(NamedTuple):
    """One feature of the project."""

    module: str  # whose `main(argv)` does it; it runs by `python -m` as well
    about: str


VERBS = {
    "ask": Verb("llava.serve.ask", "ask one question about one picture or several"),
    "chat": Verb("llava.serve.cli", "talk about pictures in the terminal"),
    "demo": Verb("llava.serve.demo", "compare all tokens and few in the browser"),
    "visualize": Verb("llava.visualize.__main__", "draw what the vision tower sees, and what is kept"),
    "eval": Verb("llava.eval.run", "run a benchmark and score the answers"),
    "report": Verb("llava.eval.report", "put all scores into one table, next to the paper's"),
    "data": Verb("llava.eval.data", "show which benchmarks' files are there, and fetch them"),
    "judge": Verb("llava.eval.judge", "have free answers graded by a language model"),
    "sweep": Verb("llava.analysis.sweep", "measure accuracy against tokens, selector by selector"),
    "bench": Verb("llava.perf.bench.__main__", "measure speed with all tokens and few, side by side"),
    "cost": Verb("llava.perf.cost", "calculate what a request costs, without a GPU"),
    "tune": Verb("llava.train.train", "tune the projector, or more, on LLaVA's data"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that comes first, with the arguments after it; returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    name, *rest = argv
    if name == "--version":
        print(f"visionzip {installed_version()}")
        return 0
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"visionzip: there is no verb {name!r}.{hint}\n\n{overview()}", file=sys.stderr)
        return BAD_REQUEST
    with named_program(f"visionzip {name}"):
        return import_module(VERBS[name].module).main(rest)


def overview() -> str:
    """List the verbs, a line each."""
    width = max(map(len, VERBS))
    lines = [f"  {name:{width}}  {verb.about}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: visionzip VERB [argument ...]",
            "",
            "LLaVA with VisionZip: an image becomes 64 tokens in place of 576. VERB --help lists what a verb takes.",
            "Most of them use the embedded model if no checkpoint is named.",
            "",
            *lines,
            "",
            "  --version, --help",
        ]
    )


def installed_version() -> str:
    """Return the version of the installed package, or say that it runs from its source."""
    try:
        return version("llava-visionzip")
    except PackageNotFoundError:
        return "(not installed: run from its source)"


if __name__ == "__main__":
    sys.exit(main())
