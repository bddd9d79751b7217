"""The generator of the tiny world: its facts, texts, tokenizer, base model and data set."""
