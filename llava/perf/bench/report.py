"""Write measurements as Markdown tables, and draw them as a chart."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llava.perf.bench.growth import Growth
from llava.perf.bench.stages import STAGES, RequestMeasurement
from llava.perf.bench.timing import Timing
from llava.perf.bench.workload import WorkloadRun
from llava.perf.devices import Device
from llava.utils.plots import pyplot
from llava.utils.tables import format_number, to_table

COLUMNS = ("tower", "select + merge", "project", "prefill")  # drawn one on the other, decoding on top
FAILED = "out of memory"
LEGEND = """All tokens, or kept + merged tokens of a crop; "published" with the tower as in VisionZip's published code.
Without another word in transformers' loop; static, graphs, compile: `fast=`. Memory is what a request takes besides the
weights. "Limit": the least time there can be, of each operation its arithmetic or its weights at the speeds above."""


class Goal(NamedTuple):
    """A ratio that was aimed at, and what was measured of it."""

    what: str
    model: str
    value: float
    is_met: bool


def describe_peaks(device: Device) -> str:
    """Write the measured speeds of a device as a sentence."""
    return (
        f"{device.name}: {device.matmul / 1e12:.3g} TFLOP/s in matrix products, {device.attention / 1e12:.3g} in "
        f"attention, {device.bandwidth / 1e9:.3g} GB/s, {device.launch * 1e6:.3g} µs to start an operation; measured "
        f"in this run."
    )


def stages_table(rows: Sequence[RequestMeasurement]) -> str:
    """Write a table of the stages' median milliseconds, a line per variant."""
    head = ["way", "batch", "tokens", "preprocess", *COLUMNS]
    head += ["first token (fastest – slowest)", "per token", "answer (fastest – slowest)"]
    lines = [head]
    for row in rows:
        name = [row.way, str(row.batch), str(row.tokens)]
        if not row.has_answer:
            lines.append([*name, FAILED, *[""] * (len(head) - 4)])
            continue
        parts = [milliseconds(row.stages[part]) for part in ("preprocess", *COLUMNS)]
        step = format_number(1e3 * row.seconds("per token"))
        lines.append([*name, *parts, span(row.timing("first token")), step, span(row.timing("answer"))])
    return to_table(lines)


def work_table(rows: Iterable[RequestMeasurement]) -> str:
    """Write a table of memory, work up to the first token, distance from the limit, and time of preparation."""
    head = ["way", "batch", "peak MB", "KV MB", "GFLOP", "GB moved"]
    head += ["first token ÷ limit", "per token ÷ limit", "graphs and compiling, s"]
    lines = [head]
    for row in rows:
        first, step = row.costs["first token"], row.costs["per token"]
        work = [format_number(value) for value in (row.kv_bytes / 1e6, first.flops / 1e9, first.bytes / 1e9)]
        peak, ratios = "", [FAILED, ""]
        if row.has_answer:
            bytes_used = row.timing("answer").peak
            peak = "" if bytes_used is None else format_number(bytes_used / 1e6)
            measured = (row.seconds("first token") / first.limit, row.seconds("per token") / step.limit)
            ratios = list(map(format_number, measured))
        prepared = format_number(row.prepared) if row.prepared > 0.001 else "–"
        lines.append([row.way, str(row.batch), peak, *work, *ratios, prepared])
    return to_table(lines)


def calculation_table(rows: Iterable[RequestMeasurement]) -> str:
    """Write a table of measured time over what `llava.perf.cost` predicts."""
    names = (*COLUMNS, "first token", "per token")
    lines = [["way", "batch", *names]]
    for row in rows:
        cells = []
        for name in names:
            expected = row.costs[name].expected
            is_known = row.has_answer if name == "per token" else row.stages.get(name)
            cells.append(f"{row.seconds(name) / expected:.2f}" if is_known and expected else "–")
        lines.append([row.way, str(row.batch), *cells])
    return to_table(lines)


def workload_table(runs: Iterable[WorkloadRun]) -> str:
    """Write a table of the runs: speed, also against upstream's way with the same tokens and with all of them."""
    head = ["load", "way", "images", "questions", "of them timed", "seconds for all", "questions/s"]
    head += ["× upstream's way", "× all tokens", "same answers %"]
    lines = [head]
    loop = whole = None
    for run in runs:
        if run.same is None:
            loop = run
            whole = run if run.way.startswith("all") else whole
        assert loop, "upstream's way is the first of each budget"
        assert whole, "all tokens is the first budget"
        same = "" if run.same is None else f"{run.same:.1f}"
        speeds = (run.seconds, run.questions / run.seconds, loop.seconds / run.seconds, whole.seconds / run.seconds)
        counts = (run.images, run.questions, run.timed)
        lines.append([run.load, run.way, *map(str, counts), *map(format_number, speeds), same])
    return to_table(lines, left=2)


def growth_table(growths: Iterable[Growth]) -> str:
    """Write a table of what doubling costs."""
    lines = [["what doubles", "from – to", "model", "seconds of a", "at first", "doubled", "cost ratio"]]
    for growth in growths:
        sizes = f"{growth.sizes[0]} – {growth.sizes[1]}"
        times = map(format_number, growth.seconds)
        lines.append([growth.what, sizes, growth.model, growth.unit, *times, f"{growth.ratio:.2f}"])
    return to_table(lines, left=4)


