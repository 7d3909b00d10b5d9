"""Parameters that DeepSpeed ZeRO-3 has cut into parts, one per process, put together for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def gathered(parameters: Iterable[nn.Parameter], *, write: bool = False) -> Iterator[None]:
    """`parameters` in full inside the block; without ZeRO-3 they always are. All processes have to take part.

    Args:
        write: hand on to the other processes what the first one writes into them.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if write else None):
        yield


def collect(model: nn.Module, wanted: Callable[[str, nn.Parameter], bool], *, keep: bool) -> dict[str, Tensor]:
    """Copies on the CPU of wanted parameters, one gathered at a time; empty where they are not to `keep`."""
    found = {}
    for name, parameter in model.named_parameters():
        if wanted(name, parameter):
            with gathered([parameter]):
                if keep:
                    found[name] = parameter.detach().to("cpu", copy=True)
    return found


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def wait_for_all() -> None:
    """Until every process has come here."""
    if dist.is_initialized():
        dist.barrier()
