"""How torch's threads wait for one another, which is decided when torch is first loaded."""

from __future__ import annotations

import os
import sys

_POLICY = "OMP_WAIT_POLICY"
_OWN = (_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
"""Variables by which a user decides this, and with which nothing is changed."""


def wait_passively() -> bool:
    """Have threads of OpenMP that wait give their core away, where torch is not loaded yet; tells whether it was done.

    By default they spin. Beside other busy processes, the thread that the others wait for then has no core to run on: with three of them
    on two cores, the demo's metrics took 100 s in place of 48 s (docs/performance.md).
    """
    if "torch" in sys.modules or any(name in os.environ for name in _OWN):
        return False
    os.environ[_POLICY] = "PASSIVE"
    return True


def threads_text() -> str:
    """How threads wait, for the header; empty where nothing is known of it."""
    policy = os.environ.get(_POLICY, "")
    return f"threads wait {'passively' if policy.casefold() == 'passive' else policy.casefold()} ({_POLICY})" if policy else ""
