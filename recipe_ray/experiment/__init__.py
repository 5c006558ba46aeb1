"""Experiments: one question a YAML file, expanded to cells and distinct stages."""
