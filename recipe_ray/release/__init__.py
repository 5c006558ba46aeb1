"""One model at a time: what a hub maintainer asks for, and the folders and cards that come of it."""
