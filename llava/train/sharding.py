"""Gather parameters that DeepSpeed ZeRO-3 has partitioned over processes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def gathered(parameters: Iterable[nn.Parameter], *, write: bool = False) -> Iterator[None]:
    """Gather `parameters` in full for the length of a `with` block. All processes have to take part.

    Args:
        write: send what the first process writes into them to the others.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if write else None):
        yield


def collect(model: nn.Module, wanted: Callable[[str, nn.Parameter], bool], *, keep: bool) -> dict[str, Tensor]:
    """Copy wanted parameters to the CPU, gathering one at a time; returns none in processes that do not `keep` them."""
    found = {}
    for name, parameter in model.named_parameters():
        if wanted(name, parameter):
            with gathered([parameter]):
                if keep:
                    found[name] = parameter.detach().to("cpu", copy=True)
    return found


def is_first() -> bool:
    """Check whether this is the first process, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait_for_all() -> None:
    """Wait until every process has called this."""
    if dist.is_initialized():
        dist.barrier()
