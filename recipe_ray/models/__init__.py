"""Families of pre-trained models (PTMs), one file each, and what every family can be asked."""
