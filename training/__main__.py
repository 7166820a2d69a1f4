"""`python -m training RECIPE ...`: what torchrun and accelerate start; `tephra train` calls the same."""

from training.train import command

command()
