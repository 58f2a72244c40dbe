"""Headers of safetensors, PyTorch zip and GGUF files, read with bounds; nothing in them is executed."""
