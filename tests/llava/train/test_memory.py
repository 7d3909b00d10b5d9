import weakref

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from llava.model.description import read_config
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.loss import ROWS, next_token_loss
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.perf.sizes import ModelSize
from llava.train import memory
from llava.train.memory import GIB, SIZES, activation_bytes, logit_bytes, parameters, peak
from visionzip_patch.compat import CACHE

SMALL = ModelSize(hidden=128, intermediate=352, layers=2, heads=4, kv_heads=2, vocab=500, tower_hidden=64)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside it, as a GPU's allocator does: `now` and `peak`."""

    def __init__(self, *existing):
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata: tensor for tensor in existing}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return made

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def drop(_):
            del self.known[key]
            self.now -= size

        self.known[key] = weakref.ref(storage, drop)
        self.now += size
        self.peak = max(self.peak, self.now)


def llama_config(size, **changes):
    return LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        attn_implementation="sdpa",
        **changes,
    )


@pytest.fixture
def in_bf16():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", [SIZES["7B"], SIZES["13B"], SIZES["7B"]._replace(kv_heads=8, is_tied=True)])
def test_parameters_are_those_of_the_models(size):
    with torch.device("meta"):
        llm = LlamaForCausalLM(llama_config(size, tie_word_embeddings=size.is_tied))
        projector = build_vision_projector(
            LlavaConfig(hidden_size=size.hidden, mm_hidden_size=1024, mm_projector_type="mlp2x_gelu")
        )
        tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                image_size=336,
                patch_size=14,
            )
        )
    expected = parameters(size)
    assert count(llm) == expected.matrices + expected.others
    assert sum(p.numel() for p in llm.model.layers.parameters() if p.ndim == 2) == expected.matrices
    assert (count(tower), count(projector)) == (expected.tower, expected.projector)


def test_shape_of_a_checkpoint(golden):
    config, tower = read_config(str(golden / "models/llava-v1.5-tiny"))
    size = ModelSize.from_config(config, tower)
    assert (size.hidden, size.intermediate, size.layers, size.kv_heads, size.vocab) == (64, 160, 2, 4, 1000)
    model = LlavaLlamaForCausalLM(config)
    model.get_vision_tower().load_model()
    assert sum(parameters(size)) == count(model)


def saved_bytes(layer, config, tokens, masked=True):
    """What autograd saves in a frozen layer, of tensors that are not its weights; per sequence."""
    inputs = torch.randn(2, tokens, config.hidden_size, requires_grad=True)
    positions = torch.arange(tokens)[None]
    attention_mask = torch.ones(2, tokens, dtype=torch.long)
    attention_mask[1, -1] = not masked
    mask = create_causal_mask(
        config=config,
        inputs_embeds=inputs,
        attention_mask=attention_mask,
        position_ids=positions,
        **{CACHE: None},
    )
    assert (mask is not None) == masked
    weights = {weight.untyped_storage().data_ptr() for weight in layer.parameters()}
    saved = {}

    def save(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor  # kept, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        layer(inputs, attention_mask=mask, position_embeddings=LlamaRotaryEmbedding(config)(inputs, positions))
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in weights) / 2


def check_layer(size, tokens, tolerance, masked=True, **options):
    config = llama_config(size)
    measured = saved_bytes(LlamaDecoderLayer(config, 0).requires_grad_(False), config, tokens, masked)
    two, one = (activation_bytes(size._replace(layers=n), tokens, **options) for n in (2, 1))
    assert measured == pytest.approx(two - one, rel=tolerance)


@pytest.mark.parametrize("masked", [False, True])
def test_what_a_layer_keeps(in_bf16, masked):
    check_layer(SMALL if masked else SMALL._replace(kv_heads=4), 64, 0.03, masked)


def test_what_a_layer_keeps_in_fp32():
    check_layer(SMALL, 64, 0.03, dtype_bytes=4)


@pytest.mark.slow
def test_what_a_layer_of_real_width_keeps(in_bf16):
    check_layer(SIZES["7B"], 320, 0.01)


@pytest.mark.slow  # DeepSpeed takes seconds to import
def test_linear_layers_of_zero3_keep_their_inputs(in_bf16, monkeypatch):
    linear = pytest.importorskip("deepspeed.runtime.zero.linear")
    monkeypatch.setattr(nn.functional, "linear", linear.zero3_linear_wrap)
    check_layer(SMALL, 64, 0.03, keeps_inputs=True)


@pytest.mark.parametrize(
    ("name", "tokens", "checkpointing"),
    [
        ("7B", 320, False),
        pytest.param("7B", 832, False, marks=pytest.mark.slow),
        pytest.param("7B", 320, True, marks=pytest.mark.slow),
        pytest.param("13B", 320, False, marks=pytest.mark.slow),
    ],
)
def test_peak_of_all_layers_at_their_real_size(in_bf16, name, tokens, checkpointing):
    size = SIZES[name]
    with FakeTensorMode():  # real shapes, no memory, no arithmetic
        model = LlamaModel(llama_config(size)).requires_grad_(False).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        projected = torch.randn(1, tokens, size.hidden, requires_grad=True)
        with LiveBytes(*model.parameters(), *model.buffers()) as live:
            embeddings = projected * 1  # counted, as they are in the model
            hidden = model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
            hidden.backward(torch.ones_like(hidden))
    expected = peak(size, image_tokens=0, text=tokens, labelled=0, checkpointing=checkpointing)
    assert live.peak == pytest.approx(expected.activations + expected.transient, rel=0.06 if checkpointing else 0.01)


