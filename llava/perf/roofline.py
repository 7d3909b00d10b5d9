"""Calculate how long operations take on a device: the lower bound, and the time to expect.

Each `*_ops` lists the operations of a stage as transformers runs them. Work is in FLOP, memory in bytes, time in
seconds. `dtype_bytes` is the size of a weight or activation: 2 or 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava.perf.devices import Device
from llava.perf.sizes import ModelSize


@dataclass(frozen=True)
class Op:
    """Operations of one kind and size."""

    name: str
    kind: str  # matmul, attention or memory
    flops: float  # FLOP of each: 2 per multiplication and addition, of matrix products only
    bytes: float  # read and written by each
    count: int = 1  # how many there are
    compulsory: float = 0  # bytes of each that no fusion of operations saves: weights and KV cache
    scores: float = 0  # weights of the attention map, of each


def tower_ops(size: ModelSize, crops: int, dtype_bytes: int) -> list[Op]:
    """List what the vision tower does, from the pixels of `crops` crops to the hidden states that are read."""
    hidden, wide, heads, length = size.tower_hidden, size.tower_intermediate, size.tower_heads, size.tower_length
    depth, rows = size.tower_depth, crops * size.tower_length
    tokens = rows * hidden * dtype_bytes  # bytes of a hidden state
    return [
        linear("patches", crops * size.patches, 3 * size.patch_size**2, hidden, dtype_bytes),
        memory("embeddings", 2 * tokens, count=5),
        memory("norms", 2 * tokens, count=2 * depth),
        linear("query, key, value, out", rows, hidden, hidden, dtype_bytes, count=4 * depth, bias=True),
        attention(crops * heads, length, length, size.tower_head_dim, dtype_bytes, count=depth),
        memory("residuals", 3 * tokens, count=2 * depth),
        linear("up", rows, hidden, wide, dtype_bytes, count=depth, bias=True),
        memory("activation", 7 / 3 * rows * wide * dtype_bytes, count=3 * depth),  # x * sigmoid(1.702 x)
        linear("down", rows, wide, hidden, dtype_bytes, count=depth, bias=True),
    ]


def select_ops(size: ModelSize, crops: int, dominant: int, contextual: int, dtype_bytes: int) -> list[Op]:
    """List what VisionZip does (`visionzip_patch`): scores and keys of one layer, choice of tokens, merging."""
    hidden, heads, head_dim, length = size.tower_hidden, size.tower_heads, size.tower_head_dim, size.tower_length
    rows, queries = crops * length, 1 if size.has_cls else length
    others = length - dominant - contextual
    kept = dominant + contextual
    ops = [
        memory("norm", 2 * rows * hidden * dtype_bytes),
        linear("keys", rows, hidden, hidden, dtype_bytes, bias=True),
        linear("queries", crops * queries, hidden, hidden, dtype_bytes, bias=True),
        product("scores", crops * heads, queries, head_dim, length, 4),
        memory("softmax and sum", 3 * crops * heads * queries * length * 4, count=3),
        memory("keys of all heads", rows * (hidden + head_dim) * dtype_bytes),
        memory("choice", 16 * rows, count=25),  # of indices
        memory("kept tokens", 2 * crops * kept * hidden * dtype_bytes, count=3),
    ]
    if contextual:
        ops += [
            memory("unit keys", 2 * rows * head_dim * 4, count=4),
            product("similarities", crops, others, head_dim, contextual, 4),
            memory("members", crops * others * contextual * 8, count=5),  # one-hot, int64
            memory("other tokens", crops * others * hidden * (dtype_bytes + 4), count=2),
            product("sums", crops, contextual, others, hidden, 4),
            memory("means", 2 * crops * contextual * hidden * 4, count=3),
        ]
    return ops


def project_ops(size: ModelSize, tokens: int, dtype_bytes: int) -> list[Op]:
    """List what the projector does to `tokens` visual tokens."""
    return [
        linear("first", tokens, size.tower_hidden, size.hidden, dtype_bytes, bias=True),
        memory("activation", 2 * tokens * size.hidden * dtype_bytes),
        linear("second", tokens, size.hidden, size.hidden, dtype_bytes, bias=True),
    ]


def prefill_ops(size: ModelSize, tokens: int, batch: int, dtype_bytes: int) -> list[Op]:
    """List what the language model does to prompts of `tokens` tokens, up to the logits of the last.

    Causal attention computes half of its map.
    """
    return decoder_ops(size, tokens, 0, batch, dtype_bytes)


def decode_ops(size: ModelSize, context: int, batch: int, dtype_bytes: int, *, growing: bool = True) -> list[Op]:
    """List what the language model does for one more token after `context` tokens.

    With `growing`, the cache is copied at each step, as transformers' own is.
    """
    return decoder_ops(size, 1, context, batch, dtype_bytes, growing=growing)


def decoder_ops(
    size: ModelSize, new: int, past: int, batch: int, dtype_bytes: int, *, growing: bool = True
) -> list[Op]:
    """List what the language model does to `new` tokens of each of `batch` rows, after `past` tokens."""
    hidden, wide, layers = size.hidden, size.intermediate, size.layers
    key_hidden, rows, norms = size.kv_heads * size.head_dim, batch * new, 2 * layers + 1
    tokens, scores = rows * hidden * dtype_bytes, rows * size.heads * (past + (new + 1) / 2)
    cache = kv_bytes(size, past + new, batch, dtype_bytes) / layers
    copied = cache if growing else kv_bytes(size, new, batch, dtype_bytes) / layers
    return [
        memory("positions and mask", rows * (16 + 4 * size.head_dim), count=20),
        memory("norms, in fp32", 24 / 5 * rows * hidden, count=5 * norms),  # square, mean, root, quotient
        memory("norms, weights", 2 * tokens, count=norms),
        *([] if dtype_bytes == 4 else [memory("norms, to fp32 and back", rows * hidden * 6, count=2 * norms)]),
        linear("query, out", rows, hidden, hidden, dtype_bytes, count=2 * layers),
        linear("key, value", rows, hidden, key_hidden, dtype_bytes, count=2 * layers),
        memory("rotation", 2 * rows * (hidden + key_hidden) / 2 * dtype_bytes, count=10 * layers),
        memory("cache", copied, count=2 * layers),  # keys, values: read, written
        Op("attention", "attention", 4 * size.head_dim * scores, 2 * tokens + cache, layers, cache, scores),
        memory("residuals", 3 * tokens, count=2 * layers),
        linear("gate, up", rows, hidden, wide, dtype_bytes, count=2 * layers),
        memory("activation", 5 / 2 * rows * wide * dtype_bytes, count=2 * layers),  # SiLU, product
        linear("down", rows, wide, hidden, dtype_bytes, count=layers),
        linear("head", batch, hidden, size.vocab, dtype_bytes),
    ]


def kv_bytes(size: ModelSize, tokens: int, batch: int, dtype_bytes: int) -> int:
    """Return the bytes of the keys and values of `tokens` tokens in every layer, for `batch` rows."""
    return 2 * size.layers * size.kv_heads * size.head_dim * tokens * batch * dtype_bytes


def linear(name: str, rows: int, inputs: int, outputs: int, dtype_bytes: int, count: int = 1, bias=False) -> Op:
    """Describe a linear layer on `rows` rows."""
    weights = (inputs + bias) * outputs * dtype_bytes
    moved = weights + rows * (inputs + outputs) * dtype_bytes
    return Op(name, "matmul", 2 * rows * inputs * outputs, moved, count, weights)


def product(name: str, batch: int, rows: int, inner: int, columns: int, dtype_bytes: int) -> Op:
    """Describe `batch` products of one activation, (rows, inner), with another, (inner, columns)."""
    moved = batch * (rows * inner + inner * columns + rows * columns) * dtype_bytes
    return Op(name, "matmul", 2 * batch * rows * inner * columns, moved)


def attention(heads: int, queries: int, keys: int, head_dim: int, dtype_bytes: int, count: int) -> Op:
    """Describe attention without a mask, whose map is never stored; `heads` counts those of all rows of the batch."""
    scores = heads * queries * keys
    moved = 2 * heads * (queries + keys) * head_dim * dtype_bytes
    return Op("attention", "attention", 4 * scores * head_dim, moved, count, scores=scores)


def memory(name: str, moved: float, count: int = 1) -> Op:
    """Describe `count` operations that move `moved` bytes each, and compute next to nothing."""
    return Op(name, "memory", 0, moved, count)


def roofline(ops: Sequence[Op], device: Device) -> float:
    """Return a lower bound in seconds: operations run one after the other, each bound by arithmetic or by weights."""
    return sum(op.count * max(op.flops / device.matmul, op.compulsory / device.bandwidth) for op in ops)


def predicted(ops: Sequence[Op], device: Device, launches: bool = True) -> float:
    """Return the seconds to expect; without `launches`, starting an operation is free, as in a CUDA graph."""
    busy = sum(op.count * busy_seconds(op, device) for op in ops)
    host = launches * device.launch * sum(op.count for op in ops)
    return max(busy, host) if device.is_async else busy + host


def busy_seconds(op: Op, device: Device) -> float:
    """Return the seconds that the device is busy with one of `op.count` operations."""
    bandwidth = device.stream if op.kind == "matmul" else device.bandwidth
    arithmetic = op.flops / device.matmul + op.scores * device.per_score
    return max(arithmetic, op.bytes / bandwidth, device.least)
