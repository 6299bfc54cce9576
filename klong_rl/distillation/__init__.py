"""Distillation: a teacher works on tasks as the policy would, and its best attempts become training data."""
