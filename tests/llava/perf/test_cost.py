"""The calculator counts what torch counts, agrees with known figures, and says so in a table."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llava.perf import cost
from llava.perf.cost import Request, stages
from llava.perf.devices import DEVICES, Device, attainable
from llava.perf.roofline import (
    Op,
    decode_ops,
    kv_bytes,
    predicted,
    prefill_ops,
    project_ops,
    roofline,
    select_ops,
    tower_ops,
)
from llava.perf.sizes import SIZES, ModelSize, build_model
from visionzip_patch import zipped
from visionzip_patch.compat import CACHE

NEXT, H100 = SIZES["llava-next-7b"], DEVICES["H100"]
SMALL = ModelSize(
    **{"hidden": 64, "intermediate": 176, "layers": 3, "heads": 4, "kv_heads": 2, "vocab": 1024},
    **{"tower_hidden": 32, "tower_intermediate": 96, "tower_layers": 4, "tower_heads": 2, "image_size": 112},
    crops=5,
)
FULL, ZIPPED, BUDGET = 2880, 160, (27, 5)  # tokens of an image


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return build_model(SMALL, torch.device("cpu"), torch.float32)


def total(ops, field="flops"):
    return sum(op.count * getattr(op, field) for op in ops)


def reduce(tower, before, after):
    """What VisionZip does between two hidden states, scores included."""
    return tower.reducer.reduce(tower.evidence(before, after), after)


def counted(function, *inputs, **options):
    """FLOP of a call. The counter passes over the CPU's attention kernel, and sees the two products without it."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*inputs, **options)
    return counter.get_total_flops()


def test_tower_and_selection_cost_what_torch_counts(small):
    tower, pixels = small.get_vision_tower(), torch.randn(5, 3, 112, 112)
    assert counted(tower.hidden_states, pixels) == total(tower_ops(SMALL, 5, 4))
    for budget in ((6, 2), (6, 0)):
        with zipped(small, dominant=budget[0], contextual=budget[1]), torch.no_grad():
            found = counted(reduce, tower, *tower.hidden_states(pixels))
        assert found == total(select_ops(SMALL, 5, *budget, 4))


def test_a_tower_without_cls_costs_what_torch_counts(tiny_tower):
    size = SMALL._replace(tower_intermediate=64, tower_layers=3, tower_heads=4, image_size=56, has_cls=False)
    tower, pixels = tiny_tower("siglip"), torch.randn(5, 3, 56, 56)
    assert counted(tower.hidden_states, pixels) == total(tower_ops(size, 5, 4))
    holder = SimpleNamespace(get_vision_tower=lambda: tower, config=SimpleNamespace())  # what zipped needs of a model
    with zipped(holder, dominant=6, contextual=2), torch.no_grad():
        found = counted(reduce, tower, *tower.hidden_states(pixels))
    assert found == total(select_ops(size, 5, 6, 2, 4))


def test_the_language_model_costs_what_torch_counts(small):
    assert counted(small.get_model().mm_projector, torch.randn(100, 32)) == total(project_ops(SMALL, 100, 4))
    prompt = {"inputs_embeds": torch.randn(2, 100, 64), "use_cache": True, "logits_to_keep": 1}
    above_diagonal = 2 * SMALL.layers * SMALL.heads * 100 * 99 / 2  # torch counts the masked half of the map, too
    expected = total(prefill_ops(SMALL, 100, 2, 4)) + 4 * SMALL.head_dim * above_diagonal
    # Some releases of transformers make the angles of positions by a matrix product, which is left out.
    assert counted(small, **prompt) == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        past = small(**prompt)[CACHE]
    step = {"inputs_embeds": torch.randn(2, 1, 64), "use_cache": True, CACHE: past}
    assert counted(small, **step) == pytest.approx(total(decode_ops(SMALL, 100, 2, 4)), rel=1e-4)


def test_the_cache_holds_what_is_calculated(small):
    with torch.no_grad():
        cache = small(inputs_embeds=torch.randn(3, 20, 64), use_cache=True)[CACHE]
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert kv_bytes(SMALL, 20, 3, 4) == held
    assert 2 * held == kv_bytes(SMALL._replace(kv_heads=4), 20, 3, 4)


