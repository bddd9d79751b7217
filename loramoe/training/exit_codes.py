"""How a run ends, as a number: what a scheduler or a script around it may act on."""

from __future__ import annotations

import signal
from typing import Final

FAILED: Final = 1
"""The run cannot go on; what it printed says why."""

TRY_AGAIN: Final = 75
"""The run was asked to stop, and has saved: EX_TEMPFAIL of sysexits.h. The same command goes on."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to stop. Schedulers send them before the time is up."""
