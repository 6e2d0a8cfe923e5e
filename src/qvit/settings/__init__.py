"""What was asked for: recipes in TOML as frozen values, and the record of what a run really started from.

values.py        a nested frozen dataclass from and to plain TOML or JSON values, with errors that name the key
recipe.py        the recipe of `qvit run`, of which every key is a field of a dataclass (docs/recipe.md)
provenance.py    seed, versions, commit and command of a run
"""
