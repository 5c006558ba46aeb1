"""All hostile inputs."""

from hostile.data import DATA
from hostile.files import FILES
from hostile.models import MODELS

CASES = [*MODELS, *DATA, *FILES]
assert len({case.name for case in CASES}) == len(CASES)
