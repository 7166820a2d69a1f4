"""What one release of transformers makes of a checkpoint; its own interpreter runs this, which knows nothing of Tephra.

`python answers.py CHECKPOINT QUESTIONS ANSWERS`: QUESTIONS is a JSON file of {"tokens": how many to generate,
"questions": {name: {"pictures": [paths], "text": text}}}. Into the folder ANSWERS go `report.json` (release, what
loading said) and `tensors.safetensors` (`name/input_ids`, `name/pixel_values` where there are pictures, `name/logits`,
`name/generated`).
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

Question = dict[str, Any]


class Complaints(logging.Handler):
    """Keeps what transformers warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def ask(processor: Any, model: Any, question: Question, tokens: int) -> dict[str, torch.Tensor]:
    parts = [*[{"type": "image"}] * len(question["pictures"]), {"type": "text", "text": question["text"]}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    pictures: Any = [Image.open(path) for path in question["pictures"]] or None
    if pictures and model.config.model_type == "llava_onevision":
        pictures = [pictures]  # so told, it takes them for those of one conversation
    inputs = processor(text=[text], images=pictures, return_tensors="pt")
    given = {name: inputs[name] for name in ("input_ids", "pixel_values") if name in inputs}
    written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)  # [1, prompt and answer]
    answer = {"logits": model(**inputs).logits[0], "generated": written[0, inputs["input_ids"].shape[1] :]}
    return {name: tensor.contiguous().clone() for name, tensor in {**given, **answer}.items()}


def main(checkpoint: str, questions: str, answers: str) -> None:
    complaints = Complaints()
    logging.getLogger("transformers").addHandler(complaints)
    model, loading = transformers.AutoModelForImageTextToText.from_pretrained(
        checkpoint, output_loading_info=True, **({} if transformers.__version__ < "5" else {"dtype": torch.float32})
    )
    # The processor by Pillow, whatever the release prefers: torchvision's resizes a little otherwise.
    processor = transformers.AutoProcessor.from_pretrained(checkpoint, use_fast=False)
    report = {
        "transformers": transformers.__version__,
        "classes": [type(part).__name__.removesuffix("Pil") for part in (model, processor, processor.image_processor)],
        "loading": {kind: sorted(map(str, found)) for kind, found in loading.items()},
        "complaints": [text for text in complaints.texts if "use_fast" not in text],  # later ones say backend="pil"
    }
    asked = json.loads(Path(questions).read_text("utf-8"))
    tensors = {}
    with torch.inference_mode():
        for name, question in asked["questions"].items():
            for part, tensor in ask(processor, model.eval(), question, asked["tokens"]).items():
                tensors[f"{name}/{part}"] = tensor
    save_file(tensors, Path(answers) / "tensors.safetensors")
    (Path(answers) / "report.json").write_text(json.dumps(report, indent=2), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
