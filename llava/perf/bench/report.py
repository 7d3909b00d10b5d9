"""From measurements to a table, a chart and JSON."""

from collections.abc import Iterable, Sequence
from pathlib import Path

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
Without another word in transformers' loop; static, graphs, compile: `fast=`. Memory is what a request takes beside the
weights. "Limit": the least time there can be, of each operation its arithmetic or its weights at the speeds above."""


def describe_peaks(device: Device) -> str:
    return (
        f"{device.name}: {device.matmul / 1e12:.3g} TFLOP/s in matrix products, {device.attention / 1e12:.3g} in "
        f"attention, {device.bandwidth / 1e9:.3g} GB/s, {device.launch * 1e6:.3g} µs to start an operation; measured "
        f"in this run."
    )


def stages_table(rows: Sequence[RequestMeasurement]) -> str:
    """A line per way: medians in ms."""
    head = ["way", "batch", "tokens", "preprocess", *COLUMNS]
    head += ["first token (fastest – slowest)", "per token", "answer (fastest – slowest)"]
    lines = [head]
    for row in rows:
        name, stages = [row.way, str(row.batch), str(row.tokens)], row.stages
        if failed(row):
            lines.append([*name, FAILED, *[""] * (len(head) - 4)])
            continue
        parts = [ms(stages[part]) for part in ("preprocess", *COLUMNS)]
        lines.append(
            [*name, *parts, span(stages["first token"]), format_number(1e3 * row.per_token), span(stages["answer"])]
        )
    return to_table(lines)


def work_table(rows: Iterable[RequestMeasurement]) -> str:
    """A line per way: memory, work up to the first token, distance from the limit, and what was prepared before."""
    head = ["way", "batch", "peak MB", "KV MB", "GFLOP", "GB moved"]
    head += ["first token ÷ limit", "per token ÷ limit", "graphs and compiling, s"]
    lines = [head]
    for row in rows:
        first, step = row.costs["first token"], row.costs["per token"]
        work = [format_number(row.kv_bytes / 1e6), format_number(first.flops / 1e9), format_number(first.bytes / 1e9)]
        peak, ratios = "", [FAILED, ""]
        if not failed(row):
            peak = format_number(row.stages["answer"].peak / 1e6) if row.stages["answer"].peak is not None else ""
            ratios = [
                format_number(row.stages["first token"].seconds / first.limit),
                format_number(row.per_token / step.limit),
            ]
        prepared = format_number(row.prepared) if row.prepared > 0.001 else "–"
        lines.append([row.way, str(row.batch), peak, *work, *ratios, prepared])
    return to_table(lines)


def failed(row: RequestMeasurement) -> bool:
    return row.stages["first token"] is None or row.stages["answer"] is None


def calculation_table(rows: Iterable[RequestMeasurement]) -> str:
    """RequestMeasurement time over what `llava.perf.cost` predicts."""
    names = (*COLUMNS, "first token", "per token")
    lines = [["way", "batch", *names]]
    for row in rows:
        cells = []
        for name in names:
            timing = row.stages.get(name)
            seconds = row.per_token if name == "per token" else timing and timing.seconds
            expected = row.costs[name].expected
            cells.append(f"{seconds / expected:.2f}" if seconds and expected else "–")
        lines.append([row.way, str(row.batch), *cells])
    return to_table(lines)


def workload_table(runs: Iterable[WorkloadRun]) -> str:
    """A line per run, its speed against upstream's way with the same and with all tokens."""
    head = ["load", "way", "images", "questions", "of them timed", "seconds for all", "questions/s"]
    head += ["× upstream's way", "× all tokens", "same answers %"]
    lines = [head]
    loop = whole = None
    for run in runs:
        if run.same is None:
            loop = run
            whole = run if run.way.startswith("all") else whole
        same = "" if run.same is None else f"{run.same:.1f}"
        figures = [format_number(run.seconds), format_number(run.questions / run.seconds)]
        figures += [format_number(other.seconds / run.seconds) for other in (loop, whole)]
        lines.append([run.load, run.way, str(run.images), str(run.questions), str(run.timed), *figures, same])
    return to_table(lines, left=2)


