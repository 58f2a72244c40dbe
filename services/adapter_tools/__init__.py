"""Tools for adapters: a LoRA is extracted from a fine-tuned model, or several adapters are combined into one."""
