"""Families of PTMs on images."""
