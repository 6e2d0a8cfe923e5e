"""What bits cost and what they buy, and the decision that follows.

cost.py           BitOPs, average bits, KiB: a function of shapes and bits, differentiable or exact
latency.py        milliseconds from a measured table
budget.py         one limit in one of these units
sensitivity.py    the Fisher-weighted error of every group of bits at every width
allocate.py       how bits move while they are learned
lock.py           how they end: rounded, within the budget, none of it left over
init_bits.py      bits to start from, out of an analysis
"""
