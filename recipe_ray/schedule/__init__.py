"""What runs next, on what, and how long it will take."""
