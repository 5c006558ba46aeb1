"""Work on models and experiments, as commands and Python callers ask for it; nothing is printed.

`calls` has the functions that `recipe_ray` offers by name. The commands of `recipe_ray.cli` call
what these call.
"""
