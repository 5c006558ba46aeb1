"""`python -m recipe_ray` is `recipe-ray`."""

from recipe_ray.cli import main

main()
