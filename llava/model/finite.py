"""Numbers that are not finite: refused with the place where they begin, in place of an answer that means nothing.

Weights are looked at once, when they are loaded. While a model answers, only its logits are: what is not finite before
them reaches them, and one number a row, the largest, shows it. Where it began is looked for afterwards, by going
through the model once more.

Shapes: B rows, T tokens of a row, C channels, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from llava.model.vision import VisionMixin


class NotFinite(ValueError):
    """A model's numbers are NaN or infinite: what it would say means nothing."""


def require_finite_weights(weights: Iterable[tuple[str, Tensor]], source: Callable[[str], str]) -> None:
    """Refuse weights of which one is NaN or infinite.

    Reads every weight once: those of 7B parameters in fp16 take about 1 s on one core of a CPU. Those that are
    quantized, to 8 bits or to whole numbers, and those that are offloaded are passed over.

    Args:
        weights: names and tensors, such as a model's `named_parameters()`.
        source: the file or folder that a weight came from, by its name.

    Raises:
        NotFinite: the weight, how many of its numbers, and its source are named.
    """
    for name, weight in weights:
        if weight.is_meta or not weight.is_floating_point() or weight.dtype.itemsize < 2 or not weight.numel():
            continue
        low, high = torch.aminmax(weight.detach())  # NaN is both; no copy is made
        if math.isfinite(low) and math.isfinite(high):
            continue
        count = weight.numel() - int(weight.isfinite().sum())
        raise NotFinite(
            f"{name} of {source(name)}: {count:,} of its {weight.numel():,} numbers are NaN or infinite as "
            f"{dtype_name(weight.dtype)}. {advice(weight.dtype)}"
        )


def are_finite(logits: Tensor) -> Tensor:
    """Check which rows have an answer: (B, V) -> (B,) bool, on the same device.

    The largest logit of a row is NaN if any is.
    """
    return logits.amax(-1).isfinite()


class FiniteLogits(LogitsProcessor):
    """Checks the logits of transformers' loop: the first ones at once, later ones in `require`."""

    def __init__(self):
        self.sound: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note whether logits, (B, V), are finite, and replace those that are not by 0."""
        sound = are_finite(scores)
        if self.sound is None:
            self.sound = sound.all()
            self.require()
        else:
            self.sound = self.sound & sound.all()
        return scores.where(sound[:, None], 0)  # sampling from NaN stops a GPU for good

    def require(self) -> None:
        """Raise NotFinite unless all logits so far had an answer."""
        if self.sound is not None and not self.sound:
            raise NotFinite("The model's logits are NaN or infinite.")


def explain(
    model: VisionMixin, rows: Iterable[Tensor], images: Iterable[Tensor] = (), known: NotFinite | None = None
) -> NotFinite:
    """Find out where a LLaVA model's numbers cease to be finite, and return an error that names the place.

    Args:
        model: the LLaVA model that gave the logits.
        rows: prompts as the language model gets them, (T, C) each.
        images: pixels of their images, (3, S, S) or (crops, 3, S, S) each, as far as they are known.
        known: what to say if there is nothing to find.
    """
    place = next(faults(model, rows, images), None)
    if place is None and known is not None:
        return known
    place = place or "some token of its answer on"
    way_out = advice(model.lm_head.weight.dtype)
    return NotFinite(f"The model's numbers are NaN or infinite from {place}: there is no answer. {way_out}")


def faults(model: VisionMixin, rows: Iterable[Tensor], images: Iterable[Tensor]) -> Iterator[str]:
    """Yield the places where numbers cease to be finite: in the tower, in the projector, in the language model."""
    decoder = model.get_model()
    for image in images:
        crops = image if image.ndim == 4 else image[None]
        encode = partial(model.encode_images, crops)
        if place := first_fault(model.require_vision_tower(), "model.vision_tower", encode):
            yield f"the vision tower on ({place})"
        if place := first_fault(decoder.mm_projector, "model.mm_projector", encode):
            yield f"the projector on ({place})"
    for embeds in rows:
        if not embeds.isfinite().all():
            yield "the tokens of an image on (vision tower or projector)"
        answer = partial(model, inputs_embeds=embeds[None], use_cache=False, logits_to_keep=1)
        if place := first_fault(model, "", answer):
            yield f"the language model on ({place})"


@torch.inference_mode()
def first_fault(module: nn.Module, name: str, run: Callable[[], object]) -> str | None:
    """Return the name of the part of `module` that is the first to return what is not finite while `run` runs.

    Args:
        module: whose parts are watched.
        name: of `module` itself, with which the names of its parts begin.
        run: calls `module`.

    Returns:
        The name; None if all is finite.
    """
    found = []

    def watch(name: str):
        def look(_, inputs, output) -> None:
            outputs = output if isinstance(output, tuple | list) else [output]
            tensors = (one for one in outputs if isinstance(one, Tensor) and one.is_floating_point())
            if not found and not all(tensor.isfinite().all() for tensor in tensors):
                found.append(name)

        return look

    handles = [part.register_forward_hook(watch(place)) for place, part in module.named_modules(prefix=name)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def advice(dtype: torch.dtype) -> str:
    """Return what may help if numbers of this type are not finite."""
    if dtype == torch.float16:
        return "float16 holds nothing above 65504: load the model with dtype=bfloat16, or float32."
    return "Its weights are damaged, or its training had failed: fetch the checkpoint again, or take another."


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type as users write it: "float16"."""
    return str(dtype).removeprefix("torch.")
