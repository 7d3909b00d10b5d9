"""Ask a model about images reduced to some of their patches, which are chosen anew for each question.

Shapes: B prompts, T tokens of the longest, n patches of an image (of all its crops), C channels, H heads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb  # Mistral's and Qwen2's are the same

from llava.analysis.in_memory import InMemoryEval
from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.batch import even_batches, pad_left, pad_right
from llava.model.anyres import VisionFeatures
from visionzip_patch.saliency import split_heads


class ScoredImage(NamedTuple):
    """The tokens that the tower makes of an image, and their scores; crop after crop, without CLS."""

    tokens: Tensor  # (n, C) before the projector
    saliency: Tensor  # (n,) the tower's score of each


class Prompt(NamedTuple):
    """A question as token ids."""

    row: int  # index into the questions of the evaluation
    image: str
    ids: list[int]  # with one IMAGE_TOKEN_INDEX


class TextAttention(NamedTuple):
    """The attention that the text after an image pays to its patches, averaged over heads."""

    last: Tensor  # (n,) from the last token of the prompt
    mean: Tensor  # (n,) the mean over all tokens after the image


@dataclass(frozen=True)
class MaskedEval:
    """An evaluation with encoded pictures, of each of which only some patches are shown. Made by `prepare_masked`."""

    evaluation: InMemoryEval  # its pictures are gone
    images: dict[str, ScoredImage]  # in the order that the pictures had
    prompts: list[Prompt]  # in the order of the questions

    @torch.inference_mode()
    def accuracy(self, chosen: Sequence[Tensor], bar: tqdm) -> float:
        """Answer each question from the patches chosen for it, as if there were no others; returns the accuracy in %.

        Args:
            chosen: for each prompt, positions in its image, (k,).
            bar: is moved on by each question.
        """
        evaluation, texts = self.evaluation, [""] * len(self.prompts)
        options = evaluation.decoding.options(evaluation.model, evaluation.tokenizer)
        for batch in self.batches():
            input_ids, mask = pad_left([prompt.ids for prompt in batch], options["pad_token_id"])
            output = evaluation.model.generate(
                input_ids.to(evaluation.model.device),
                image_features=self.project([self.images[p.image].tokens[chosen[p.row]] for p in batch]),
                attention_mask=mask.to(evaluation.model.device),
                fast="static",
                use_cache=True,
                **options,
            )
            decoded = evaluation.tokenizer.batch_decode(output, skip_special_tokens=True)
            for prompt, text in zip(batch, decoded, strict=True):
                texts[prompt.row] = evaluation.decoding.cut(text)
            bar.update(len(batch))
        return evaluation.score(zip(evaluation.questions, texts, strict=True))

    @torch.inference_mode()
    def text_attention(self, layer: int, bar: tqdm) -> list[TextAttention]:
        """Measure, for each question, the attention from its text to its image in one layer of the language model.

        Args:
            layer: which, from 1.
            bar: is moved on by each question.
        """
        found = {}
        decoder = self.evaluation.model.get_model()
        for batch in self.batches():
            features = self.project([self.images[prompt.image].tokens for prompt in batch])
            splits = [prompt.ids.index(IMAGE_TOKEN_INDEX) for prompt in batch]
            rows = []
            for prompt, split, own in zip(batch, splits, features, strict=True):
                ids = torch.tensor(prompt.ids[:split] + prompt.ids[split + 1 :], device=own.device)
                text = decoder.embed_tokens(ids)
                rows.append(torch.cat([text[:split], own.to(text), text[split:]]))
            images = [(split, split + len(own)) for split, own in zip(splits, features, strict=True)]
            for prompt, attention in zip(batch, attention_to_images(decoder, layer, rows, images), strict=True):
                patches = len(self.images[prompt.image].tokens)  # what follows them is the end of a row
                found[prompt.row] = TextAttention(*(scores[:patches].cpu() for scores in attention))
            bar.update(len(batch))
        return [found[row] for row in range(len(self.prompts))]

    def batches(self) -> list[list[Prompt]]:
        """Divide the prompts into batches of similar length."""
        return even_batches(sorted(self.prompts, key=lambda prompt: len(prompt.ids)), self.evaluation.batch_size)

    def project(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Project the patches of each image, (k, tower channels), to what the language model gets: a list of (k, C)."""
        side = self.evaluation.model.get_vision_tower().num_patches_per_side
        return self.evaluation.model.image_features([VisionFeatures(own[None], None, side) for own in tokens])


