"""What all tests share: one thread each, no hub, and the golden data beside this file."""

import os
import signal
import sys
from pathlib import Path

import pytest


def pytest_configure():
    if "OMP_NUM_THREADS" not in os.environ:  # tests run side by side
        os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here or in a process that a test starts
        if torch := sys.modules.get("torch"):  # imported before, by a conftest.py of the tests that were asked for
            torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # forked workers would warn


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def every_warning_anew():
    """What one test has made the library say once, it says to the next one, too."""
    from visionzip_patch import once  # imports torch: not before `pytest_configure`

    once.said.clear()


class Clock:
    """Stands in for the module `time`: moves by `sleep`, which returns at once, and by `tick` at each reading."""

    def __init__(self, tick: float):
        self.now, self.tick = 0.0, tick

    def perf_counter(self) -> float:
        self.now += self.tick
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """Gives a module a clock of its own, so that no test measures this machine: `clock("llava.serve.timing")`."""

    def give(module: str, tick: float = 0.0) -> Clock:
        given = Clock(tick)
        monkeypatch.setattr(f"{module}.time", given)
        return given

    return give


@pytest.fixture
def interruptible():
    """Lets the programs that a test starts hear Ctrl-C, even where tests run deaf to it: after nohup, in background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of expected values, produced once by LLaVA 1.2.2 and VisionZip 0.1.3."""
    return Path(__file__).parent / "golden"


TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}


@pytest.fixture(scope="session")
def tower_sizes() -> dict:
    """The numbers of a small vision encoder, for its config."""
    return dict(TOWER)


@pytest.fixture(scope="session")
def tower_folder(tmp_path_factory):
    """Makes a folder with a small random vision encoder: `tower_folder("clip", image_size=28)` -> its path."""

    def make(kind="clip", **changes) -> str:
        import torch
        from transformers import (
            CLIPImageProcessorPil,
            CLIPVisionConfig,
            CLIPVisionModel,
            SiglipImageProcessorPil,
            SiglipVisionConfig,
            SiglipVisionModel,
        )

        folder = tmp_path_factory.mktemp(kind)
        size = {**TOWER, **changes}
        torch.manual_seed(0)
        if kind == "clip":
            encoder = CLIPVisionModel(CLIPVisionConfig(**size))
            side = {"size": {"shortest_edge": size["image_size"]}, "crop_size": size["image_size"]}
            processor = CLIPImageProcessorPil(**side)
        else:
            encoder = SiglipVisionModel(SiglipVisionConfig(**size, vision_use_head=False))
            processor = SiglipImageProcessorPil(size={"height": size["image_size"], "width": size["image_size"]})
        for parameter in encoder.parameters():  # spread out, so that attention differs between images
            parameter.data += 0.05 * torch.randn_like(parameter)
        encoder.save_pretrained(folder)
        processor.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def tiny_tower(tower_folder):
    """`tiny_tower("siglip", num_hidden_layers=4, select_layer=-1)` -> a loaded vision tower."""

    def make(kind="clip", select_layer=-2, select_feature="patch", **changes):
        from types import SimpleNamespace

        from llava.model.multimodal_encoder.builder import build_vision_tower

        args = {"mm_vision_select_layer": select_layer, "mm_vision_select_feature": select_feature}
        return build_vision_tower(SimpleNamespace(mm_vision_tower=tower_folder(kind, **changes), **args)).eval()

    return make


@pytest.fixture(scope="session")
def tiny_llava(tower_folder):
    """`tiny_llava("mistral", tower="siglip", mm_patch_merge_type="spatial_unpad")` -> a small random LLaVA, loaded."""
    folders = {}

    def make(family="llama", tower="clip", **changes):
        import torch

        from llava import model as llava_model

        if tower not in folders:
            folders[tower] = tower_folder(tower)
        name = {"llama": "Llava", "mistral": "LlavaMistral", "qwen": "LlavaQwen"}[family]
        config = getattr(llava_model, f"{name}Config")(
            vocab_size=200,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            mm_vision_tower=folders[tower],
            mm_hidden_size=TOWER["hidden_size"],
            mm_projector_type="mlp2x_gelu",
            mm_vision_select_layer=-2,
            **changes,
        )
        torch.manual_seed(0)
        model = getattr(llava_model, "LlavaLlamaForCausalLM" if family == "llama" else f"{name}ForCausalLM")(config)
        for parameter in model.parameters():  # a freshly drawn model answers every prompt alike
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.get_vision_tower().load_model()
        return model.eval()

    return make


@pytest.fixture(scope="session")
def ascii_tokenizer():
    """`ascii_tokenizer("<|im_end|>", eos="<|im_end|>")` -> a tokenizer of ASCII letters and these marks.

    With `adds_bos` it puts `bos` before every text, as Llama-3's does.
    """

    def make(*marks, bos=None, eos="<eos>", adds_bos=False, chat_template=None):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        letters = ["\u010a", "\u0120", *map(chr, range(33, 127))]  # byte-level BPE writes line break and space so
        bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        bpe.add_special_tokens([mark for mark in (bos, eos, *marks) if mark])
        if adds_bos:
            bpe.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, bpe.token_to_id(bos))])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=eos)
        tokenizer.chat_template = chat_template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def llama_3(ascii_tokenizer):
    """A tokenizer with Llama-3's marks. Its end of text is no end of a turn."""
    marks = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return ascii_tokenizer(*marks, bos="<|begin_of_text|>", eos="<|end_of_text|>", adds_bos=True)