def test_known_figures_of_7b_in_half_precision():
    step = [op for op in decode_ops(NEXT, 0, 1, 2) if op.kind == "matmul"]
    embeddings = NEXT.vocab * NEXT.hidden * 2
    assert total(step, "compulsory") + embeddings == pytest.approx(13.5e9, rel=0.01)
    assert kv_bytes(NEXT, 1, 1, 2) == 2**19
    assert 1.7e12 < total(tower_ops(NEXT, 5, 2)) < 1.9e12
    assert total(prefill_ops(NEXT, FULL + 60, 1, 2)) == pytest.approx(40e12, rel=0.02)
    assert roofline(prefill_ops(NEXT, FULL + 60, 1, 2), attainable(H100)) == pytest.approx(58e-3, rel=0.02)
    slower = H100._replace(bandwidth=3e12)
    assert roofline(prefill_ops(NEXT, ZIPPED + 60, 1, 2), slower) == pytest.approx(4.5e-3, rel=0.05)
    assert roofline(decode_ops(NEXT, ZIPPED + 60, 1, 2), slower) == pytest.approx(4.5e-3, rel=0.05)


def test_a_cache_that_grows_is_copied_at_each_step():
    grows, stays = (decode_ops(NEXT, 2940, 1, 2, growing=growing) for growing in (True, False))
    assert total(grows) == total(stays)
    copied = kv_bytes(NEXT, 2940, 1, 2)
    assert total(grows, "bytes") - total(stays, "bytes") == pytest.approx(2 * copied)  # read and written


def test_time_is_arithmetic_or_bytes_or_starts():
    device = Device("made up", matmul=100, attention=100, bandwidth=10, stream=5, launch=1, least=0.5)
    work, move, short = Op("w", "matmul", 300, 5), Op("m", "memory", 0, 40), Op("s", "memory", 0, 1, count=2)
    assert predicted([work, move, short], device, launches=False) == 3 + 4 + 2 * 0.5
    assert predicted([work, move, short], device) == 8 + 4 * 1
    assert predicted([work, move, short], device._replace(is_async=True)) == 8
    assert predicted([short], device._replace(is_async=True)) == 2
    assert predicted([Op("m", "matmul", 0, 40)], device, launches=False) == 8
    assert roofline([work, Op("w", "matmul", 100, 0, compulsory=60)], device) == 3 + 6
    slow = device._replace(attention=50)
    attention = Op("a", "attention", 4 * 64 * 3, 0, scores=3)
    assert predicted([attention], slow, launches=False) == pytest.approx(4 * 64 * 3 / 50)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_nothing_is_faster_than_its_limit(size, device):
    for stage in stages(size, Request(), FULL, BUDGET).values():
        for part in stage.parts:
            assert 0 < roofline(part, device) < predicted(part, attainable(device), launches=False)


def test_fewer_tokens_cost_less():
    full, few = stages(NEXT, Request(), FULL), stages(NEXT, Request(), ZIPPED, BUDGET)
    assert few["tower"] == full["tower"]
    for name in ("project", "prefill", "first token", "per token", "answer"):
        assert few[name].total("flops") < full[name].total("flops")
        assert few[name].total("bytes") < full[name].total("bytes")
    assert few["prefill"].tokens == 220
    assert few["prefill"].kv * 2940 == full["prefill"].kv * 220
    assert full["prefill"].total("flops") / few["prefill"].total("flops") > 12
    share = few["select + merge"].total("flops") / few["tower"].total("flops")
    assert share < 0.005


@pytest.mark.parametrize("field", ["text", "answer", "batch"])
def test_more_is_never_cheaper(field):
    some = Request()
    more = some._replace(**{field: 2 * getattr(some, field)})
    before, after = (stages(NEXT, request, ZIPPED, BUDGET) for request in (some, more))
    for name, stage in before.items():
        for total in ("flops", "bytes"):
            assert after[name].total(total) >= stage.total(total)
    assert after["answer"].total("flops") > before["answer"].total("flops")
    assert after["answer"].kv > before["answer"].kv


def test_an_answer_is_its_first_token_and_a_step_for_each_other():
    found = stages(NEXT, Request(answer=5), ZIPPED, BUDGET)
    for field in ("flops", "bytes"):
        expected = found["first token"].total(field) + 4 * found["per token"].total(field)
        assert found["answer"].total(field) == pytest.approx(expected)
    assert found["answer"].kv == kv_bytes(NEXT, 220 + 4, 1, 2)
    one = stages(NEXT, Request(answer=1), ZIPPED, BUDGET)
    assert one["answer"].total("flops") == one["first token"].total("flops")