def prepare_masked(evaluation: InMemoryEval) -> MaskedEval:
    """Encode each picture once, for all settings.

    Takes the pictures out of `evaluation`: either their pixels or their tokens fit into memory, not both.

    Raises:
        ValueError: a question is not about one image.
    """
    suffix, prompts = evaluation.task.prompt_suffix, []
    for row, question in enumerate(evaluation.questions):
        if len(question.images) != 1:
            raise ValueError(f"Question {question.question_id} is about {len(question.images)} images; expected one.")
        ids = evaluation.decoding.ids(question.text + suffix, evaluation.tokenizer, evaluation.model.config)
        prompts.append(Prompt(row, question.images[0], ids))
    tower = evaluation.model.get_vision_tower()
    names = tqdm(list(evaluation.pictures), desc="vision tower", unit="image", dynamic_ncols=True)
    return MaskedEval(
        evaluation, {name: encode_image(tower, evaluation.pictures.pop(name).pixels) for name in names}, prompts
    )


@torch.inference_mode()
def encode_image(tower, pixels: Tensor) -> ScoredImage:
    """Encode and score the patches of one image, (3, S, S) or (crops, 3, S, S)."""
    before, after = tower.hidden_states(pixels if pixels.ndim == 4 else pixels[None])
    saliency = tower.evidence(before, after).saliency
    return ScoredImage(after[:, int(tower.has_cls) :].flatten(0, 1).cpu(), saliency.flatten().cpu())


def attention_to_images(
    decoder, layer: int, rows: Sequence[Tensor], images: Sequence[tuple[int, int]]
) -> Iterator[TextAttention]:
    """Compute the attention from the text after an image to its tokens inside one layer of a Llama, Mistral or Qwen2.

    Only the layers below are run, by SDPA, which is causal where no mask is given; the rows of the attention map that
    are needed are computed from the layer's weights.

    Args:
        decoder: the language model without its head.
        layer: which, from 1.
        rows: embeddings of each prompt, (tokens, C).
        images: in each, where the image begins, and where the text after it does.

    Yields:
        The attention of each prompt, (n,) each.
    """
    hidden, lengths = pad_right(rows)  # (B, T, C): padding follows the tokens, so none of them sees it
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    rotary = decoder.rotary_emb(hidden, positions)
    *below, chosen = decoder.layers[:layer]
    for one in below:
        hidden = one(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
    hidden = chosen.input_layernorm(hidden)
    projections, head_dim = (chosen.self_attn.q_proj, chosen.self_attn.k_proj), chosen.self_attn.head_dim
    queries, keys = apply_rotary_pos_emb(*(split_heads(project(hidden), head_dim) for project in projections), *rotary)
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)  # (B, H, T, head channels)
    for query, key, length, (first, end) in zip(queries, keys, lengths, images, strict=True):
        weights = causal_attention(query[:, end:length], key[:, :length], chosen.self_attn.scaling)
        to_image = weights[:, :, first:end].mean(0)  # (text, n)
        yield TextAttention(to_image[-1], to_image.mean(0))


def causal_attention(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Compute weights of the last Q queries over the keys up to their own: (H, Q, K), (H, L, K) -> (H, Q, L)."""
    scores = (queries.float() * scaling) @ keys.float().mT
    future = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
    return scores.masked_fill(future.triu(1 + keys.shape[1] - queries.shape[1]), -torch.inf).softmax(-1)


def choose(scores: Tensor, count: int, masked: Tensor | None = None) -> Tensor:
    """Return the positions of the `count` highest of (n,) scores that are not masked, in order: (count,)."""
    if masked is not None:
        scores = scores.masked_fill(masked, -torch.inf)
    return scores.topk(count).indices.sort().values


def top_mask(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` highest of (n,) scores: (n,) bool."""
    return torch.zeros_like(scores, dtype=torch.bool).index_fill(0, scores.topk(count).indices, True)
