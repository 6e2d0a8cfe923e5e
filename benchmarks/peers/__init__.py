"""The contest of benchmarks/peers.py: qvit and the other ways to run a Vision Transformer on a CPU, side by side."""