@pytest.mark.parametrize(("tokens", "labelled"), [(512, 512), (512, 100), (ROWS * 3, ROWS * 3)])
def test_logits(in_bf16, tokens, labelled):
    head = nn.Linear(8, SMALL.vocab, bias=False).requires_grad_(False)
    hidden = torch.randn(1, tokens + 1, 8, requires_grad=True)
    labels = torch.zeros(1, tokens + 1, dtype=torch.long)
    labels[:, : tokens + 1 - labelled] = -100
    with LiveBytes(head.weight, hidden, labels) as live:
        next_token_loss(head, hidden, labels).backward()
    assert live.peak == pytest.approx(logit_bytes(SMALL, labelled), rel=0.08)


def tuning_step(size, tower, device="cpu"):
    """A model whose projector trains, and one step of it: a batch of 2 with 64 image and 256 text tokens each."""
    values = llama_config(size).to_dict() | {"model_type": LlavaConfig.model_type, "attn_implementation": "sdpa"}
    config = LlavaConfig(
        **values,
        mm_vision_tower=tower,
        mm_hidden_size=size.tower_hidden,
        mm_projector_type="mlp2x_gelu",
    )
    with torch.device(device):
        model = LlavaLlamaForCausalLM(config).requires_grad_(False).train()
        model.model.mm_projector.requires_grad_(True)
        ids = torch.randint(0, size.vocab, (2, 257))
        ids[:, 5] = -200
        labels = ids.masked_fill(torch.arange(257) < 129, -100)
        tokens = [torch.randn(1, 64, size.tower_hidden) for _ in range(2)]
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[1, -1] = False

    def step():
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "vision_tokens": tokens}
        model(**batch, loss_only=True).loss.backward()

    return model, step


def test_a_step_of_the_whole_model(in_bf16, tower_folder):
    size = SMALL._replace(hidden=256, intermediate=704, layers=4, vocab=2000)
    model, step = tuning_step(size, tower_folder("clip"))
    with LiveBytes(*model.parameters(), *model.buffers()) as live:
        step()
    expected = peak(size, batch=2)
    assert live.peak == pytest.approx(expected.activations + expected.transient, rel=0.1)
    assert all(weight.grad is not None for weight in model.model.mm_projector.parameters())


@pytest.mark.gpu
def test_a_step_at_real_width_on_a_gpu(in_bf16, tower_folder):
    size = SIZES["7B"]._replace(layers=2)
    model, step = tuning_step(size, tower_folder("clip"), "cuda")
    expected = peak(size, batch=2)
    weights = sum(weight.nbytes for weight in model.parameters())
    assert weights == expected.llm + expected.projector  # the tower is not loaded
    step()  # makes gradients, and the libraries' own workspaces
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    above = torch.cuda.max_memory_allocated() - before
    assert above == pytest.approx(expected.activations + expected.transient, rel=0.15)


def test_bytes_of_a_4_bit_weight():
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(torch.randn(1024, 1024), compress_statistics=True, quant_type="nf4")
    tensors = [packed, state.absmax, state.state2.absmax]
    assert sum(tensor.nbytes for tensor in tensors) == memory.NF4 * 1024**2


def test_what_fits():
    seven, thirteen = SIZES["7B"], SIZES["13B"]
    assert peak(seven, gpus=1).total + memory.RESERVE < 22e9
    assert memory.largest_batch(seven, "ZeRO-2", 24) >= 1
    assert memory.largest_batch(thirteen, "ZeRO-2", 24) == 0
    assert memory.largest_batch(thirteen, "ZeRO-3", 24) >= 1
    assert memory.largest_batch(thirteen, "4-bit base", 24) >= 1


@pytest.mark.parametrize("method", memory.METHODS)
def test_one_more_than_the_largest_batch_does_not_fit(method):
    most = memory.largest_batch(SIZES["7B"], method, 24, image_tokens=576)
    fits, exceeds = (peak(SIZES["7B"], method, image_tokens=576, batch=n).total for n in (most, most + 1))
    assert fits <= 24 * GIB - memory.RESERVE < exceeds


def test_the_table(capsys):
    assert memory.main([]) == 0
    *_, head, _, first = capsys.readouterr().out.splitlines()[:5]
    row = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (head, first)), strict=True))
    assert (row["model"], row["method"]) == ("7B", "ZeRO-2")
    assert row["total at batch 1"] == f"{peak(SIZES['7B']).total / GIB:.2f}"
    assert row["largest batch in 24 GiB"] == str(memory.largest_batch(SIZES["7B"], "ZeRO-2", 24))


def test_the_table_of_a_checkpoint(golden, capsys):
    assert memory.main(["--model", str(golden / "models/llava-v1.5-tiny"), "--gpus", "1"]) == 0
    assert capsys.readouterr().out.count("| llava-v1.5-tiny |") == len(memory.METHODS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--text", "10", "--labelled", "11"], "--labelled 11 is more than --text 10"), (["--model", "/no/such"], "/no/")],
)
def test_bad_requests(arguments, message, capsys):
    assert memory.main(arguments) == 2
    assert message in capsys.readouterr().err
