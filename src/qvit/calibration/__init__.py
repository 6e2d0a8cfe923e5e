"""Scales from data, before any training: what a quantizer sees is turned into the best grid for it.

observers.py          streaming histograms of what reaches a quantizer
range_observers.py    min-max, moving average, percentile, mean squared error: ranges as other tools find them
least_squares.py      the scale of least squared error, the default
calibrate.py          run images through a model, fill every quantizer
"""
