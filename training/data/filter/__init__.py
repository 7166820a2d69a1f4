"""Picks captions so that rare things are kept and common ones thinned out: how CC3M became the 595K of LLaVA 1.0.

After https://arxiv.org/abs/2304.08485, appendix: noun phrases by frequency, rare ones skipped, frequent ones capped.
Opens no picture.
"""
