"""Task-agnostic backdoor attacks on PTMs, one file each. Defenses never see this package."""
