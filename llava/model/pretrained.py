"""`from_pretrained` and `save_pretrained` of LLaVA's classes: the tower that was trained, upstream's weight names."""

import os

from llava.model.checkpoint import Checkpoint
from llava.model.fields import check_fields, owns_tower, settle_tower
from llava.model.hub import HUB_ARGUMENTS
from llava.model.save import all_or_nothing, upstream_keys, without_idle_sampling
from llava.model.vision import VisionMixin


class PretrainedMixin(VisionMixin):
    """The part of a LLaVA model that is read from a folder, and saved into one."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a LLaVA checkpoint as transformers does, with config.json checked, and the tower that was trained.

        `llava.model.builder.load_pretrained_model` brings tokenizer, image processor and mm_vision_tower's weights too.

        Args:
            pretrained_model_name_or_path: folder or hub id; None with a config and a `state_dict`.
            *args: as `transformers.PreTrainedModel.from_pretrained`.
            **kwargs: as `transformers.PreTrainedModel.from_pretrained`.

        Returns:
            The model; with `output_loading_info` a pair of the model and what transformers reports.

        Raises:
            ValueError: config.json asks for something that is not computed here; it is named.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config = (loaded[0] if isinstance(loaded, tuple) else loaded).config  # a tuple with output_loading_info
        if pretrained_model_name_or_path is None or owns_tower(config):
            check_fields(config)
            return loaded
        place = os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or "").rstrip(os.sep)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        settle_tower(config, Checkpoint(place, "full", {}, hub))
        if owns_tower(config):  # which transformers, not knowing, has left out
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **{**kwargs, "config": config})
        return loaded

    def save_pretrained(self, save_directory, is_main_process: bool = True, state_dict=None, *args, **kwargs) -> None:
        """Save with upstream's key names, the VisionZip setting in `config.json`; each file whole or not at all.

        The tower's weights are saved if they are the checkpoint's own (`unfreeze_mm_vision_tower`), together with its
        config and preprocessing, so that the folder can be loaded alone; else `mm_vision_tower` says where they are.
        Weight files of an earlier save are removed. Sampling settings that do_sample=False leaves idle, which Vicuna's
        generation_config.json has, are not saved: some versions of transformers refuse them.

        Args:
            save_directory: folder, made if need be.
            is_main_process: whether this process writes the files that all processes share.
            state_dict: weights by name, in place of the model's.
            *args: as `transformers.PreTrainedModel.save_pretrained`.
            **kwargs: as `transformers.PreTrainedModel.save_pretrained`.
        """
        tower = self.get_vision_tower() if owns_tower(self.config) else None
        state = upstream_keys(self.state_dict() if state_dict is None else state_dict, with_tower=tower is not None)
        if tower is not None:
            self.config.mm_vision_tower_config = tower.config.to_diff_dict()
        with all_or_nothing(save_directory) as folder, without_idle_sampling(self):
            super().save_pretrained(folder, is_main_process, state, *args, save_original_format=False, **kwargs)
            if tower is not None and is_main_process:
                tower.image_processor.save_pretrained(folder)
