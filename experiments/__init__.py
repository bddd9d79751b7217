"""Does LoRAMoE keep what a model knows? Two experiments, one on an invented world and one on real text."""
