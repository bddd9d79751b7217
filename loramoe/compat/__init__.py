"""Everything that touches a private or changing part of peft, transformers, trl or bitsandbytes, and nothing else."""
