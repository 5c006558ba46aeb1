"""Defenses: what cleans a PTM, one file each. They see unlabelled text, never triggers or tasks."""
