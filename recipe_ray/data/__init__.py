"""Data: where texts and images come from, how they are identified, encoded and collated."""
