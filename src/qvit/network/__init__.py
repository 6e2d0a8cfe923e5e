"""From a timm model to its quantized twin: every supported layer swapped for one that quantizes, nothing else changed.

support.py      which models can be quantized; the others are refused by the name of the module
convert.py      the swap: float keys of the state_dict stay as they are, keys of quantizers are added
hidden.py       groups of hidden units, for bits of parts of an MLP
layers.py       linear layers and convolutions
attention.py    attention of ViT and Swin, quantized per head
rectify.py      rectified queries and keys (IRM), folded into qkv
placement.py    what is integer, what stays float, how scales leave the products
"""
