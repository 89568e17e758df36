"""What the job tests run on every rank: `python -m tests.launchers.tiny ok|fail|mend|kill|wait [MARK]`."""

import os
import signal
import sys
import time

RANK = int(os.environ["RANK"])


def main(what: str) -> None:
    print(f"{what}: a line of rank {RANK} ä", flush=True)
    print(f"{what}: a warning of rank {RANK}", file=sys.stderr, flush=True)
    if what == "fail" and RANK == 1:
        raise ValueError("rank 1 has a reason")
    if what == "mend":
        sys.exit("error: a name is wrong")
    if what == "kill" and RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what != "ok":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"rank {RANK} was stopped"))
        time.sleep(3600)


if __name__ == "__main__":
    main(sys.argv[1])
