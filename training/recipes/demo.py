"""The demo model's recipes: how its connector and its small deltas were made, from scenes with known answers.

1. `demo-see`: the vision tower (LoRA) learns what each patch of a scene shows (`training.seeing`).
2. `demo-name`: the connector learns the word embedding of what each patch shows.
3. `demo-align`: connector alone, captions, base view: stage 1 of every LLaVA.
4. `demo-instruct`: connector, language model (LoRA) and vision tower (LoRA) on questions and answers, base view.
5. `demo-anyres`: the same with AnyRes tiles, shorter: what is served.
"""

from __future__ import annotations

from dataclasses import replace

from training.recipes.recipe import DataPlan, PartPlan, Recipe, SeeingRecipe

SEE = SeeingRecipe(
    name="demo-see",
    purpose="the vision tower learns what the patches of scenes show",
    parts={"vision_tower": PartPlan(1e-3, lora_rank=64, lora_alpha=64)},
    data=DataPlan("see/train.json", "see"),
    epochs=1.8,
)

NAME = replace(
    SEE,
    name="demo-name",
    purpose="the connector learns the word embedding of what each patch shows",
    init_from="demo-see",
    parts={"connector": PartPlan(2e-3)},
    epochs=0.5,
)

ALIGN = Recipe(
    name="demo-align",
    purpose="connector alone, captions, base view",
    init_from="demo-name",
    parts={"connector": PartPlan(1e-3)},
    data=DataPlan("caption/train.json", "caption"),
    view="base",
    batch=16,
    epochs=0.32,
)

INSTRUCT = Recipe(
    name="demo-instruct",
    purpose="connector, language model and vision tower, questions and answers, base view",
    init_from="demo-align",
    parts={
        "vision_tower": PartPlan(1e-4, lora_rank=64, lora_alpha=64),
        "connector": PartPlan(5e-4),
        "language_model": PartPlan(5e-4, lora_rank=48, lora_alpha=48),
    },
    data=DataPlan("instruct/train.json", "instruct"),
    view="base",
    batch=8,
    epochs=0.5,
)

ANYRES = replace(
    INSTRUCT,
    name="demo-anyres",
    purpose="as demo-instruct, on the base view and AnyRes tiles: what is served",
    init_from="demo-instruct",
    data=DataPlan("anyres/train.json", "anyres"),
    view="full",
    epochs=0.275,
)

DEMO_RECIPES: tuple[Recipe | SeeingRecipe, ...] = (SEE, NAME, ALIGN, INSTRUCT, ANYRES)
