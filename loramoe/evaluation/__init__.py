"""What a base model can do, and what it can do with an adapter: recall during training, and `loramoe evaluate`.

The latter turns files of `questions` into tasks of lm-eval (`harness`), and compares its logged samples (`statistics`).
"""
