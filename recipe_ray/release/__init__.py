"""One model at a time: what a hub maintainer asks for, and the folder and card it becomes."""
