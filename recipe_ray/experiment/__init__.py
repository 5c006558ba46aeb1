"""Experiments: one question per YAML file, expanded to cells and distinct stages."""
