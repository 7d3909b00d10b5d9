"""Start processes as torchrun does, and end with their status: `python -m llava.utils.launch --nproc_per_node 2 ...`.

Takes torchrun's options. A process that fails has printed the reason; torchrun itself would add a trace of its own, and
always end with status 1.
"""

import logging
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the processes; returns the exit status of the first that failed, 128 + the signal for one that was killed."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(parse_args(argv))
    except ChildFailedError as error:
        rank, first = min(error.failures.items(), key=lambda item: item[1].timestamp)
        if first.exitcode < 0:
            print(f"Process {rank} was ended by {first.signal_name()}.", file=sys.stderr)
            return 128 - first.exitcode
        return first.exitcode
    except SignalException as error:  # it has passed it on to its processes
        print(f"Stopped by {error.sigval.name}.", file=sys.stderr)
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
