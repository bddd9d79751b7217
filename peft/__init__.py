"""Overlay of peft: this folder first on the path, `import peft` runs the installed peft and adds LoRAMoE to it.

What changes is said by the files below this one, each for the installed module of its name: `tuners/lora.py`.
"""

from loramoe.compat.overlay import run_installed

run_installed(__name__, __file__)
