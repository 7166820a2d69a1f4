"""How a model that is loaded for a CPU computes: packed bfloat16, int8, and float32 with one order of sums.

Each of `fused`, `int8` and `invariant` puts other layers in the place of those of `model.llava` and changes nothing
else; `kernels` holds the inner loops. Nothing here is imported where a model runs on a GPU.
"""
