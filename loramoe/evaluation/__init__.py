"""What a base model can do, and what it can do with an adapter.

Recall of facts during training (`recall`) needs nothing more. `loramoe evaluate` turns files of samples (`questions`)
into tasks of lm-eval (`harness`), and compares its logged samples (`statistics`).
"""
