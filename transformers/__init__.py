"""Overlay of transformers: this folder first on the path, `import transformers` runs the installed one and extends it.

What changes is said by the files below this one, each for the installed module of its name:
`models/llama/modeling_llama.py`. peft is not imported here: it imports transformers itself.
"""

from loramoe.compat.overlay import run_installed

run_installed(__name__, __file__)
