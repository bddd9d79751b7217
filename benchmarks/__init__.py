"""What the mixture costs, compared with LoRA and others."""
