"""BERT and RoBERTa: the family, and how packed batches of texts run through it."""
