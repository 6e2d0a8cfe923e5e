"""How good a model is: top-1 over all processes, differences with intervals, grids and what lies on them.

evaluate.py, shared_evaluation.py      top-1 in one process and in many
paired.py                              two outcomes of the same images, with a 95 % interval
outcome.py                             the account of a run: result.json
activation_histogram.py, grid_histogram.py    activations on their grids, for the report
"""
