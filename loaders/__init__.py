"""Mixins of the pipeline: folders and the code in them, offloading and LoRA."""
