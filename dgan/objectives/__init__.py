"""Losses and penalties: pure functions of tensors."""
