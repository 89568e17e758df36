"""The native library: loaded, mapped files, its ops, and the same ops in plain PyTorch."""
