"""Running searches: ASHA over candidates, each a purification that is looked at."""
