"""The localized balancing constraint, from gates to a number for each layer: pure functions of tensors."""
