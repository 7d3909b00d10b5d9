"""The paper's scores (arXiv 2412.04467, LLaVA-1.5-7B), to put beside one's own."""

from typing import NamedTuple

FULL = 576  # tokens of an image without VisionZip


class PaperRow(NamedTuple):
    """A line of its table."""

    tokens: int
    is_tuned: bool  # with a projector tuned on a tenth of LLaVA-1.5's data
    scores: dict[str, float]  # by the name of our task


COLUMNS = ("gqa", "mmbench", "mme", "pope", "scienceqa", "vqav2", "textvqa", "mmmu", "seed", "mmvet", "llava_bench")
_TABLE = """
576   61.9 64.7 1862   85.9 69.5 78.5 58.2 36.3 58.6 31.1 66.8
192   59.3 63.0 1782.6 85.3 68.9 76.8 57.3 36.6 56.4 31.7 67.7
192 ‡ 60.1 63.4 1834   84.9 68.2 77.4 57.8 36.2 57.1 32.6 66.7
128   57.6 62.0 1761.7 83.2 68.9 75.6 56.8 37.9 54.9 32.6 64.8
128 ‡ 58.9 62.6 1823   83.7 68.3 76.6 57.0 37.3 55.8 32.9 64.8
64    55.1 60.1 1690   77.0 69.0 72.4 55.5 36.2 52.2 31.7 62.9
64  ‡ 57.0 61.5 1756   80.9 68.8 74.2 56.0 35.6 53.4 30.2 63.6
"""


def read_table() -> list[PaperRow]:
    rows = []
    for line in _TABLE.strip().splitlines():
        tokens, *values = line.split()
        is_tuned = values[0] == "‡"
        scores = dict(zip(COLUMNS, map(float, values[is_tuned:]), strict=True))
        rows.append(PaperRow(int(tokens), is_tuned, scores))
    return rows


PAPER = read_table()

NOTES = {  # what has to be known to compare a score with the paper's
    "textvqa": "TextVQA: the paper asks with LLaVA's reference OCR tokens (llava_textvqa_val_v051_ocr.jsonl).",
    "scienceqa": "ScienceQA: questions with an image, as in the paper.",
    "seed": "SEED-Bench: with video frames, as in the paper.",
    "pope": "POPE: F1, the mean of its three lists.",
    "mmbench": "MMBench: letters found in the answers here, the official server in the paper; rarely far apart.",
    "mme": "MME: perception + cognition, of 2800.",
    "vqav2": "VQAv2: the validation set here, the server's test-dev in the paper; do not compare them.",
}
