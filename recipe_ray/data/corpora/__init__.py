"""Auxiliary corpora, one file each; a new file here is a new corpus."""
