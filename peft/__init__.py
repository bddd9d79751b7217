"""Overlay of peft: runs the installed peft and extends it by the files below, each for the module of its name."""

from loramoe.compat.overlay import run_installed

run_installed(__name__, __file__)
