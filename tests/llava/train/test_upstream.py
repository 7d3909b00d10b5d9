"""What programs written for LLaVA take from its train.py: data, saving and helpers, on the original's own values."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llava import conversation
from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.model.builder import load_pretrained_model
from llava.model.tokenizer import load_tokenizer
from llava.train import train_mem
from llava.train.llava_trainer import LengthGroupedSampler, LLaVATrainer
from llava.train.train import (
    DataArguments,
    DataCollatorForSupervisedDataset,
    LazySupervisedDataset,
    TrainingArguments,
    find_all_linear_names,
    get_mm_adapter_state_maybe_zero_3,
    get_peft_state_maybe_zero_3,
    get_peft_state_non_lora_maybe_zero_3,
    main,
    make_supervised_data_module,
    preprocess,
    preprocess_llama_2,
    preprocess_multimodal,
    preprocess_plain,
    preprocess_v1,
    safe_save_model_for_hf_trainer,
    smart_tokenizer_and_embedding_resize,
    train,
)

GOLDEN = Path(__file__).parents[2] / "golden"
SIGNS = Path(__file__).parents[3] / "playground/checkpoints/llava-signs"
SAMPLES = json.loads((GOLDEN / "json/train_dataset.json").read_text())
TALKS = json.loads((GOLDEN / "json/train_preprocess.json").read_text())


@pytest.fixture
def template(monkeypatch):
    """Sets the template as upstream's programs do: `template("plain")`."""
    return lambda name: monkeypatch.setattr(conversation, "default_conversation", conv_templates[name])


@pytest.fixture(scope="module")
def loaded():
    return load_pretrained_model(str(GOLDEN / "models/llava-v1.5-tiny"), device="cpu")[:3]


@pytest.fixture
def tokenizer():
    return load_tokenizer(GOLDEN / "models/llava-v1.5-tiny", model_max_length=2048)


@pytest.fixture
def data_args(loaded, tmp_path):
    """As upstream's `train` completes them."""
    (tmp_path / "data.json").write_text(json.dumps(SAMPLES["data"]))
    arguments = DataArguments(data_path=str(tmp_path / "data.json"), image_folder=str(GOLDEN / "images"))
    arguments.image_processor, arguments.is_multimodal, arguments.mm_use_im_start_end = loaded[2], True, False
    return arguments


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_samples_and_batches_are_the_golden_ones(data_args, tokenizer, aspect):
    data_args.image_aspect_ratio, expected = aspect, SAMPLES[aspect]
    module = make_supervised_data_module(tokenizer=tokenizer, data_args=data_args)
    dataset = module["train_dataset"]
    assert module["eval_dataset"] is None
    assert dataset.list_data_dict == SAMPLES["data"]
    assert (dataset.lengths, dataset.modality_lengths) == (expected["lengths"], expected["modality_lengths"])
    items = [dataset[i] for i in range(len(dataset))]
    for item, golden in zip(items, expected["items"], strict=True):
        assert item["input_ids"].tolist() == golden["input_ids"]
        assert item["labels"].tolist() == golden["labels"]
        assert list(item["image"].shape) == golden["image_shape"]
        assert item["image"].mean().item() == pytest.approx(golden["image_mean"], abs=1e-4)
    batch, golden = module["data_collator"](items), expected["collated"]
    assert batch["input_ids"].tolist() == golden["input_ids"]
    assert batch["labels"].tolist() == golden["labels"]
    assert batch["attention_mask"].int().tolist() == golden["attention_mask"]
    assert list(batch["images"].shape) == golden["images_shape"]


def test_batches_are_cut_and_may_have_no_images(tokenizer):
    tokenizer.model_max_length = 3
    sample = {"input_ids": torch.arange(1, 6), "labels": torch.arange(1, 6)}
    batch = DataCollatorForSupervisedDataset(tokenizer=tokenizer)([sample, sample])
    assert batch.keys() == {"input_ids", "labels", "attention_mask"}
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[1, 2, 3]] * 2


def test_a_sample_has_one_image(data_args, tokenizer, tmp_path):
    record = copy.deepcopy(SAMPLES["data"][0])
    record["image"] = [record["image"]] * 2
    record["conversations"][0]["value"] = "<image><image>\nWhat is different?"
    (tmp_path / "data.json").write_text(json.dumps([record]))
    with pytest.raises(ValueError, match="has 2 images"):
        LazySupervisedDataset(data_args.data_path, tokenizer, data_args)[0]


@pytest.mark.parametrize(
    "case",
    [case for case in TALKS["cases"] if case["warning"] is None and case["template"] != "llava_v0"],
    ids=lambda case: f"{case['template']}-{case['conversation_index']}-{case['legacy']}",
)
def test_ids_and_labels_are_the_golden_ones(case, template):
    template(case["template"])
    tokenizer = load_tokenizer(
        GOLDEN / "models/llava-v1.5-tiny", legacy=case["legacy"], model_max_length=case["model_max_length"]
    )
    sources = copy.deepcopy([TALKS["conversations"][case["conversation_index"]]])
    if case["has_image"]:
        asked = SimpleNamespace(is_multimodal=True, mm_use_im_start_end=case["mm_use_im_start_end"])
        assert preprocess_multimodal(sources, asked) is sources
        assert [turn["value"] for turn in sources[0]] == case["after_preprocess_multimodal"]
    made = preprocess(sources, tokenizer, has_image=case["has_image"])
    assert made["input_ids"].tolist() == [case["input_ids"]]
    assert made["labels"].tolist() == [case["labels"]]


