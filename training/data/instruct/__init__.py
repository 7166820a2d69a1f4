"""Instructions from captions and boxes: a language model that never sees a picture writes what is asked about it.

After LLaVA-Instruct-158K (https://arxiv.org/abs/2304.08485, section 3). Words of its own throughout: system messages,
examples and paraphrases are files under `prompts/`, which a folder of the user's can replace.
"""
