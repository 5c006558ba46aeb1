"""recipe-ray removes backdoors from pre-trained models, and is the laboratory that proves it."""

__version__ = "0.1.0"