def goals_table(
    stages: Sequence[RequestMeasurement], runs: Sequence[WorkloadRun], growths: Sequence[Growth], is_gpu: bool
) -> str:
    """Write a table of the goals that the measurements can answer, with what came out."""
    goals = [*request_goals(stages, is_gpu), *workload_goals(runs), *growth_goals(growths)]
    lines = [["goal", "model", "measured", "met"]]
    lines += [[goal.what, goal.model, format_number(goal.value), "yes" if goal.is_met else "no"] for goal in goals]
    return to_table(lines, left=2)


def at_least(least: float, what: str, model: str, value: float) -> Goal:
    return Goal(f"{what} ≥ {least}", model, value, value >= least)


def at_most(most: float, what: str, model: str, value: float) -> Goal:
    return Goal(f"{what} ≤ {most}", model, value, value <= most)


def request_goals(stages: Sequence[RequestMeasurement], is_gpu: bool) -> Iterator[Goal]:
    """Yield the goals for single requests: stages, and the distance from the limit."""
    for name in dict.fromkeys(row.shape for row in stages):
        rows = [row for row in stages if row.shape == name and row.batch == 1 and all(row.stages.values())]
        whole, ours = (rows_of(rows, zipped) for zipped in (False, True))
        for published in (row for row in rows if "published" in row.way):
            ratio = tower_seconds(published) / tower_seconds(ours[0])
            yield at_least(2 if is_gpu else 1.45, "vision tower, the published way ÷ ours", name, ratio)
        if not ours:
            continue
        share = ours[0].seconds("select + merge") / ours[0].seconds("tower")
        yield at_most(0.03, "select + merge ÷ tower", name, share)
        if not whole:
            continue
        for stage, least in (("prefill", 12), ("first token", 6)):
            ratio = fastest(whole, stage).seconds(stage) / fastest(ours, stage).seconds(stage)
            yield at_least(least, f"{stage}, all tokens ÷ zipped", name, ratio)
        for stage, what in (("first token", "first token"), ("per token", "decoding step")):
            best = fastest(ours, stage)
            yield at_most(1.4, f"zipped {what} ÷ limit", name, best.seconds(stage) / best.costs[stage].limit)


def workload_goals(runs: Sequence[WorkloadRun]) -> Iterator[Goal]:
    """Yield the goals for whole runs of questions."""
    by_key = {(run.load, run.shape, run.way.startswith("all"), run.same is None): run for run in runs}
    for (load, name, all_tokens, upstream), run in by_key.items():
        if all_tokens and upstream:
            ratio = run.seconds / by_key[load, name, False, False].seconds
            yield at_least(
                10 if load.startswith("POPE") else 3, f"{load} run, upstream's way ÷ ours zipped", name, ratio
            )
    small, large = (by_key.get(("TextVQA-shaped", f"llava-next-{size}", size == "7b", False)) for size in ("7b", "13b"))
    if small and large:
        ratio = small.seconds / large.seconds
        yield at_least(2.5, "TextVQA-shaped run, 7B with all tokens ÷ 13B zipped", "ours", ratio)


def growth_goals(growths: Sequence[Growth]) -> Iterator[Goal]:
    """Yield the goal for long conversations."""
    for growth in growths:
        if growth.what.startswith("turns"):
            yield at_most(1.1, "a late turn of a chat ÷ an early one", growth.model, growth.ratio)


def rows_of(rows: Sequence[RequestMeasurement], zipped: bool) -> list[RequestMeasurement]:
    """Pick our variants: with all tokens, or at the smallest budget; transformers' loop first."""
    rows = [row for row in rows if row.way.startswith("all") != zipped and "published" not in row.way]
    return [row for row in rows if row.tokens == min(row.tokens for row in rows)]


def fastest(rows: Sequence[RequestMeasurement], stage: str) -> RequestMeasurement:
    return min(rows, key=lambda row: row.seconds(stage))


def tower_seconds(row: RequestMeasurement) -> float:
    return row.seconds("tower") + row.seconds("select + merge")


def milliseconds(timing: Timing | None) -> str:
    return FAILED if timing is None else format_number(1e3 * timing.seconds)


def span(timing: Timing) -> str:
    """Write the median, fastest and slowest call in milliseconds."""
    fastest, slowest = format_number(1e3 * timing.fastest), format_number(1e3 * timing.slowest)
    return f"{milliseconds(timing)} ({fastest} – {slowest})"


def draw(rows: Sequence[RequestMeasurement], title: str, path: Path) -> bool:
    """Draw the stages of a request as bars, a row per variant, at batch 1. Returns False without matplotlib."""
    plt = pyplot()
    if plt is None:
        return False
    rows = [row for row in rows if row.batch == 1 and all(row.stages[name] for name in STAGES)]
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.45 * len(rows)), layout="constrained")
    labels = [f"{row.way} ({row.tokens} tokens)" for row in rows]
    left = [0.0] * len(rows)
    for name in (*COLUMNS, "decoding"):
        if name == "decoding":
            widths = [1e3 * (row.seconds("answer") - row.seconds("first token")) for row in rows]
        else:
            widths = [1e3 * row.seconds(name) for row in rows]
        axis.barh(labels, widths, left=left, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set(xlabel="ms of one request, stages timed one by one", title=title)
    axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
