"""The model `llava_visionzip` for lmms-eval.

Where lmms-eval is installed:

    python -m lmms_eval --model llava_visionzip --model_args pretrained=CHECKPOINT,dominant=54,contextual=10 \
        --tasks pope --batch_size 16
"""

import argparse
import json
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import choose_template, conv_templates
from llava.inference.batch import pad_left
from llava.inference.budget import budget_of
from llava.inference.decoding import Decoding
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

UPSTREAM_LENGTH = 1024  # of an answer, where a task does not say


class LlavaVisionZip(lmms):
    """A LLaVA checkpoint, zipped or not, asked in batches.

    Args:
        pretrained: folder or hub id.
        model_base: language model that a projector-only or LoRA checkpoint goes on.
        dominant, contextual: tokens of a crop, which go together; without them what the checkpoint carries, else all.
        tokens_per_image: in place of these two.
        merge, selector, selector_seed: how tokens are merged and chosen, as of the evaluation's options of these names.
        batch_size: requests at a time.
        device: "cuda", or any torch device; with several processes each takes its own GPU.
        conv_template: key of `llava.conversation.conv_templates`; by default the checkpoint's own.
        dtype: "float16", "bfloat16" or "float32"; by default fp16 on a GPU, fp32 on a CPU.
        fast: as of `load_pretrained_model`.
    """

    def __init__(
        self,
        pretrained: str,
        model_base: str | None = None,
        dominant: int | None = None,
        contextual: int | None = None,
        tokens_per_image: int | None = None,
        batch_size: int | str = 1,
        device: str = "cuda",
        conv_template: str | None = None,
        dtype: str | None = None,
        fast: str | None = "static",
        max_batch_size: int | None = None,
        merge: str | None = None,
        selector: str | None = None,
        selector_seed: int | None = None,
    ):
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if self._world_size > 1 else torch.device(device)
        self.batch_size = int(batch_size)
        numbers = {"dominant": dominant, "contextual": contextual, "tokens_per_image": tokens_per_image}
        numbers = {name: None if value is None else int(value) for name, value in numbers.items()}
        seed = None if selector_seed is None else int(selector_seed)
        asked = argparse.Namespace(**numbers, merge=merge, selector=selector, selector_seed=seed)
        budget = budget_of(asked, spell=str)
        options = {"dtype": getattr(torch, dtype)} if dtype else {}
        self.tokenizer, self.model, self.image_processor, _ = load_pretrained_model(
            pretrained, model_base, device=str(self.device), visionzip=budget, fast=fast, **options
        )
        self.conv_template = choose_template(conv_template, self.model.config, self.tokenizer, "conv_template")

    @property
    def rank(self) -> int:
        """Return the index of this process."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        return self._world_size

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer requests, which may be decoded differently; returns the answers in their order."""
        answers: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}  # requests that are decoded alike
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
        with tqdm(total=len(requests), desc="llava_visionzip", disable=self.rank > 0) as bar:
            for group in groups.values():
                group.sort(key=lambda i: len(requests[i].args[0]))
                for start in range(0, len(group), self.batch_size):
                    batch = group[start : start + self.batch_size]
                    for i, text in zip(batch, self.answer([requests[i] for i in batch]), strict=True):
                        answers[i] = text
                    bar.update(len(batch))
        return answers

    @torch.inference_mode()
    def answer(self, requests: Sequence[Instance]) -> list[str]:
        """Answer requests that are decoded alike, as one batch."""
        options = dict(requests[0].args[1])
        until, temperature = options.get("until") or [], options.get("temperature") or 0
        decoding = Decoding(
            conv_mode=self.conv_template,
            max_new_tokens=options.get("max_new_tokens", UPSTREAM_LENGTH),
            temperature=temperature,
            top_p=options.get("top_p") if temperature else None,
            num_beams=options.get("num_beams", 1),
        )
        seen = [self.images_of(request, request.args[2:]) for request in requests]
        prompts = [self.ids(request.args[0], len(images)) for request, images in zip(requests, seen, strict=True)]
        settings = decoding.options(self.model, self.tokenizer)
        ids, mask = pad_left(prompts, settings["pad_token_id"])
        images = [image for own in seen for image in own]
        output = self.model.generate(
            ids.to(self.device),
            images=self.pixels(images),
            image_sizes=[image.size for image in images],
            attention_mask=mask.to(self.device),
            **settings,
        )
        texts = [decoding.cut(text) for text in self.tokenizer.batch_decode(output, skip_special_tokens=True)]
        for stop in [until] if isinstance(until, str) else until:
            texts = [text.split(stop)[0] if stop.strip() else text for text in texts]  # a stop of blanks ends no answer
        return [text.strip() for text in texts]

    def images_of(self, request: Instance, arguments: Sequence) -> list[Image.Image]:
        """Fetch the images of a request. Raises ValueError if it has other media."""
        doc_to_visual, doc_id, task, split = arguments
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if wrong := [type(visual).__name__ for visual in visuals if not isinstance(visual, Image.Image)]:
            raise ValueError(f"{task}, document {doc_id}: this model sees images, not {wrong[0]}.")
        return visuals

    def pixels(self, images: Sequence[Image.Image]):
        """Prepare images for the model: one tensor, or a list where they differ in shape; None without any."""
        if not images:
            return None
        found = process_images(images, self.image_processor, self.model.config)
        dtype = self.model.get_vision_tower().dtype
        if isinstance(found, torch.Tensor):
            return found.to(self.device, dtype)
        return [pixels.to(self.device, dtype) for pixels in found]

    def ids(self, context: str, images: int, answer: str | None = None) -> list[int]:
        """Tokenize the prompt; images stand before it unless it says where they are."""
        if images and DEFAULT_IMAGE_TOKEN not in context:
            context = " ".join([DEFAULT_IMAGE_TOKEN] * images) + f"\n{context}"
        conversation = conv_templates[self.conv_template].copy()
        conversation.append_message(conversation.roles[0], context)
        conversation.append_message(conversation.roles[1], answer)
        return tokenizer_image_token(conversation.get_prompt(), self.tokenizer, IMAGE_TOKEN_INDEX)

    @torch.inference_mode()
    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Compute the mean loss on each continuation, as lmms-eval's own LLaVA does, and if it is the greedy one."""
        found = []
        for request in tqdm(requests, desc="llava_visionzip", disable=self.rank > 0):
            context, doc_to_target, *rest = request.args
            doc_id, task, split = rest[1:]
            document = self.task_dict[task][split][doc_id]
            continuation = doc_to_target if isinstance(doc_to_target, str) else doc_to_target(document)
            images = self.images_of(request, rest)
            before = self.ids(context, len(images))
            ids = torch.tensor([self.ids(context, len(images), continuation)], device=self.device)
            labels = ids.clone()
            labels[:, : len(before)] = IGNORE_INDEX
            sizes = [image.size for image in images]
            output = self.model(input_ids=ids, labels=labels, images=self.pixels(images), image_sizes=sizes)
            wanted = ids[0, len(before) :]
            said = output.logits[0, -len(wanted) - 1 : -1].argmax(-1)
            found.append((output.loss.item(), bool((said == wanted).all())))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse tasks of several rounds."""
        raise NotImplementedError("llava_visionzip answers tasks of one round; this one has several.")
