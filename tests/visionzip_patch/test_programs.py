"""Programs around transformers' LLaVA, zipped: trainers, pipelines, peft, hooks and replicas do as they always do."""

import copy
import functools
import inspect
import io
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlavaModel, Trainer, TrainingArguments, pipeline

from tests.visionzip_patch.test_adapters import ONE, SQUARE, WIDE, inputs_for, make_model, make_processor, pixels
from tests.visionzip_patch.test_callers import MODELS, answer, features_of, pair, words
from visionzip_patch import unzip, visionzip

LORA = LoraConfig(target_modules=r".*language_model.*q_proj", task_type="CAUSAL_LM")


def rows(model, given):
    labels = words(given, model)
    return [{**{name: value[i] for name, value in given.items()}, "labels": row} for i, row in enumerate(labels)]


def stack(examples):
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def count_right(predicted):
    """Accuracy of words."""
    logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    labels = predicted.label_ids[:, 1:]
    return {"accuracy": float((logits[:, :-1].argmax(-1) == labels)[labels != -100].mean())}


def own_pair(kind="llava"):
    """`pair`, of models that may be trained: all but what makes the images."""
    (model, given), (plain, short) = pair(kind)
    zipped, model, plain = model, copy.deepcopy(model), make_model(kind)
    plain.model.get_image_features = features_of(zipped, plain)
    for part in (model, plain):
        part.model.vision_tower.requires_grad_(False)
        part.model.multi_modal_projector.requires_grad_(False)
    return (model, given), (plain, short)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", MODELS)
