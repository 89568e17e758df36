"""torchrun, but for its exit code: after SIGTERM it is the one that asks to be started again, see `recsys.stopping`.

    python -m recsys.elastic --nproc_per_node 2 -m recsys.cli refresh ...

torchrun itself passes the signal on to its ranks, waits 30 s for them and ends with a traceback and 1. The arguments
are its own.
"""

from __future__ import annotations

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from recsys.stopping import RESUME, code_after


def main() -> None:
    """Run torchrun."""
    try:
        torchrun()
    except SignalException as stopped:
        raise SystemExit(code_after(stopped.sigval)) from None
    except ChildFailedError as error:
        if (
            error.get_first_failure()[1].exitcode == RESUME
        ):  # ranks were stopped, more often than it may start them anew
            raise SystemExit(RESUME) from None
        raise


if __name__ == "__main__":
    main()
