"""Triggers: what attackers put into samples. For attacks and evaluation, never for defenses."""
