"""The PEFT tuner: configuration, layer, model, and the hooks by which the constraint enters the loss."""

import peft  # noqa: F401  # first and whole: when its import ends, it registers the modules of this package
