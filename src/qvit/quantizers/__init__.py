"""One tensor onto its grid: the arithmetic of fake quantization, its gradients, and the learned state.

ste.py                     straight-through functions
fake_quantize.py           x -> codes -> x_hat in torch, with gradients of x, scale, offset and bits
fake_quantize_native.py    the same in one native pass each way, on a CPU
fake_quantize_triton.py    the same in a few kernels, on a GPU
fused.py                   which of these takes a tensor
quantizer.py               learned scale, bit-width and offset of a tensor's groups; the switchable scale
midrise.py                 2-bit weights without a zero level
region_quantizer.py        two scales in one code (TSPTQ-ViT)
exact.py                   a module in float64, as the integer program computes it
"""
