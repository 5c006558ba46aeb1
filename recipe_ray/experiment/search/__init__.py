"""Searches: what a search file says, its candidates, and what became of them."""