def rows_of(printed: str) -> dict[tuple[str, str], dict[str, str]]:
    """Cells of a printed table by stage and way."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1  # aligned
    head, _, *body = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    return {(row[0], row[1]): dict(zip(head[2:], row[2:], strict=True)) for row in body}


def test_the_command_prints_a_table(capsys):
    assert cost.main(["--model", "LLaVA-NeXT-7B", "--dominant", "27", "--contextual", "5"]) == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 120
    assert "2,880 → 160 (5 × (27 + 5))" in printed
    rows = rows_of(printed)
    assert list(rows)[:4] == [
        ("tower", "both"),
        ("select + merge", "zipped"),
        ("project", "all"),
        ("project", "zipped"),
    ]
    full, few = rows["prefill", "all"], rows["prefill", "zipped"]
    assert (full["tokens"], full["KV MB"], few["tokens"], few["KV MB"]) == ("2,940", "1,541", "220", "115")
    assert full["GFLOP"] == "40,346"
    assert few["limit ms"] == "3.98"
    ratio = float(full["predicted ms"]) / float(few["predicted ms"])
    assert float(few["all ÷ zipped"]) == pytest.approx(ratio, rel=0.01)
    assert full["all ÷ zipped"] == ""

    options = ["--graphs", "--all-tokens", "2144", "--answer", "1", "--dominant", "27", "--contextual", "0"]
    assert cost.main(options) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["prefill", "all"]["tokens"] == "2,204"
    assert rows["answer", "zipped"]["predicted ms"] == rows["first token", "zipped"]["predicted ms"]


def test_the_command_is_light():
    """A calculator that is asked again and again must not wait for torch."""
    budget = ["--dominant", "27", "--contextual", "5"]
    source = f"import sys; from llava.perf.cost import main; main({budget}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_this_machine_is_measured(capsys, monkeypatch):
    asked = []

    def measure(device, dtype):
        asked.append((device.type, dtype))
        return Device("a made up machine", 1e11, 5e10, 4e10, 3e10, 1e-5)

    monkeypatch.setattr(cost, "measure_device", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cost.main(["--model", "tiny", "--device", "this", "--dominant", "6", "--contextual", "1"]) == 0
    printed = capsys.readouterr().out
    assert "tiny in float32 on a made up machine" in printed
    assert "0.1 TFLOP/s in matrix products, 0.05 in attention" in printed
    assert rows_of(printed)["prefill", "zipped"]["tokens"] == "95"
    assert cost.main(["--model", "tiny", "--device", "this", "--dtype", "bfloat16"]) == 0
    assert asked == [("cpu", torch.float32), ("cpu", torch.bfloat16)]


def test_a_checkpoint_is_read(tiny_llava, tmp_path, capsys):
    tiny_llava("mistral", image_aspect_ratio="anyres", image_grid_pinpoints=[[56, 112], [112, 112]]).save_pretrained(
        tmp_path / "llava-tiny"
    )
    assert cost.main(["--model", str(tmp_path / "llava-tiny"), "--dominant", "3", "--contextual", "1"]) == 0
    printed = capsys.readouterr().out
    assert "llava-tiny in bfloat16 on H100" in printed
    assert "80 → 20 (5 × (3 + 1))" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "llava-next-7c"], "'llava-next-7c' is neither one of tiny, llava-1.5-7b"),
        (["--model", "no/such/folder"], "'no/such/folder': there is no such folder"),
        (["--device", "H900"], "--device 'H900' is unknown; choose one of H100"),
        (["--device", "a100", "--dtype", "float32"], "or --device this to measure"),
        (["--dominant", "600", "--contextual", "5"], "asks for 605 tokens, but the vision tower gives 577"),
    ],
)
def test_what_cannot_be_calculated_is_told_in_one_line(options, message, capsys):
    assert cost.main(options) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err


@pytest.mark.parametrize(
    "options", [["--dominant", "0"], ["--contextual", "-1"], ["--batch", "x"], ["--dtype", "int8"]]
)
def test_wrong_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as refused:
        cost.main(options)
    assert refused.value.code == 2
    assert options[0] in capsys.readouterr().err
