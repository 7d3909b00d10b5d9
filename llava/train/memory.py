"""Calculate the GPU memory of tuning only the projector: `python -m llava.train.memory [--model 7b]`.

Prints a Markdown table: LLaVA-1.5-7B and 13B, on ZeRO-2, ZeRO-3, ZeRO-3 with offload, and a 4-bit language model, and
the largest batch on cards of 24 and 80 GiB. What it counts, per GPU:

- Weights in bf16; 4-bit ones in NF4 with double quantization, except embeddings, head, tower and projector.
- Of the projector: gradients in bf16; in fp32 gradients, a copy of the weights and AdamW's two moments, shared out.
- What autograd keeps. The language model is frozen, but gradients pass through it on their way to the projector. A
  frozen linear layer keeps nothing but its weight, which is there anyway. A decoder layer keeps two RMSNorm inputs and
  their scales in fp32; queries, keys, values, result and log-sum-exp of attention (flash and memory-efficient kernels
  alike, on a GPU and on a CPU); the padding mask; three activations of the MLP. DeepSpeed's own linear layers, which
  ZeRO-3 needs, keep their inputs too.
- Logits of labelled positions only, as `llava.model.loss` computes them.
- DeepSpeed's two gradient buckets, sized by its "auto" (hidden² elements); under ZeRO-3, LIVE parameters gathered at a
  time; for 4-bit weights, one matrix in bf16.

The tower runs before the language model and keeps nothing, so it does not add to the peak. RESERVE is left free for the
CUDA context and for fragmentation.
"""

import argparse
import sys
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from llava.model.loss import ROWS
from llava.perf import sizes
from llava.perf.sizes import ModelSize, find_size
from llava.utils.cli import add_verbose, positive, run_command
from llava.utils.tables import to_table

METHODS = ("ZeRO-2", "ZeRO-3", "ZeRO-3 offload", "4-bit base")
GIB = 2**30
CARDS = (24, 80)  # GiB
RESERVE = 1.5 * GIB
LIVE = 1_000_000_000  # stage3_max_live_parameters, DeepSpeed's default
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes of a weight: 4 bits, a byte per block of 64, fp32 per 256 blocks


SIZES = {"7B": sizes.SIZES["llava-1.5-7b"], "13B": sizes.SIZES["llava-1.5-13b"]}


class Parameters(NamedTuple):
    """How many parameters each part of a model has."""

    matrices: int  # of the decoder layers: what is quantized
    others: int  # embedding, head and norms of the language model
    tower: int
    projector: int


class Memory(NamedTuple):
    """The bytes in use on one GPU at the peak of a step, by purpose."""

    llm: float
    tower: float
    projector: float
    optimizer: float  # and gradients
    workspace: float
    activations: float  # kept from forward for backward
    transient: float  # of the loss, or of backward's first step

    @property
    def total(self) -> float:
        return sum(self)


def parameters(size: ModelSize) -> Parameters:
    """Count the parameters: exactly for Llama and Mistral, without the biases of Qwen's attention, 0.01 %."""
    hidden = size.hidden
    attention = 2 * hidden**2 + 2 * hidden * size.head_dim * size.kv_heads
    return Parameters(
        matrices=size.layers * (attention + 3 * hidden * size.intermediate),
        others=(1 if size.is_tied else 2) * size.vocab * hidden + (2 * size.layers + 1) * hidden,
        tower=size.tower_parameters,
        projector=(size.tower_hidden + 1) * hidden + (hidden + 1) * hidden,
    )


def activation_bytes(
    size: ModelSize,
    tokens: int,
    batch: int = 1,
    dtype_bytes: int = 2,
    *,
    checkpointing: bool = False,
    keeps_inputs: bool = False,
) -> int:
    """Return the bytes that autograd keeps of the language model between forward and backward.

    Args:
        tokens: length of a sequence, image and text.
        checkpointing: only the inputs of the layers are kept, and one layer at a time is computed again.
        keeps_inputs: frozen linear layers keep their inputs (DeepSpeed ZeRO-3).
    """
    norms = 2 * (4 * size.hidden + 4)
    attention = dtype_bytes * (4 * size.hidden + tokens) + 4 * size.heads  # q, k, v, result; mask; log-sum-exp
    mlp = dtype_bytes * 3 * size.intermediate  # gate, its SiLU, up
    inputs = dtype_bytes * (2 * size.hidden + size.intermediate) if keeps_inputs else 0  # both norms' results; down's
    layer = norms + attention + mlp + inputs
    layers = size.layers * dtype_bytes * size.hidden + layer if checkpointing else size.layers * layer
    ends = (2 * dtype_bytes + 4) * size.hidden  # embeddings, last norm, its result
    return batch * tokens * (layers + ends)


def logit_bytes(size: ModelSize, positions: int) -> int:
    """Return the most bytes that `llava.model.loss.next_token_loss` holds for `positions` labels.

    Logits and their gradients in bf16; for ROWS of them at a time, log-probabilities and two gradients in fp32.
    """
    at_once = min(positions, ROWS)
    return size.vocab * (4 * positions + (12 - 2) * at_once)


def all_logit_bytes(size: ModelSize, positions: int) -> int:
    """Return the same for a loss that takes the logits of all positions at once."""
    return size.vocab * positions * (2 + 12)


