"""Mixins of the pipeline: folders and the code that they carry, offloading and LoRA."""
