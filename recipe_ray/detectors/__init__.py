"""Detectors: label-free search for what makes a PTM forget what it reads."""
