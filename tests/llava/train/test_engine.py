"""Whole runs on the embedded model, in this process: what moves, what is kept, what stops them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llava.conversation import template_for
from llava.model.builder import load_pretrained_model
from llava.model.description import read_config
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.train.loading import lora_targets
from llava.train.train import main
from llava.train.trainer import LLaVATrainer, checkpoints, optimizer_groups
from llava.utils.files import drop_lock, take_lock

SIGNS = Path(__file__).parents[3] / "playground" / "checkpoints" / "llava-signs"
KEYS = [f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]


def told(folder):
    return json.loads((folder / "training.json").read_text())


def losses(folder):
    return [line["loss"] for line in told(folder)["history"] if "loss" in line]


def projector(folder):
    return torch.load(folder / "mm_projector.bin", weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Killed(BaseException):
    """Nobody catches it: as good as SIGKILL, in one process."""


def kill_after(monkeypatch, step):
    """The run dies at the step after `step`."""
    learn = LLaVATrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Killed
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(LLaVATrainer, "compute_loss", compute_loss)
    return lambda: monkeypatch.setattr(LLaVATrainer, "compute_loss", learn)


@pytest.fixture(scope="module")
def base():
    return load_pretrained_model(str(SIGNS), device="cpu")[1].state_dict()


def test_only_the_projector_moves(flags, tmp_path, base):
    assert main(flags()) == 0
    out = tmp_path / "out"
    saved = projector(out)
    assert sorted(saved) == sorted(KEYS)
    _, model, _, _ = load_pretrained_model(str(out), str(SIGNS), device="cpu")
    assert model.config.visionzip["dominant"] == 3
    assert model.get_vision_tower().reducer.config.contextual == 1
    for key, value in model.state_dict().items():
        if key in KEYS:
            assert not torch.equal(value, base[key]), key
            assert torch.equal(value, saved[key]), key
        else:
            assert torch.equal(value, base[key]), key
    assert {"config.json", "mm_projector.bin", "training.json", "loss.png", "run.json"} <= {
        file.name for file in out.iterdir()
    }
    report = json.loads((out / "training.json").read_text())
    assert report["samples"]["used"] == report["samples"]["in_file"]
    assert report["budget"] == "3+1 tokens per crop"
    assert len(report["history"]) == 5  # four steps and the summary
    assert report["history"][1]["samples_per_second"] > 0


def test_cached_features_change_nothing(flags, tmp_path):
    assert main(flags()) == 0
    for folder in ("fills", "reads"):
        assert main(flags(output_dir=tmp_path / folder, cache_features=tmp_path / "cache")) == 0
    torch.testing.assert_close(losses(tmp_path / "fills"), losses(tmp_path / "out"), rtol=1e-4, atol=1e-5)
    assert same(projector(tmp_path / "fills"), projector(tmp_path / "reads"))


def test_a_cache_of_another_budget_is_refused(flags, tmp_path, capsys):
    assert main(flags(max_steps=1, cache_features=tmp_path / "cache")) == 0
    assert main(flags(output_dir=tmp_path / "b", dominant=4, cache_features=tmp_path / "cache")) == 2
    assert "dominant" in capsys.readouterr().err


def test_a_killed_run_goes_on_as_if_nothing_had_happened(flags, tmp_path, monkeypatch):
    options = {"max_steps": 6, "group_by_modality_length": True}
    assert main(flags(output_dir=tmp_path / "whole", **options)) == 0
    live_again = kill_after(monkeypatch, 3)
    with pytest.raises(Killed):
        main(flags(**options))
    live_again()
    out = tmp_path / "out"
    assert [path.name for path in checkpoints(out)] == ["checkpoint-2"]
    (out / ".saving-4").mkdir()  # what dying while saving leaves
    spent = out / "checkpoint-2" / "spent.json"
    before = json.loads(spent.read_text())
    assert before["seconds"] > 0
    assert before["loss"] == pytest.approx(sum(losses(tmp_path / "whole")[:2]))
    spent.write_text(json.dumps({**before, "seconds": 1000.0, "skipped": 3}))
    assert main(flags(**options)) == 0
    assert losses(out) == losses(tmp_path / "whole")
    assert same(projector(out), projector(tmp_path / "whole"))
    assert not (out / ".saving-4").exists()
    whole, resumed = told(tmp_path / "whole"), told(out)
    assert 1000 < resumed["seconds"] < 1000 + 600
    assert resumed["samples"]["skipped_while_training"] == 3
    *_, last = resumed["history"]
    assert last["train_loss"] == pytest.approx(whole["history"][-1]["train_loss"])
    assert last["train_runtime"] == resumed["seconds"]
    assert last["train_samples_per_second"] == pytest.approx(6 * 8 / resumed["seconds"], rel=0.01)


def test_a_finished_run_is_not_repeated_unless_asked(flags, tmp_path, capsys):
    assert main(flags()) == 0
    written = (tmp_path / "out" / "mm_projector.bin").stat().st_mtime_ns
    assert main(flags()) == 0
    assert "finished" in capsys.readouterr().err
    assert (tmp_path / "out" / "mm_projector.bin").stat().st_mtime_ns == written
    assert main(flags(learning_rate=2e-3)) == 2
    assert "learning_rate 0.001 → 0.002" in capsys.readouterr().err
    assert main(flags(learning_rate=2e-3, overwrite_output_dir=True)) == 0
    assert (tmp_path / "out" / "mm_projector.bin").stat().st_mtime_ns != written


@pytest.mark.parametrize(
    "name", ["config.json", "model-00001-of-00002.safetensors", "mm_projector.bin", "training.json"]
)
@pytest.mark.parametrize("options", [{}, {"overwrite_output_dir": True}])
def test_a_folder_with_a_model_of_others_is_left_alone(flags, tmp_path, capsys, name, options):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    assert main(flags(**options)) == 2
    assert f"out has no run.json, but {name}, which the result would replace" in capsys.readouterr().err
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_model_that_is_tuned_is_not_written_over(flags, tmp_path, capsys):
    model = tmp_path / "out"
    shutil.copytree(SIGNS, model)
    (model / "run.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert main(flags(model_name_or_path=model, overwrite_output_dir=True)) == 2
    assert f"--output_dir {model} is {model}, which the run reads" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_two_runs_do_not_share_a_folder(flags, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    held = take_lock(tmp_path / "out" / "run.lock")
    assert main(flags()) == 2
    assert "Another process is writing" in capsys.readouterr().err
    drop_lock(held, tmp_path / "out" / "run.lock")
    assert main(flags(max_steps=1)) == 0


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_learnt(flags, tmp_path, monkeypatch, capsys):
    from transformers import Trainer

    learn = Trainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        loss = learn(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(Trainer, "compute_loss", compute_loss)
    assert main(flags()) == 2
    said = capsys.readouterr().err
    assert "The loss of step 4 is nan" in said
    assert "checkpoint-2" in said
    assert not (tmp_path / "out" / "mm_projector.bin").exists()
    kept = projector(tmp_path / "out" / "checkpoint-2")
    assert all(torch.isfinite(value).all() for value in kept.values())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_leaves_the_last_checkpoint(flags, tmp_path, monkeypatch, capsys, error):
    save = torch.save

    def fail(content, file, *args, **kwargs):
        if "saving-4" in str(file):
            raise error
        return save(content, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", fail)
    assert main(flags(max_steps=6)) == 2
    assert "checkpoint-4 could not be written" in capsys.readouterr().err
    out = tmp_path / "out"
    assert [path.name for path in checkpoints(out)] == ["checkpoint-2"]
    assert not list(out.glob(".saving-*"))
    monkeypatch.setattr(torch, "save", save)
    assert main(flags(max_steps=6)) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_path": "nowhere.json"}, "nowhere.json"),
        ({"image_folder": "nowhere"}, "Image folder nowhere"),
        ({"model_name_or_path": "nowhere/at/all"}, "nowhere/at/all"),
        ({"pretrain_mm_mlp_adapter": "nowhere.bin"}, "nowhere.bin"),
        ({"dominant": 60, "contextual": 10}, "70"),
        ({"vision_tower": "openai/clip-vit-large-patch14-336"}, "Leave the flag out"),
    ],
)
def test_what_cannot_work_is_told(flags, tmp_path, capsys, changes, said):
    assert main(flags(**changes)) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert not (tmp_path / "out" / "mm_projector.bin").exists()


def test_bad_samples_are_left_out_and_counted_on_demand(flags, signs_data, tmp_path, capsys):
    records = json.loads((signs_data / "data.json").read_text())
    records[0]["image"] = "missing.png"
    records[1]["conversations"] = []
    (tmp_path / "bad.json").write_text(json.dumps(records))
    assert main(flags(data_path=tmp_path / "bad.json")) == 2
    assert "2 of" in capsys.readouterr().err
    assert main(flags(data_path=tmp_path / "bad.json", skip_bad_data=True)) == 0
    samples = json.loads((tmp_path / "out" / "training.json").read_text())["samples"]
    assert samples["bad"] == 2
    assert samples["used"] == samples["in_file"] - 2


@pytest.mark.parametrize("images_only", [True, False])
def test_videos_are_refused_and_never_learnt_as_text(flags, signs_data, tmp_path, capsys, images_only):
    records = json.loads((signs_data / "data.json").read_text())
    text = next(record for record in records if "image" not in record)
    (tmp_path / "bad.json").write_text(json.dumps([*records, text | {"id": "v", "video": "a.mp4"}]))
    command = {"data_path": tmp_path / "bad.json", "images_only": images_only, "max_steps": 1}
    assert main(flags(**command)) == 2
    assert "\"video\": 'a.mp4'; only images are seen" in capsys.readouterr().err
    assert main(flags(**command, skip_bad_data=True)) == 0
    assert json.loads((tmp_path / "out" / "training.json").read_text())["samples"]["bad"] == 1


@pytest.mark.parametrize(("version", "recorded"), [(None, "vicuna_v1"), ("v0", "v0"), ("plain", None)])
def test_the_template_of_training_is_recorded_for_those_who_ask(flags, signs_data, tmp_path, version, recorded):
    records = [record for record in json.loads((signs_data / "data.json").read_text()) if "image" in record]
    captions = [record | {"conversations": record["conversations"][:2]} for record in records]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    assert main(flags(data_path=tmp_path / "captions.json", version=version, max_steps=1)) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text()).get("conv_mode") == recorded
    assert json.loads((tmp_path / "out" / "training.json").read_text())["template"] == (version or recorded)
    if recorded:
        tokenizer, model, _, _ = load_pretrained_model(str(tmp_path / "out"), str(SIGNS), device="cpu")
        assert template_for(model.config, tokenizer).name == recorded


def test_a_model_learns_in_the_template_of_its_own_tokenizer(flags, tiny_llava, llama_3, tmp_path, monkeypatch):
    tiny_llava("llama").save_pretrained(tmp_path / "model")
    llama_3.save_pretrained(tmp_path / "model")
    batches, forward = [], LlavaLlamaForCausalLM.forward

    def note(model, **batch):
        batches.append(batch)
        return forward(model, **batch)

    monkeypatch.setattr(LlavaLlamaForCausalLM, "forward", note)
    assert main(flags(model_name_or_path=tmp_path / "model", max_steps=1)) == 0
    ids, labels = (batches[0][name][0] for name in ("input_ids", "labels"))
    bos, end = llama_3.convert_tokens_to_ids(["<|begin_of_text|>", "<|eot_id|>"])
    assert (ids[0], (ids == bos).sum()) == (bos, 1)
    assert (labels == end).sum() == (ids == end).sum() // 2  # answers end so, system and questions too
    assert json.loads((tmp_path / "out" / "config.json").read_text())["conv_mode"] == "llava_llama_3"


@pytest.mark.parametrize(("content", "told"), [({"settings": {"version": "mpt"}}, "mpt"), ([], None), ({}, None)])
def test_a_template_that_only_the_report_of_training_names_is_taken(flags, tmp_path, content, told):
    assert main(flags(max_steps=1)) == 0
    config, report = (tmp_path / "out" / name for name in ("config.json", "training.json"))
    fields = json.loads(config.read_text())
    assert fields.pop("conv_mode") == "vicuna_v1"
    config.write_text(json.dumps(fields))
    report.write_text(json.dumps(content))
    assert getattr(read_config(str(tmp_path / "out"))[0], "conv_mode", None) == told


def test_a_share_of_the_data_and_images_only(flags, tmp_path):
    assert main(flags(data_fraction=0.5, images_only=True, max_steps=1)) == 0
    samples = json.loads((tmp_path / "out" / "training.json").read_text())["samples"]
    assert samples["with_image"] == samples["used"] == samples["drawn"] < samples["in_file"] / 2


def test_accumulated_batches_weigh_every_label_alike(flags, tmp_path, base):
    """As a whole: of a single weight, Adam may make much of what rounding has left in a tiny gradient."""
    assert main(flags(output_dir=tmp_path / "one", max_steps=3)) == 0
    assert main(flags(per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=3)) == 0
    torch.testing.assert_close(losses(tmp_path / "out"), losses(tmp_path / "one"), rtol=1e-4, atol=1e-5)
    for key, value in projector(tmp_path / "one").items():
        learnt, differs = value - base[key], value - projector(tmp_path / "out")[key]
        assert differs.norm() < 0.01 * learnt.norm(), key


def test_lora_loads_through_the_builder(flags, tmp_path):
    options = {"tune_mm_mlp_adapter": None, "lora_enable": True, "lora_r": 4, "max_steps": 3}
    assert main(flags(**options)) == 0
    out = tmp_path / "out"
    files = {file.name for file in out.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "non_lora_trainables.bin", "config.json"} <= files
    _, tuned, _, _ = load_pretrained_model(str(out), device="cpu")  # the adapter names its base
    _, base, _, _ = load_pretrained_model(str(SIGNS), device="cpu")
    beside = torch.load(out / "non_lora_trainables.bin", weights_only=True)
    assert sorted(beside) == [f"base_model.model.{key}" for key in sorted(KEYS)]
    before, after = base.state_dict(), tuned.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed >= set(KEYS)
    assert {key.split(".")[-2] for key in changed - set(KEYS)} == set(lora_targets(base))
    assert not any("vision_tower" in key or "lm_head" in key or "embed" in key for key in changed)


def test_full_tuning_writes_a_checkpoint_that_stands_alone(flags, tmp_path, base):
    assert main(flags(tune_mm_mlp_adapter=None, learning_rate=1e-4, max_steps=2, save_steps=1)) == 0
    tokenizer, model, _, _ = load_pretrained_model(str(tmp_path / "out"), device="cpu")
    after = model.state_dict()
    moved = {key for key in base if not torch.equal(base[key], after[key])}
    assert moved == {key for key in base if "vision_tower" not in key}
    assert tokenizer.encode("stop")
    assert model.config.visionzip["dominant"] == 3


def test_a_projector_from_nothing(flags, tmp_path, golden):
    """On a language model without vision; the result then begins another run."""
    models = golden / "models"
    options = {
        "model_name_or_path": models / "vicuna-tiny",
        "vision_tower": models / "clip-tiny-336",
        "dominant": 54,
        "contextual": 10,
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "images_only": True,
    }
    assert main(flags(**options)) == 0
    _, model, _, _ = load_pretrained_model(str(tmp_path / "out"), str(models / "vicuna-tiny"), device="cpu")
    assert model.config.mm_hidden_size == 64
    file = tmp_path / "out" / "mm_projector.bin"
    assert main(flags(**options, output_dir=tmp_path / "b", pretrain_mm_mlp_adapter=file, learning_rate=0.0)) == 0
    assert same(projector(tmp_path / "b"), projector(tmp_path / "out"))


@pytest.mark.parametrize("part", ["projector", "lora"])
def test_a_base_of_4_bits(flags, tmp_path, part):
    pytest.importorskip("bitsandbytes")
    options = {"lora_enable": True, "lora_r": 4, "tune_mm_mlp_adapter": None} if part == "lora" else {}
    assert main(flags(bits=4, max_steps=2, **options)) == 0
    assert all(map(torch.isfinite, map(torch.tensor, losses(tmp_path / "out"))))
    load_pretrained_model(str(tmp_path / "out"), str(SIGNS), device="cpu")


@pytest.mark.parametrize("rate", [None, 2e-5])
@pytest.mark.parametrize("alone", [False, True])
def test_parameter_groups_equal_the_original(golden, rate, alone):
    """The original's empty groups are left out here."""
    table = json.loads((golden / "json" / "optimizer_groups.json").read_text())
    (case,) = [c for c in table["groups"] if c["mm_projector_lr"] == rate and c["tune_mm_mlp_adapter"] == alone]
    _, model, _, _ = load_pretrained_model(str(golden / "models" / "llava-v1.5-tiny"), device="cpu")
    model.get_vision_tower().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name and (not alone or "mm_projector" in name))
    decayed = {name for name, _ in model.named_parameters() if "norm" not in name and not name.endswith("bias")}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer_groups(model, decayed, case["weight_decay"], case["learning_rate"], rate)
    expected = [group for group in case["groups"] if group["params"]]
    found = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in groups]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == {"params": theirs["params"], "weight_decay": theirs["weight_decay"], "lr": theirs["lr"]}
    assert lora_targets(model) == table["lora_target_modules"]
