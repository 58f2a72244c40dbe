"""Model families: tensor names, configuration rules and the checkpoint as a set of Hugging Face tensors."""
