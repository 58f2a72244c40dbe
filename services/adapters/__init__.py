"""Adapters: configuration, tuner types and whether a stack of them fits a base model."""
