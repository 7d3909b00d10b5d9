"""Extend transformers' Trainer to tune a part of LLaVA.

Batches have samples of similar length, the loss is computed where there are labels, and checkpoints hold the trained
part, whole or not at all.
"""

import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from llava.data.sampler import LengthGroupedSampler
from llava.train.report import Spent, Throughput, read_spent, write_spent
from llava.train.saving import load_trained, save
from llava.train.sharding import wait_for_all

logger = logging.getLogger(__name__)


class LLaVATrainer(Trainer):
    """A trainer of what is unfrozen in `model`.

    Args:
        part: what to save: "projector", "lora" or "full".
        args, kwargs: as transformers' Trainer.

    Attributes:
        skipped: samples of this process whose image could not be read.
    """

    args: Any  # transformers' arguments, and LLaVA's
    model: Any  # a LLaVA; with LoRA, in peft's wrapping
    model_wrapped: Any
    train_dataset: Any
    lr_scheduler: Any

    def __init__(self, model, *, part: str, **kwargs):
        if part == "projector" and getattr(model, "is_quantized", False):
            model._hf_peft_config_loaded = True  # the projector is the adapter that Trainer misses
        super().__init__(model=model, **kwargs)
        self.part, self.skipped = part, 0
        self._staging: Path | None = None
        self._sampler: LengthGroupedSampler | None = None
        self._throughput = Throughput()
        self._before, self._began, self._losses = Spent(), time.perf_counter(), 0.0

    # Training

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss of a batch, which Trainer divides by the labels of the whole global batch.

        Raises:
            ValueError: it is not finite; no weight has been changed by it.
        """
        self.skipped += inputs.pop("skipped", 0)
        self._throughput.tick(len(inputs["input_ids"]) * self.args.world_size)
        loss = super().compute_loss(model, {**inputs, "loss_only": True}, num_items_in_batch=num_items_in_batch)
        assert isinstance(loss, torch.Tensor), "no outputs were asked for"
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss of step {self.state.global_step + 1} is {loss.item()}. {self._last_good()} Lower "
                f"--learning_rate (now {self.args.learning_rate:g}), or lengthen the warm-up; with --fp16, try --bf16."
            )
        return loss

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._losses = self._losses + loss.detach()
        return loss

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            groups = optimizer_groups(
                self.model, decayed, self.args.weight_decay, self.args.learning_rate, self.args.mm_projector_lr
            )
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer(groups, **options)
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None):
        if not self.args.group_by_modality_length:
            return super()._get_train_sampler(train_dataset)
        self._sampler = LengthGroupedSampler(
            self.args.train_batch_size,
            world_size=self.args.world_size * self.args.gradient_accumulation_steps,
            lengths=self.train_dataset.modality_lengths,
            group_by_modality=True,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        return self._sampler

    def _run_epoch(self, **kwargs):
        if self._sampler is not None:  # accelerate does not set it where several processes share its batches
            self._sampler.set_epoch(kwargs["epoch"])
        return super()._run_epoch(**kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs["samples_per_second"] = self._throughput.rate()
        if "train_runtime" in logs:  # transformers knows this start only
            spent, steps = self.spent(), self.state.global_step
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            logs |= {
                "train_runtime": spent.seconds,
                "train_steps_per_second": steps / spent.seconds,
                "train_samples_per_second": steps * batch / spent.seconds,
                "train_loss": spent.loss / max(steps, 1),
            }
        super().log(logs, *args, **kwargs)

    def spent(self) -> Spent:
        """Sum up what the run has taken so far; every process has to call this."""
        here = torch.tensor([float(self._losses), self.skipped], dtype=torch.float64, device=self.args.device)
        gathered: Any = self.accelerator.gather(here)
        losses, skipped = gathered.view(-1, 2).unbind(1)
        return Spent(
            self._before.seconds + time.perf_counter() - self._began,
            self._before.loss + losses.mean().item(),
            self._before.skipped + int(skipped.sum()),
        )

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        save(self.part, model, self.processing_class, output_dir or self.args.output_dir, writes=self.args.should_save)

    def _get_output_dir(self, trial) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model, trial) -> None:
        """Write a checkpoint into a folder of another name, then give it its own."""
        name = f"checkpoint-{self.state.global_step}"
        staging = Path(self.args.output_dir, f".saving-{self.state.global_step}")
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:  # a full disk is either, depending on who writes
            shutil.rmtree(staging, ignore_errors=True)
            free = shutil.disk_usage(self.args.output_dir).free / 1e6
            raise ValueError(
                f"{name} could not be written to {self.args.output_dir}: {error}. {free:,.1f} MB are free there. "
                f"{self._last_good()} Make room and run the same command again."
            ) from error
        finally:
            self._staging = None
        spent = self.spent()
        wait_for_all()
        if self.args.should_save:
            write_spent(staging / name, spent)
            os.replace(staging / name, Path(self.args.output_dir, name))
            staging.rmdir()
        wait_for_all()  # machines with disks of their own: an older one goes when all of them have the new one
        if self.args.should_save and (limit := self.args.save_total_limit):
            for old in checkpoints(self.args.output_dir)[:-limit]:
                shutil.rmtree(old)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self.model_wrapped.save_checkpoint(output_dir, self._tag(), exclude_frozen_parameters=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler.pt"))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        """Do nothing: transformers would load a whole model here. `_prepare_for_training` loads."""

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._began = time.perf_counter()
        if resume_from_checkpoint is not None:
            self._before = read_spent(Path(resume_from_checkpoint))
            if self.is_deepspeed_enabled:
                self.model_wrapped.load_checkpoint(resume_from_checkpoint, self._tag(), load_module_strict=False)
            else:
                load_trained(self.part, self.accelerator.unwrap_model(self.model), resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return prepared

    def _tag(self) -> str:
        """Name DeepSpeed's folder in a checkpoint, which it otherwise reads from a file that only one machine has."""
        return f"global_step{self.state.global_step}"

    def _last_good(self) -> str:
        """Say which checkpoint is the last."""
        kept = checkpoints(self.args.output_dir)
        return f"The last good state is {kept[-1]}." if kept else "No checkpoint had been saved yet."


def optimizer_groups(
    model: nn.Module, decayed: set[str], weight_decay: float, rate: float, projector_rate: float | None
) -> list[dict]:
    """Group the trained parameters: with and without weight decay, the projector apart if it has a rate of its own."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]

    def is_apart(name: str) -> bool:
        return projector_rate is not None and "mm_projector" in name

    groups = [
        {
            "params": [p for name, p in trained if is_apart(name) == apart and (name in decayed) == decays],
            "weight_decay": weight_decay if decays else 0.0,
            "lr": projector_rate if apart else rate,
        }
        for apart in (False, True)
        for decays in (True, False)
    ]
    return [group for group in groups if group["params"]]


def checkpoints(folder: str | Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def remove_unfinished(folder: str | Path) -> None:
    """Delete unfinished files of a killed run."""
    for path in Path(folder).glob(".saving-*"):
        shutil.rmtree(path)
    for path in Path(folder).glob(".shared-*"):
        path.unlink()
