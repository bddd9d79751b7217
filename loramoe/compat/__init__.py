"""Everything that touches a private or changing part of peft, transformers, trl or bitsandbytes, and nothing else.

It knows nothing of the rooms above it; `loramoe.registration` brings the two together.
"""
