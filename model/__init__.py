"""What a LLaVA is: geometry, images, prompts, vision tower, connector, language model, checkpoints.

Knows nothing of HTTP, Redis or trainers. Importing this package does not import torch: `model.config`, `model.geometry`
and `model.image_file` are pure Python (Pillow at most), so that the controller can count image tokens without it.
"""
