"""One action of a roll-out in a process of its own, for tests that kill it. Begins when a line comes."""

from __future__ import annotations

import sys
from pathlib import Path

from components.deployment.rollout.run import canary, promote, roll_back
from tests.cluster.api_process import Api
from tests.cluster.served import V2, session


def main(action: str, address: str, kubeconfig: str) -> None:
    here = session(Api(address, Path(kubeconfig)))
    sys.stdin.readline()
    {
        "canary": lambda: canary(here, V2, 20, duration_s=1),
        "promote": lambda: promote(here, duration_s=1),
        "rollback": lambda: roll_back(here, duration_s=1),
    }[action]()


if __name__ == "__main__":
    main(*sys.argv[1:])
