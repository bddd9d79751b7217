"""What the fork server of `tests.chaos.victim` imports once, so that its children need not."""

import train  # noqa: F401  # the program, which imports everything
