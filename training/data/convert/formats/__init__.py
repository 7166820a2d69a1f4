"""One file for each published format."""

from collections.abc import Mapping

from training.data.convert.base import Converter
from training.data.convert.formats import (
    ai2d,
    aokvqa,
    chartqa,
    coco_captions,
    docvqa,
    dvqa,
    gqa,
    ocrvqa,
    refcoco,
    scienceqa,
    sharegpt,
    sharegpt4v,
    syndog,
    textcaps,
    visual_genome,
    vqa,
)

CONVERTERS: Mapping[str, Converter] = {
    converter.name: converter
    for converter in (
        coco_captions.CONVERTER,
        vqa.VQAV2,
        gqa.CONVERTER,
        vqa.OKVQA,
        aokvqa.CONVERTER,
        ocrvqa.CONVERTER,
        textcaps.CONVERTER,
        refcoco.CONVERTER,
        visual_genome.CONVERTER,
        scienceqa.CONVERTER,
        sharegpt.CONVERTER,
        sharegpt4v.CONVERTER,
        docvqa.CONVERTER,
        chartqa.CONVERTER,
        dvqa.CONVERTER,
        ai2d.CONVERTER,
        syndog.CONVERTER,
    )
}
