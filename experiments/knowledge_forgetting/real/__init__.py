"""The scale `real`: a language model that people use, and public data."""

from experiments.knowledge_forgetting.real.scale import RealScale

__all__ = ["RealScale"]
