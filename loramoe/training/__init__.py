"""Fine-tuning with LoRAMoE from the command line: arguments, model, trainer, checkpoints, the run and its summary."""
