"""Sequences in a cache: however they were made longer, they go on as if they had been given whole."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from llava.model import engine as engine_module
from llava.model.kv_cache import Extension, KVCache, cache_bytes

MODES = ("static", "graphs")  # "graphs" pads lengths, on a CPU too
FAMILIES = {"llama": {}, "mistral": {"sliding_window": 7}, "qwen": {}}
TEXT = torch.randint(3, 200, (4, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tiny_llava):
    return tiny_llava(request.param, **FAMILIES[request.param])


@pytest.fixture(params=MODES)
def engine(request, model):
    yield model.engine(request.param)
    model.engine(request.param).caches.clear()


def embed(engine, *rows):
    """Rows of ids, padded on the right with what must not matter: (B, T, C), and the lengths."""
    table = engine.model.get_input_embeddings()
    embeds = [table(torch.as_tensor(row)).detach() for row in rows]
    return pad_sequence(embeds, batch_first=True, padding_value=9.0), [len(row) for row in rows]


def logits_of(engine, *rows):
    """After each row, by the language model itself, (B, V)."""
    with torch.no_grad():
        return torch.cat([engine.model(torch.as_tensor(row)[None]).logits[:, -1] for row in rows])


def close_to(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_in_pieces_as_in_one(engine):
    rows = list(TEXT[:3])
    for cuts in ((0, 40), (0, 1, 40), (0, 13, 14, 30, 40)):
        with engine.open_cache(3, 64) as sequences:
            for start, stop in pairwise(cuts):
                logits = sequences.extend(*embed(engine, *(row[start:stop] for row in rows)))
                close_to(logits, logits_of(engine, *(row[:stop] for row in rows)))
            assert sequences.cache.counts == sequences.cache.lengths.tolist() == [40] * 3


def test_rows_of_unequal_lengths(engine):
    lengths, more = (5, 17, 1, 9), (8, 1, 3, 20)
    with engine.open_cache(4, 16) as sequences:  # and too small: it grows
        logits = sequences.extend(*embed(engine, *(row[:n] for row, n in zip(TEXT, lengths, strict=True))))
        close_to(logits, logits_of(engine, *(row[:n] for row, n in zip(TEXT, lengths, strict=True))))
        pieces = [row[n : n + m] for row, n, m in zip(TEXT, lengths, more, strict=True)]
        logits = sequences.extend(*embed(engine, *pieces))
        rows = [row[: n + m] for row, n, m in zip(TEXT, lengths, more, strict=True)]
        close_to(logits, logits_of(engine, *rows))
        assert sequences.cache.counts == [13, 18, 4, 29]
        assert (sequences.cache.longest, sequences.cache.is_even) == (29, False)
        for _ in range(3):
            ids = logits.argmax(-1)
            rows = [torch.cat([row, token[None]]) for row, token in zip(rows, ids, strict=True)]
            logits = sequences.step(ids)
            close_to(logits, logits_of(engine, *rows))
        assert sequences.cache.counts == sequences.cache.lengths.tolist() == [16, 21, 7, 32]


def test_going_on_from_other_sequences(engine):
    heads, tails, begins = [TEXT[0, :20], TEXT[1, :12]], [TEXT[2, :9], TEXT[2, :3], TEXT[3, :14]], [1, 0, 1]
    with engine.open_cache(2, 20) as images, engine.open_cache(3, 8) as sequences:
        images.extend(*embed(engine, *heads))
        before = [tensor.clone() for tensor in (*images.cache.keys, *images.cache.values)]
        for tails_now in (tails, tails[::-1]):  # the same heads serve again
            sequences.begin_with(images, begins)
            assert sequences.cache.counts == [12, 20, 12]
            logits = sequences.extend(*embed(engine, *tails_now))
            whole = [torch.cat([heads[i], tail]) for i, tail in zip(begins, tails_now, strict=True)]
            close_to(logits, logits_of(engine, *whole))
        after = (*images.cache.keys, *images.cache.values)
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert images.cache.counts == [20, 12]


def test_cut_short_and_gone_on_otherwise(engine):
    with engine.open_cache(2, 64) as sequences:
        sequences.extend(*embed(engine, TEXT[0, :30], TEXT[1, :25]))
        sequences.cache.set_counts([10, 25])
        logits = sequences.extend(*embed(engine, TEXT[2, :6], TEXT[3, :2]))
        whole = torch.cat([TEXT[0, :10], TEXT[2, :6]]), torch.cat([TEXT[1, :25], TEXT[3, :2]])
        close_to(logits, logits_of(engine, *whole))
        sequences.cache.set_counts([0, 0])
        close_to(sequences.extend(*embed(engine, *TEXT[2:, :11])), logits_of(engine, *TEXT[2:, :11]))


def test_growing_keeps_what_is_held(engine):
    with engine.open_cache(2, 8) as sequences:
        sequences.extend(*embed(engine, *TEXT[:2, :8]))
        before = [keys[:, :, :8].clone() for keys in sequences.cache.keys]
        slots = sequences.cache.slots
        sequences.reserve(slots)
        assert sequences.cache.slots == slots
        sequences.reserve(slots + 1)
        assert sequences.cache.slots >= 2 * slots
        assert sequences.cache.counts == [8, 8]
        assert all(torch.equal(keys[:, :, :8], old) for keys, old in zip(sequences.cache.keys, before, strict=True))
        logits = sequences.extend(*embed(engine, *TEXT[:2, 8:20]))
        close_to(logits, logits_of(engine, *TEXT[:2, :20]))


def test_memory_serves_the_next_request(engine, monkeypatch):
    with engine.open_cache(2, 64) as first:
        first.extend(*embed(engine, *TEXT[:2]))
    kept = first.cache.keys[0].data_ptr()
    with engine.open_cache(2, 60) as second:
        assert second.cache.keys[0].data_ptr() == kept
        assert second.cache.counts == second.cache.lengths.tolist() == [0, 0]
        close_to(second.extend(*embed(engine, *TEXT[2:, :9])), logits_of(engine, *TEXT[2:, :9]))
        ids = torch.tensor([5, 6])
        close_to(second.step(ids), logits_of(engine, *torch.cat([TEXT[2:, :9], ids[:, None]], dim=1)))
        with engine.open_cache(2, 60) as third:  # two at a time do not share
            assert third.cache.keys[0].data_ptr() != kept
    for rows, slots in ((3, 64), (2, 500)):  # of another shape
        with engine.open_cache(rows, slots) as other:
            assert other.cache.keys[0].data_ptr() != kept
    sizes = [cache.nbytes for cache, _ in engine.caches]
    monkeypatch.setattr(engine_module, "KEPT_BYTES", sum(sizes[-2:]))
    with engine.open_cache(1, 1):
        pass
    assert [cache.rows for cache, _ in engine.caches] == [2, 1]  # the last that fit; all others are freed


def test_memory_is_not_used_again_after_an_error(engine):
    with pytest.raises(RuntimeError), engine.open_cache(2, 64) as first:
        first.extend(torch.zeros(2, 3, 7), [3, 3])  # of another width
    with engine.open_cache(2, 64) as second:
        assert second.cache is not first.cache
        close_to(second.extend(*embed(engine, *TEXT[:2])), logits_of(engine, *TEXT[:2]))


def test_memory_that_runs_out_while_growing_changes_nothing(engine, monkeypatch):
    """Neither what is held nor what the next request gets."""
    pad, calls = nn.functional.pad, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return pad(*args)

    with engine.open_cache(2, 8) as sequences:
        sequences.extend(*embed(engine, *TEXT[:2, :8]))
        with monkeypatch.context() as patch:
            patch.setattr(nn.functional, "pad", failing)
            with pytest.raises(torch.OutOfMemoryError):
                sequences.reserve(1000)
        logits = sequences.extend(*embed(engine, *TEXT[:2, 8:20]))
        close_to(logits, logits_of(engine, *TEXT[:2, :20]))


def test_idle_memory_makes_room_for_new(engine, monkeypatch):
    for rows in (1, 2, 3):
        with engine.open_cache(rows, 128):
            pass
    sizes = {cache.rows: cache.nbytes for cache, _ in engine.caches}
    assert sizes == {rows: cache_bytes(engine.decoder, rows, 128) for rows in (1, 2, 3)}
    monkeypatch.setattr(engine_module, "KEPT_BYTES", sum(sizes.values()) + sizes[1])
    seen, original = [], KVCache.__init__

    def fails_once(self, *args):
        seen.append([cache.rows for cache, _ in engine.caches])
        if len(seen) == 2:
            raise torch.OutOfMemoryError
        original(self, *args)

    monkeypatch.setattr(KVCache, "__init__", fails_once)
    with engine.open_cache(2, 256):  # 4 rows of 128
        assert seen == [[3]]
    with engine.open_cache(1, 128):
        assert seen[1:] == [[2], []]


def test_a_spoiled_request_does_not_spoil_the_next(engine):
    """Numbers beyond fp16 leave nan in the cache, and nan times an attention weight of 0 is nan."""
    embeds, counts = embed(engine, *TEXT[:2])
    with engine.open_cache(2, 64) as first:
        assert first.extend(embeds * torch.inf, counts).isnan().all()
    with engine.open_cache(2, 64) as second:
        second.extend(*embed(engine, TEXT[0, :9], TEXT[1, :5]))
        logits = second.extend(*embed(engine, TEXT[0, 9:20], TEXT[1, 5:8]))
        close_to(logits, logits_of(engine, TEXT[0, :20], TEXT[1, :8]))


def test_inference_mode_leaves_nothing_behind(engine):
    with torch.inference_mode():
        sequences = engine.open_cache(2, 8)
        sequences.extend(*embed(engine, *TEXT[:2, :30]))
    assert not any(tensor.is_inference() for tensor in (*sequences.cache.keys, sequences.cache.lengths))
    sequences.cache.set_counts([10, 12])
    sequences.cache.advance()
    sequences.cache.reserve(1000)
    sequences.cache.copy_rows(sequences.cache, [1, 0])
    assert sequences.cache.lengths.tolist() == [13, 11]


def test_what_a_cache_tells_of_itself(model):
    cache = KVCache(model.get_model(), rows=3, slots=10)
    assert (cache.rows, cache.slots, cache.longest, cache.is_even) == (3, 10, 0, True)
    assert cache.nbytes == 2 * 2 * 3 * 2 * 10 * 12 * 4  # keys and values, layers, B, H, S, K, bytes
    assert not cache.reserve(10)
    assert cache.reserve(11)
    assert cache.slots == 11


def test_who_looks_at_whom():
    extension = Extension(cache=None, positions=torch.tensor([[2, 3], [0, 1]]), window=4)
    assert extension.mask(None)[:, 0].int().tolist() == [
        [[1, 1, 1, 0], [1, 1, 1, 1]],
        [[1, 0, 0, 0], [1, 1, 0, 0]],
    ]
    assert extension.mask(2)[:, 0].int().tolist() == [
        [[0, 1, 1, 0], [0, 0, 1, 1]],
        [[1, 0, 0, 0], [1, 1, 0, 0]],
    ]
