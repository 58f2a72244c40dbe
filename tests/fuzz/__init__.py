"""Every reader of foreign files on mutated and generated ones: an answer or one of our errors, within limits of time and memory."""
