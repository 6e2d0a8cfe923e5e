"""qvit: learn how many bits a Vision Transformer needs."""
