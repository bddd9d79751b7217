"""LoRAMoE in axolotl: what a configuration names under `plugins:` as `integrations.axolotl.LoraMoePlugin`."""

from integrations.axolotl.plugin import LoraMoePlugin

__all__ = ["LoraMoePlugin"]
