"""The benchmarks, a file each: what they ask, where their files come from, how answers are scored.

To add one: a file in this folder, and its name in the two places below. `llava.eval.tasks.base` says what it holds.
"""

from llava.eval.tasks import (
    ai2d,
    chartqa,
    gqa,
    llava_bench,
    mmbench,
    mme,
    mmmu,
    mmvet,
    pope,
    scienceqa,
    seed,
    textvqa,
    vizwiz,
    vqav2,
)
from llava.eval.tasks.base import Data, Task

BENCHMARKS = (  # in the order in which tables show them
    textvqa,
    pope,
    gqa,
    mme,
    scienceqa,
    vqav2,
    vizwiz,
    mmbench,
    seed,
    mmmu,
    mmvet,
    llava_bench,
    ai2d,
    chartqa,
)
TASKS: dict[str, Task] = {task.name: task for benchmark in BENCHMARKS for task in benchmark.TASKS}

__all__ = ["TASKS", "Data", "Task"]
