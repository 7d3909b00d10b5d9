"""The paper's scores (arXiv 2412.04467), to compare one's own with."""

from typing import NamedTuple

from llava.eval.tasks import TASKS


class PaperRow(NamedTuple):
    """A row of the paper's table."""

    tokens: int
    is_tuned: bool  # with a projector tuned on a tenth of LLaVA-1.5's data
    scores: dict[str, float]  # by the name of our task; empty where only the average is kept here
    average: float  # of the scores relative to those with all tokens, in %


class PaperModel(NamedTuple):
    """A model of the paper, and what its checkpoints are known by."""

    name: str
    hidden_size: int  # of the language model, a Llama
    visual_tokens: int  # of an image without VisionZip, at most
    rows: tuple[PaperRow, ...]  # that of all tokens first
    note: str = ""  # what has to be known to compare with it


_TABLE = """
tokens GQA MMB MME POPE SQA VQAv2 TextVQA MMMU SEED MMVet LLaVA-B average
576   61.9 64.7 1862   85.9 69.5 78.5 58.2 36.3 58.6 31.1 66.8 100
192   59.3 63.0 1782.6 85.3 68.9 76.8 57.3 36.6 56.4 31.7 67.7 98.5
192 ‡ 60.1 63.4 1834   84.9 68.2 77.4 57.8 36.2 57.1 32.6 66.7 99.1
128   57.6 62.0 1761.7 83.2 68.9 75.6 56.8 37.9 54.9 32.6 64.8 97.6
128 ‡ 58.9 62.6 1823   83.7 68.3 76.6 57.0 37.3 55.8 32.9 64.8 98.4
64    55.1 60.1 1690   77.0 69.0 72.4 55.5 36.2 52.2 31.7 62.9 94.0
64  ‡ 57.0 61.5 1756   80.9 68.8 74.2 56.0 35.6 53.4 30.2 63.6 95.2
"""


def table_rows() -> tuple[PaperRow, ...]:
    """Read the rows of the paper's table for LLaVA-1.5-7B."""
    rows = []
    header, *lines = _TABLE.strip().splitlines()
    by_column = {task.paper: name for name, task in TASKS.items() if task.paper}
    tasks = [by_column[column] for column in header.split()[1:-1]]
    for line in lines:
        tokens, *values = line.split()
        is_tuned = values[0] == "‡"
        *scores, average = map(float, values[is_tuned:])
        rows.append(PaperRow(int(tokens), is_tuned, dict(zip(tasks, scores, strict=True)), average))
    return tuple(rows)


def average_rows(whole: int, plain: dict[int, float], tuned: dict[int, float] | None = None) -> tuple[PaperRow, ...]:
    """Make rows of which only the averages are kept.

    Args:
        whole: tokens without VisionZip.
        plain: tokens -> average, without tuning.
        tuned: likewise with a tuned projector.
    """
    rows = [(whole, False, 100.0), *((tokens, False, value) for tokens, value in plain.items())]
    rows += [(tokens, True, value) for tokens, value in (tuned or {}).items()]
    return tuple(PaperRow(tokens, is_tuned, {}, average) for tokens, is_tuned, average in rows)


_NEXT_NOTE = (
    "LLaVA-NeXT: the paper's 640, 320 and 160 are 108+20, 54+10 and 27+5 in each of five crops; images of fewer crops "
    "have fewer. A budget per image gives those more tokens than the paper does."
)
_NEXT_TUNED = {640: 98.9, 320: 97.9, 160: 95.5}
PAPER = (
    PaperModel("LLaVA-1.5-7B", 4096, 576, table_rows()),
    PaperModel(
        "LLaVA-1.5-13B",
        5120,
        576,
        average_rows(576, {192: 97.9, 128: 97.0, 64: 93.7}, {192: 98.7, 128: 97.4, 64: 94.8}),
    ),
    PaperModel(
        "LLaVA-NeXT-7B", 4096, 2880, average_rows(2880, {640: 97.6, 320: 95.0, 160: 92.0}, _NEXT_TUNED), _NEXT_NOTE
    ),
    PaperModel("LLaVA-NeXT-13B", 5120, 2880, average_rows(2880, {640: 97.5, 320: 94.7, 160: 91.3}), _NEXT_NOTE),
)