def goals_table(
    stages: Sequence[RequestMeasurement], runs: Sequence[WorkloadRun], growths: Sequence[Growth], is_gpu: bool
) -> str:
    """What was aimed at, for each model that was measured, and what came out."""
    found: list[tuple[str, str, float, bool]] = []  # what, of which model, value, met

    def goal(what: str, model: str, value: float, least: float | None = None, most: float | None = None) -> None:
        sign = f"≥ {least}" if most is None else f"≤ {most}"
        found.append((f"{what} {sign}", model, value, value >= least if most is None else value <= most))

    for name in dict.fromkeys(row.shape for row in stages):
        rows = [row for row in stages if row.shape == name and row.batch == 1 and all(row.stages.values())]
        whole, ours = (rows_of(rows, zipped) for zipped in (False, True))
        for published in (row for row in rows if "published" in row.way):
            ratio = tower_seconds(published) / tower_seconds(ours[0])
            goal("vision tower, the published way ÷ ours", name, ratio, least=2 if is_gpu else 1.45)
        if ours:
            share = ours[0].stages["select + merge"].seconds / ours[0].stages["tower"].seconds
            goal("select + merge ÷ tower", name, share, most=0.03)
        if whole and ours:
            fastest = {
                stage: [min(row.stages[stage].seconds for row in rows) for rows in (whole, ours)]
                for stage in ("prefill", "first token")
            }
            goal("prefill, all tokens ÷ zipped", name, fastest["prefill"][0] / fastest["prefill"][1], least=12)
            goal(
                "first token, all tokens ÷ zipped", name, fastest["first token"][0] / fastest["first token"][1], least=6
            )
            best = min(ours, key=lambda row: row.stages["first token"].seconds)
            limit = best.costs["first token"].limit
            goal("zipped first token ÷ limit", name, best.stages["first token"].seconds / limit, most=1.4)
            best = min(ours, key=lambda row: row.per_token)
            goal("zipped decoding step ÷ limit", name, best.per_token / best.costs["per token"].limit, most=1.4)
    by_key = {(run.load, run.shape, run.way.startswith("all"), run.same is None): run for run in runs}
    for (load, name, all_tokens, upstream), run in by_key.items():
        if all_tokens and upstream:
            ours = by_key[load, name, False, False]
            least = 10 if load.startswith("POPE") else 3
            goal(f"{load} run, upstream's way ÷ ours zipped", name, run.seconds / ours.seconds, least=least)
    small, large = (by_key.get(("TextVQA-shaped", f"llava-next-{size}", size == "7b", False)) for size in ("7b", "13b"))
    if small and large:
        goal("TextVQA-shaped run, 7B with all tokens ÷ 13B zipped", "ours", small.seconds / large.seconds, least=2.5)
    for growth in growths:
        if growth.what.startswith("turns"):
            goal("a late turn of a chat ÷ an early one", growth.model, growth.ratio, most=1.1)
    lines = [["goal", "model", "measured", "met"]]
    lines += [[what, model, format_number(value), "yes" if met else "no"] for what, model, value, met in found]
    return to_table(lines, left=2)


def rows_of(rows: Sequence[RequestMeasurement], zipped: bool) -> list[RequestMeasurement]:
    """Ours of the rows: with all tokens, or at the smallest budget; transformers' loop first."""
    rows = [row for row in rows if row.way.startswith("all") != zipped and "published" not in row.way]
    return [row for row in rows if row.tokens == min(row.tokens for row in rows)]


def tower_seconds(row: RequestMeasurement) -> float:
    return row.stages["tower"].seconds + row.stages["select + merge"].seconds


def growth_table(growths: Iterable[Growth]) -> str:
    lines = [["what doubles", "from – to", "model", "seconds of a", "at first", "doubled", "cost ratio"]]
    for growth in growths:
        span = f"{growth.sizes[0]} – {growth.sizes[1]}"
        times = map(format_number, growth.seconds)
        lines.append([growth.what, span, growth.model, growth.unit, *times, f"{growth.ratio:.2f}"])
    return to_table(lines, left=4)


def ms(timing: Timing | None) -> str:
    return FAILED if timing is None else format_number(1e3 * timing.seconds)


def span(timing: Timing) -> str:
    return " ".join([ms(timing), f"({format_number(1e3 * timing.fastest)} – {format_number(1e3 * timing.slowest)})"])


def draw(rows: Sequence[RequestMeasurement], title: str, path: Path) -> bool:
    """Stages of a request as bars, one way under the other, batch 1. Returns False if there is no matplotlib."""
    plt = pyplot()
    if plt is None:
        return False
    rows = [row for row in rows if row.batch == 1 and all(row.stages[name] for name in STAGES)]
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.45 * len(rows)), layout="constrained")
    labels = [f"{row.way} ({row.tokens} tokens)" for row in rows]
    left = [0.0] * len(rows)
    for name in (*COLUMNS, "decoding"):
        if name == "decoding":
            widths = [1e3 * (row.stages["answer"].seconds - row.stages["first token"].seconds) for row in rows]
        else:
            widths = [1e3 * row.stages[name].seconds for row in rows]
        axis.barh(labels, widths, left=left, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set(xlabel="ms of one request, stages timed one by one", title=title)
    axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
