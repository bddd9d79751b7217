"""How unequal the experts become while they train, with the constraint and without."""
