"""Small files in the schemas in which data sets are published, and what is to become of them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

COCO_INFO = {"info": {"year": 2014}, "licenses": [{"id": 1}]}


def write(file: Path, value: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".p":
        file.write_bytes(pickle.dumps(value, protocol=2))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(line) + "\n" for line in value))
    else:
        file.write_text(json.dumps(value))
    return file


def vqa_question(id: int, image: int, text: str) -> dict[str, Any]:
    return {"image_id": image, "question": text, "question_id": id}


def vqa_annotation(id: int, image: int, answers: list[str], **more: str) -> dict[str, Any]:
    given = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)]
    return {"question_type": "what", "answers": given, "image_id": image, "question_id": id, **more}


VQA_QUESTIONS = {
    "info": {},
    "task_type": "Open-Ended",
    "data_subtype": "train2014",
    "questions": [
        vqa_question(90, 9, "What is it?"),
        vqa_question(250, 25, "How many?"),
        vqa_question(91, 9, "Is it red?"),
    ],
}
SHAREGPT = [
    {
        "id": "abc_0",
        "conversations": [
            {"from": "gpt", "value": "Ready."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello."},
            {"from": "human", "value": "Bye"},
        ],
    }
]
LLAVA = [
    {
        "id": "9",
        "image": "coco/train2017/9.jpg",
        "conversations": [
            {"from": "human", "value": "What do you see?\n<image>"},
            {"from": "gpt", "value": "A long description."},
        ],
    }
]
REFS = [
    {
        "ref_id": 1,
        "ann_id": 5,
        "category_id": 1,
        "image_id": 9,
        "file_name": "COCO_train2014_000000000009_5.jpg",
        "split": "train",
        "sent_ids": list(range(12)),
        "sentences": [
            {"tokens": ["red"], "raw": "Red thing", "sent_id": number, "sent": f"red thing {number}"}
            for number in range(12)
        ],
    },
    {
        "ref_id": 2,
        "ann_id": 5,
        "image_id": 9,
        "split": "testA",
        "sentences": [{"sent_id": 99, "sent": "kept apart", "raw": "", "tokens": []}],
    },
]
INSTANCES = {
    **COCO_INFO,
    "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 200, "height": 100}],
    "annotations": [{"id": 5, "image_id": 9, "bbox": [20, 10, 100, 50], "segmentation": [[1.0, 2.0]], "iscrowd": 0}],
}


def make(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of each format, by role."""
    files: dict[str, dict[str, Any]] = {
        "coco-captions": {
            "captions.json": {
                **COCO_INFO,
                "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 4, "height": 3}],
                "annotations": [{"image_id": 9, "id": n, "caption": f"A cat {n}."} for n in range(5)],
            }
        },
        "vqav2": {
            "questions.json": VQA_QUESTIONS,
            "annotations.json": {
                "annotations": [
                    vqa_annotation(91, 9, ["no"], multiple_choice_answer="no"),
                    vqa_annotation(90, 9, ["cat"], multiple_choice_answer="cat"),
                    vqa_annotation(250, 25, ["two"], multiple_choice_answer="2"),
                ]
            },
        },
        "okvqa": {
            "questions.json": VQA_QUESTIONS,
            "annotations.json": {
                "annotations": [
                    vqa_annotation(90, 9, ["dog", "cat", "cat"]),
                    vqa_annotation(250, 25, ["two"]),
                    vqa_annotation(91, 9, ["no", "yes"]),
                ]
            },
        },
        "gqa": {
            "questions.json": {
                "02930152": {
                    "semantic": [],
                    "question": "Is the sky dark?",
                    "imageId": "2354786",
                    "isBalanced": True,
                    "answer": "yes",
                    "fullAnswer": "Yes, the sky is dark.",
                },
                "07333408": {"question": "What is white?", "imageId": "2354786", "answer": "wall"},
            }
        },
        "aokvqa": {
            "questions.json": [
                {
                    "split": "train",
                    "image_id": 9,
                    "question_id": "22M",
                    "question": "What is it?",
                    "choices": ["cat", "dog", "cow", "hen"],
                    "correct_choice_idx": 1,
                    "direct_answers": ["dog"],
                    "difficult_direct_answer": False,
                    "rationales": ["It barks."],
                }
            ]
        },
        "ocrvqa": {
            "dataset.json": {
                "0801": {
                    "imageURL": "http://x/y.jpg",
                    "questions": ["Who wrote this?", "Is it a comic?"],
                    "answers": ["A. B. See", "No"],
                    "title": "T",
                    "authorName": "A. B. See",
                    "genre": "Art",
                    "split": 1,
                },
                "0802": {"imageURL": "", "questions": ["Who?"], "answers": ["C"], "split": 3},
            }
        },
        "textcaps": {
            "captions.json": {
                "dataset_type": "train",
                "dataset_name": "textcaps",
                "dataset_version": "0.1",
                "data": [
                    {"image_id": "ab12", "caption_str": f"A sign {n}.", "caption_id": n, "image_path": "train/ab12.jpg"}
                    for n in range(5)
                ],
            },
            "ocr.json": {"data": [{"image_id": "ab12", "ocr_tokens": ["STOP", "NOW"], "ocr_info": []}]},
        },
        "refcoco": {"refs.p": REFS, "instances.json": INSTANCES},
        "visual-genome": {
            "regions.json": [
                {
                    "id": 1,
                    "regions": [
                        {
                            "region_id": 100 + n,
                            "image_id": 1,
                            "phrase": f"thing {n}",
                            "x": 10,
                            "y": 20,
                            "width": 30,
                            "height": 40,
                        }
                        for n in range(15)
                    ],
                }
            ],
            "images.json": [
                {"image_id": 1, "url": "https://x/VG_100K_2/1.jpg", "width": 100, "height": 200, "coco_id": None}
            ],
        },
        "scienceqa": {
            "problems.json": {
                "1": {
                    "question": "Which?",
                    "choices": ["ice", "fire"],
                    "answer": 1,
                    "hint": "It burns.",
                    "image": "image.png",
                    "lecture": "On heat.",
                    "solution": "Fire burns.",
                    "split": "train",
                },
                "2": {
                    "question": "Why?",
                    "choices": ["a", "b"],
                    "answer": 0,
                    "hint": "",
                    "image": None,
                    "lecture": "",
                    "solution": "",
                    "split": "train",
                },
                "3": {"split": "test"},
            }
        },
        "sharegpt": {"conversations.json": SHAREGPT},
        "sharegpt4v": {"conversations.json": LLAVA},
        "docvqa": {
            "questions.json": {
                "dataset_name": "SP-DocVQA",
                "dataset_split": "train",
                "data": [
                    {
                        "questionId": 337,
                        "question": "what is the date?",
                        "image": "documents/xnbl0037_1.png",
                        "docId": 279,
                        "ucsf_document_id": "xnbl0037",
                        "ucsf_document_page_no": "1",
                        "answers": ["1/8/93", "Jan 8"],
                        "data_split": "train",
                    }
                ],
            }
        },
        "chartqa": {
            "questions.json": [{"imgname": "10095.png", "query": "How many?", "label": "14"}],
            "augmented.json": [{"imgname": "10095.png", "query": "Which?", "label": "Blue"}],
        },
        "dvqa": {
            "questions.json": [
                {
                    "question": "How many bars?",
                    "question_id": 1,
                    "template_id": "structure",
                    "answer": "two",
                    "answer_bbox": [],
                    "image": "bar_train_00000001.png",
                }
            ]
        },
        "syndog": {
            "metadata.jsonl": [
                {
                    "file_name": "image_0.jpg",
                    "ground_truth": json.dumps({"gt_parse": {"text_sequence": "Once upon a time."}}),
                }
            ]
        },
    }
    made = {
        name: {file.partition(".")[0]: write(folder / name / file, value) for file, value in parts.items()}
        for name, parts in files.items()
    }
    diagrams = folder / "ai2d" / "questions"
    for image in ("0.png", "7.png"):
        questions = {
            "What is A?": {
                "abcLabel": True,
                "answerTexts": ["ear", "nose"],
                "correctAnswer": 1,
                "questionId": f"{image}-0",
            },
            "How many?": {
                "abcLabel": False,
                "answerTexts": ["1", "2", "3"],
                "correctAnswer": 0,
                "questionId": f"{image}-1",
            },
        }
        write(diagrams / f"{image}.json", {"imageName": image, "questions": questions})
    kept = folder / "ai2d" / "ai2d_test_ids.csv"
    kept.write_text("7\n")
    return {**made, "ai2d": {"questions": diagrams, "test-ids": kept}}