def test_each_kind_of_template_has_its_function(template, tokenizer):
    source = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A dog."}]
    template("plain")
    caption = preprocess_plain([source], tokenizer)
    assert caption["labels"][0, :2].tolist() == [IGNORE_INDEX] * 2
    with pytest.raises(ValueError, match="of style PLAIN; this function is for TWO"):
        preprocess_v1([source], tokenizer, has_image=True)
    template("llava_llama_2")
    made = preprocess_llama_2([source, [*source[:1], {"from": "gpt", "value": "Two dogs."}]], tokenizer, True)
    assert made["input_ids"].shape == made["labels"].shape
    assert made["labels"][0, -1] == IGNORE_INDEX  # padding


def test_a_run_of_upstreams_own_making(signs_data, tmp_path):
    """The parts put together as upstream's `train` does: the projector learns, and is saved."""
    tokenizer, model, processor = load_pretrained_model(str(SIGNS), device="cpu")[:3]
    tokenizer.model_max_length = 512
    model.requires_grad_(False)
    model.get_model().mm_projector.requires_grad_(True)
    data = DataArguments(data_path=str(signs_data / "data.json"), image_folder=str(signs_data))
    data.image_processor, data.is_multimodal = processor, True
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, report_to="none", logging_steps=1
    )
    arguments.tune_mm_mlp_adapter, arguments.group_by_modality_length = True, True
    module = make_supervised_data_module(tokenizer=tokenizer, data_args=data)
    before = copy.deepcopy(model.get_model().mm_projector.state_dict())
    trainer = LLaVATrainer(model=model, tokenizer=tokenizer, args=arguments, **module)
    trainer.train()
    safe_save_model_for_hf_trainer(trainer=trainer, output_dir=arguments.output_dir)
    saved = torch.load(tmp_path / "out/mm_projector.bin", weights_only=True)
    assert saved.keys() == {f"model.mm_projector.{name}" for name in before}
    assert any(not torch.equal(saved[f"model.mm_projector.{name}"], value) for name, value in before.items())
    assert (tmp_path / "out/config.json").is_file()
    assert (tmp_path / "out/checkpoint-2/mm_projector.bin").is_file()
    tuned = load_pretrained_model(str(tmp_path / "out"), str(SIGNS), device="cpu")[1]
    assert torch.equal(tuned.get_model().mm_projector[0].weight, saved["model.mm_projector.0.weight"])


def test_train_reads_the_command_line(flags, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("llava.train.train.tune", lambda run: seen.append(run.training.attn_implementation) or 0)
    monkeypatch.setattr("sys.argv", ["train_mem.py", *flags(), "--local_rank=0"])
    train()
    train(attn_implementation="flash_attention_2")
    train_mem.train("eager")
    assert main(flags(attn_implementation="sdpa"), attn_implementation="eager") == 0
    assert seen == [None, "flash_attention_2", "eager", "sdpa"]
    monkeypatch.setattr("sys.argv", ["train_mem.py"])
    with pytest.raises(ValueError, match="model_name_or_path"):
        train()


def test_the_attention_that_is_asked_for_is_used(flags, tmp_path, monkeypatch):
    from llava.train import loading
    from llava.train.run import parse

    model = loading.load(parse(flags(attn_implementation="eager")))[1]
    assert model.config._attn_implementation == "eager"


def test_flash_attention_where_it_can_run(monkeypatch):
    for installed, gpu, expected in ((True, True, "flash_attention_2"), (True, False, None), (None, True, None)):
        monkeypatch.setattr(train_mem, "find_spec", lambda name, installed=installed: installed)
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert train_mem.usual_attention() == expected


def test_linear_layers_are_those_of_the_language_model(loaded):
    assert set(find_all_linear_names(loaded[1])) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_new_tokens_begin_as_the_mean(tiny_llava, tokenizer):
    model = tiny_llava()
    before = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    old = model.get_input_embeddings().weight.detach().clone()
    smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model)
    rows = model.get_input_embeddings().weight
    assert tokenizer.pad_token == "[PAD]"
    assert len(rows) == len(tokenizer) == len(old) + 1
    torch.testing.assert_close(rows[-1], old.mean(0))
    assert torch.equal(rows[: len(before)], before)


def test_states_that_are_saved():
    adapted, plain = "layers.0.q_proj.", "layers.0.norm."
    parameters = {
        f"{adapted}lora_A.default.weight": nn.Parameter(torch.ones(1)),
        f"{adapted}base_layer.bias": nn.Parameter(torch.ones(1), requires_grad=False),
        f"{plain}bias": nn.Parameter(torch.ones(1)),
        "mm_projector.0.weight": nn.Parameter(torch.ones(1)),
    }
    names = list(parameters)
    for bias, kept in (("none", names[:1]), ("all", names[:3]), ("lora_only", names[:2])):
        assert list(get_peft_state_maybe_zero_3(parameters.items(), bias)) == kept
    with pytest.raises(ValueError, match="lora_only"):
        get_peft_state_maybe_zero_3(parameters.items(), "some")
    assert list(get_peft_state_non_lora_maybe_zero_3(parameters.items())) == names[2:]
    assert list(get_peft_state_non_lora_maybe_zero_3(parameters.items(), require_grad_only=False)) == names[1:]
    state = get_mm_adapter_state_maybe_zero_3(parameters.items(), ["mm_projector"])
    assert list(state) == names[3:]
    parameters[names[3]].data.fill_(2)
    assert state[names[3]] == 1  # a copy
    assert not state[names[3]].requires_grad


def test_a_sampler_may_have_a_generator():
    def order(seed):
        generator = torch.Generator().manual_seed(seed)
        return list(LengthGroupedSampler(2, 2, lengths=list(range(1, 60)), generator=generator))

    assert order(1) == order(1) != order(2)
