"""Before a night is spent: does it run at all, and what will it take?

dry_run.py              everything is opened, two steps are made, nothing is written
plan.py, plan_stage.py  time, memory, disk and what the budget can reach, from a rehearsal
rehearsal.py            the parts of a run, each made once on few images and timed
training_schedule.py    how many steps of each kind a recipe makes
memory.py               bytes counted tensor by tensor
generated_images.py     pictures that stand for a data set that is not here
"""
