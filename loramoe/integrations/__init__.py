"""LoRAMoE in other training tools: plug-ins for axolotl and ms-swift."""
