"""Overlay of transformers: runs the installed one, extended by the files below, each for the module of its name."""

from loramoe.compat.overlay import run_installed

run_installed(__name__, __file__)
