"""Quantization-aware training: one loop, and a file for each thing that it does.

fit.py, trainer.py, fit_config.py      the verb, the loop, its settings
bit_schedule.py                        when bits are probed, moved and locked
activations_first.py                   a first stage that trains the scales of activations alone
step_batches.py, step_loss.py          what a step sees and what it minimizes
distill.py, feature_distill.py, guide.py   teachers: logits, features, patch similarities (DGD)
optimizer.py, compute.py, graphed.py   groups of parameters; precision, compilation, recomputation; recorded passes
nonfinite.py, rollback.py              a NaN loss, and going back to where there was none
state.py, log.py, tracking.py          what a run keeps to go on from, and what it tells
"""
