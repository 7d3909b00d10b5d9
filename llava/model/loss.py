"""The loss of next-token prediction, computed only where there is something to predict.

Shapes: B rows, S slots in a row, C channels, V vocabulary, K labelled slots in the batch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llava.constants import IGNORE_INDEX

ROWS = 2048  # whose logits are held in fp32 at a time: 0.26 GB with 32,000 words


def next_token_loss(head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, count=None) -> Tensor:
    """Compute the cross-entropy of labels under the model's last hidden states; equals that of all logits.

    Prompt, image and padding have no label, so most logits would be computed for nothing. `head` runs once whatever the
    batch holds: where parameters are sharded, processes that ran it a different number of times would wait for ever.

    Args:
        head: (K, C) -> logits (K, V).
        hidden: (B, S, C), behind the last layer and its norm.
        labels: (B, S), IGNORE_INDEX where nothing is trained.
        count: divides the sum of the losses; by default the number of labels in this batch. Give that of the whole
            global batch where the batch is one of several.
    """
    target = labels[:, 1:]
    is_labelled = target != IGNORE_INDEX  # (B, S - 1)
    target = target[is_labelled]  # (K,)
    logits = head(hidden[:, :-1][is_labelled])  # (K, V)
    parts = zip(logits.split(ROWS), target.split(ROWS), strict=True)
    total = sum(checkpoint(summed_loss, *part, use_reentrant=False) for part in parts)
    count = torch.as_tensor(len(target) if count is None else count)
    return total / count.clamp(min=1)


def summed_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum the cross-entropy of targets (K,) under logits (K, V), in fp32."""
    return F.cross_entropy(logits.to(torch.float32), target, reduction="sum")