def test_trainer_trains_and_measures(kind, smoothing, tmp_path):
    found = []
    for model, given in own_pair(kind):
        args = TrainingArguments(
            str(tmp_path),
            label_smoothing_factor=smoothing,
            per_device_train_batch_size=2,
            max_steps=2,
            learning_rate=1e-3,
            gradient_checkpointing=True,
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        data = rows(model, given)
        trainer = Trainer(
            model, args, train_dataset=data, eval_dataset=data, data_collator=stack, compute_metrics=count_right
        )
        before, loss, after = trainer.evaluate(), trainer.train().training_loss, trainer.evaluate()
        assert after["eval_loss"] < before["eval_loss"]
        found.append([before["eval_loss"], loss, after["eval_loss"], after["eval_accuracy"]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def fuse(model):
    """The forward of trainers that keep the logits out of memory: the inner model, then labelled positions alone."""

    @functools.wraps(type(model).forward)
    def forward(*args, labels=None, **kwargs):
        hidden = model.base_model(*args, **kwargs, use_cache=False).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        return nn.functional.cross_entropy(model.lm_head(hidden[labels != -100]), labels[labels != -100])

    model.forward = forward


@pytest.mark.parametrize("kind", MODELS)
def test_a_trainer_replaces_forward(kind):
    losses, grads = [], []
    for model, given in own_pair(kind):
        fuse(model)
        losses.append(model(**given, labels=words(given, model)))
        losses[-1].backward()
        grads.append(model.model.language_model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_trl_trains(tmp_path):
    """In an environment that has trl, which no extra brings: `pip install trl datasets`, then `pytest -m slow` here."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    template = (
        "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image> {% else %}"
        "{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "a b c"}]}
    data = [{"prompt": [asked], "completion": [said], "images": [image]} for image in (WIDE, SQUARE)]
    losses = []
    for budget in ((5, 2), None):
        model, processor = make_model(), make_processor()
        processor.chat_template = processor.tokenizer.chat_template = template
        model = visionzip(model, *budget) if budget else model
        args = trl.SFTConfig(
            str(tmp_path), max_steps=1, max_length=None, report_to=[], save_strategy="no", use_cpu=True, bf16=False
        )
        trainer = trl.SFTTrainer(
            model, args, train_dataset=datasets.Dataset.from_list(data), processing_class=processor
        )
        losses.append(trainer.train().training_loss)
    assert 0 < losses[0] != losses[1] > 0


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_peft_inside_and_outside(kind):
    (model, given), (plain, short) = own_pair(kind)
    labels, expected = words(given, model), plain(**short, labels=words(short, plain)).loss
    outside = get_peft_model(copy.deepcopy(model), LORA)  # around a zipped model
    inside = visionzip(get_peft_model(make_model(kind), LORA), 5, 2)
    for wrapped in (outside, inside):
        torch.testing.assert_close(wrapped(**given, labels=labels).loss, expected)
        assert torch.equal(answer(wrapped, given), answer(plain, short))
        torch.testing.assert_close(wrapped.merge_and_unload()(**given, labels=labels).loss, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_replicas_of_data_parallel_run_on_their_own_weights(kind):
    """As `nn.DataParallel` makes them, where each has its weights on a device of its own."""
    (model, given), _ = own_pair(kind)
    expected = model(**given).logits
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        for name, child in module.named_children():
            setattr(replica, name, replicas[child])
        for name, weight in module._parameters.items():
            setattr(replica, name, None if weight is None else weight.clone())
    replica = replicas[model]
    for method in ("forward", "generate"):
        assert vars(replica)[method].args[0] is replica
    for weight in model.parameters():
        weight.zero_()
    assert torch.equal(replica(**given).logits, expected)
    assert unzip(model).model is not replica.model
    assert torch.equal(replica(**given).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_the_inner_model_by_itself(kind):
    (model, given), _ = pair(kind)
    inner = make_model(kind).model
    whole = inner(**given).last_hidden_state
    assert torch.equal(visionzip(inner, 5, 2)(**given).last_hidden_state, model.model(**given).last_hidden_state)
    assert torch.equal(unzip(inner)(**given).last_hidden_state, whole)
    assert not {"forward", "get_image_features"} & set(vars(inner))
    assert isinstance(make_model().model, LlavaModel)


@torch.no_grad()
@pytest.mark.parametrize("first", ["zip", "dispatch"])
def test_parts_that_accelerate_keeps_elsewhere(first, tmp_path):
    from accelerate import dispatch_model

    (model, given), _ = pair("llava_next")
    parts = {"model.vision_tower": "disk", "model.language_model": "disk"}
    parts |= dict.fromkeys(("model.multi_modal_projector", "model.image_newline", "lm_head"), "cpu")
    kept = make_model("llava_next")
    kept = visionzip(kept, 5, 2) if first == "zip" else kept
    kept = dispatch_model(kept, parts, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    kept = kept if first == "zip" else visionzip(kept, 5, 2)
    assert torch.equal(kept(**given).logits, model(**given).logits)
    assert torch.equal(answer(kept, given), answer(model, given))


@torch.no_grad()
@pytest.mark.parametrize("clone", ["deepcopy", "pickle", "torch.save"])
def test_copies_answer_alone(clone):
    (model, given), _ = own_pair("llava_next")
    expected = answer(model, given)
    if clone == "torch.save":
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        twin = torch.load(file, weights_only=False)  # written a line ago
    else:
        twin = copy.deepcopy(model) if clone == "deepcopy" else pickle.loads(pickle.dumps(model))
    for part in (model, twin):
        for owner in (part, part.model):
            assert vars(owner)["forward"].args[0] is owner
    for weight in unzip(model).parameters():
        weight.zero_()
    assert torch.equal(answer(twin, given), expected)


def test_a_pipeline_answers():
    model, processor = make_model(), make_processor()
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    visionzip(model, 5, 2)
    given = dict(inputs_for("llava", [SQUARE], [ONE]))
    said = processor.decode(answer(model, given, suppress_tokens=None)[0], skip_special_tokens=True)
    assert ask(images=[SQUARE], text=ONE, **options)[0]["generated_text"].split() == said.split()


@torch.no_grad()
def test_features_made_before():
    """`mm_encoder_outputs`, which transformers takes in place of pixels in newer versions."""
    (model, given), _ = pair("llava_next")
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        pytest.skip("this version of transformers does not take them")
    rest = {name: value for name, value in given.items() if name != "pixel_values"}
    rest["mm_encoder_outputs"] = {"image": model.get_image_features(**pixels(given))}
    assert torch.equal(model(**rest).logits, model(**given).logits)


@pytest.mark.slow
@torch.no_grad()
def test_compiled():
    (model, given), _ = pair()
    logits = torch.compile(model, backend="eager")(**given).logits
    torch.testing.assert_close(logits, model(**given).logits)
    torch.compiler.reset()
