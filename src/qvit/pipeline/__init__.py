"""`qvit run`: quantize, calibrate, train, freeze, evaluate, each step resumable, each written down.

run.py            the order of the steps
context.py        what all steps of a run share: recipe, images, directory, live page
rows.py           the rows of a run: float, calibrated, trained, frozen
float_model.py    the float model of a recipe: timm, a checkpoint, a folder, a hub
live_page.py      the report of a run that is still training
finished.py       a finished run, read back
compare.py        rows of several recipes beside each other
"""
