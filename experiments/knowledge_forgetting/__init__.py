"""Does LoRAMoE keep what the model knows? Every arm on the same rows, equally tuned, at two scales."""
