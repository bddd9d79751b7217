"""Starts train.py on the accelerators of this machine, or of several: `python -m loramoe.training.launch`."""
