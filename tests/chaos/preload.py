"""What the fork server of `tests.chaos.victim` imports once, so that its children need not."""

import loramoe.training.run  # noqa: F401