def peak(
    size: ModelSize,
    method: str = "ZeRO-2",
    *,
    image_tokens: int = 64,
    text: int = 256,
    labelled: int = 128,
    batch: int = 1,
    gpus: int = 8,
    checkpointing: bool = False,
) -> Memory:
    """Calculate the memory of one GPU at the peak of a step, where backward begins.

    Args:
        method: one of METHODS.
        image_tokens, text, labelled: positions of a sequence: of its image, of its text, and those with a label.
        batch: sequences on this GPU at a time.
        gpus: how many share optimizer and, under ZeRO-3, weights.
    """
    count = parameters(size)
    is_zero3, is_offload, is_4bit = method.startswith("ZeRO-3"), method == "ZeRO-3 offload", method == "4-bit base"
    share = 0 if is_offload else 1 / gpus if is_zero3 else 1
    workspace = 2 * 2 * size.hidden**2
    if is_zero3:
        workspace += 2 * min(LIVE, sum(count))
    if is_4bit:
        workspace += 2 * size.hidden * size.intermediate
    tokens = image_tokens + text
    kept = activation_bytes(size, tokens, batch, checkpointing=checkpointing, keeps_inputs=is_zero3)
    kept += batch * image_tokens * 2 * (size.tower_hidden + 2 * size.hidden)  # inputs of the projector's layers
    first_step = batch * tokens * 5 * 4 * size.hidden  # backward of the last norm, in fp32
    return Memory(
        llm=(count.matrices * NF4 + 2 * count.others) if is_4bit else 2 * (count.matrices + count.others) * share,
        tower=2 * count.tower * share,
        projector=2 * count.projector * share,
        optimizer=count.projector * (2 + (0 if is_offload else (4 + 4 + 8) / gpus)),
        workspace=workspace,
        activations=kept,
        transient=max(logit_bytes(size, batch * labelled), first_step),
    )


def largest_batch(size: ModelSize, method: str, card: float, **setting) -> int:
    """Return how many sequences fit a card of `card` GiB: 0 to 9999. `setting` as in `peak`."""
    room = card * GIB - RESERVE
    return bisect_right(range(1, 10_000), room, key=lambda batch: peak(size, method, batch=batch, **setting).total)


def to_markdown(
    models: dict[str, ModelSize],
    *,
    image_tokens: int = 64,
    text: int = 256,
    labelled: int = 128,
    batch: int = 1,
    gpus: int = 8,
    checkpointing: bool = False,
) -> str:
    """Write a table in GiB, a line per model and method. Arguments as in `peak`."""
    setting = {"text": text, "labelled": labelled, "gpus": gpus, "checkpointing": checkpointing}
    head = [
        *("model", "method", "LLM + tower + projector", "gradients + optimizer", "workspace"),
        *(f"activations per sample, {image_tokens} image tokens", "all of them", "logits per sample, labelled", "all"),
        *(f"total at batch {batch}", *(f"largest batch in {card} GiB" for card in CARDS)),
    ]
    lines = [head]
    for name, size in models.items():
        for method in METHODS:
            one = peak(size, method, image_tokens=image_tokens, **setting)
            whole = peak(size, method, image_tokens=size.patches, **setting)
            total = peak(size, method, image_tokens=image_tokens, batch=batch, **setting).total
            batches = [largest_batch(size, method, card, image_tokens=image_tokens, **setting) for card in CARDS]
            logits = logit_bytes(size, labelled)
            all_logits = all_logit_bytes(size, image_tokens + text)
            parts = [one.optimizer, one.workspace, one.activations, whole.activations, logits, all_logits, total]
            weights = " + ".join(f"{part / GIB:.2f}" for part in (one.llm, one.tower, one.projector))
            cells = [name, method, weights, *(f"{part / GIB:.2f}" for part in parts)]
            lines.append([*cells, *(str(batch) if batch else "does not fit" for batch in batches)])
    title = (
        f"Peak GPU memory in GiB when only the projector trains, by calculation: {text} text tokens, {labelled} of "
        f"them labelled, {gpus} GPU{'s' * (gpus > 1)}, gradient checkpointing {'on' if checkpointing else 'off'}, "
        f"{RESERVE / GIB} GiB of each card left free"
    )
    return f"{title}\n\n{to_table(lines, left=2)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Calculate and print the table; returns the exit status."""
    chosen = dict([find_size(args.model, SIZES)]) if args.model else SIZES
    labelled = args.text // 2 if args.labelled is None else args.labelled
    if labelled > args.text:
        raise ValueError(f"--labelled {labelled} is more than --text {args.text}: only text has labels.")
    setting = {"text": args.text, "labelled": labelled, "gpus": args.gpus, "checkpointing": args.checkpointing}
    print(to_markdown(chosen, image_tokens=args.tokens, batch=args.batch, **setting))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.train.memory",
        description="Calculate how much GPU memory tuning the projector takes.",
    )
    add = parser.add_argument
    add("--model", metavar="NAME", help="7b, 13b, or a checkpoint's folder or hub id (default: 7b and 13b)")
    add("--tokens", type=positive, default=64, metavar="N", help="tokens of an image (default: 64)")
    add("--text", type=positive, default=256, metavar="N", help="tokens of text in a sample (default: 256)")
    add("--labelled", type=positive, metavar="N", help="of which the answers are (default: half)")
    add("--batch", type=positive, default=1, metavar="N", help="samples on each GPU at a time (default: 1)")
    add("--gpus", type=positive, default=8, metavar="N", help="GPUs that work together (default: 8)")
    add("--checkpointing", action="store_true", help="with gradient checkpointing")
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
