"""LoRAMoE in the tools that people fine-tune with: a folder for each, which holds only what is the tool's own."""
