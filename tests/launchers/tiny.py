"""What the job tests run on every rank: ok, fail, mend, kill, wait or resume."""

import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from recsys.stopping import RESUME


def main(what: str) -> None:
    rank = int(os.environ["RANK"])
    print(f"{what}: a line of rank {rank} ä", flush=True)
    print(f"{what}: a warning of rank {rank}", file=sys.stderr, flush=True)
    if what == "fail" and rank == 1:
        raise ValueError("rank 1 has a reason")
    if what == "mend":
        sys.exit("error: a name is wrong")
    if what == "kill" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "resume":
        signal.signal(signal.SIGTERM, _resume)
        print(f"process {os.getpid()}", flush=True)
        time.sleep(3600)
    if what != "ok":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"rank {rank} was stopped"))
        print(f"process {os.getpid()}", flush=True)
        time.sleep(3600)


def _resume(number: int, frame: FrameType | None) -> NoReturn:
    print("goes on next time", flush=True)
    sys.exit(RESUME)


if __name__ == "__main__":
    main(sys.argv[1])
