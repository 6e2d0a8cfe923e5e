"""From a module to a Program: integers, scales and a short list of ops. No bit is changed here.

freeze.py            the walks over a ViT and a Swin
emitter.py           ops and buffers one after another
integer_layers.py    one quantizer, one quantized layer as integers: grids, weight codes, folded biases
"""
