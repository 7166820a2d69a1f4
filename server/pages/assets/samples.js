// The pictures that a first visitor can click, each with a question. They are drawings; a canvas turns one into the PNG
// that is sent, as it does for any format that the server does not read.

import { readPicture } from "./pictures.js";

export const SAMPLES = [
  { name: "shapes", alt: "A red circle beside a blue square", question: "What is to the left of the blue square?" },
  { name: "word", alt: "A printed word", question: "What word is printed here?" },
  { name: "stars", alt: "Yellow stars on a dark sky", question: "How many stars are there?" },
  { name: "apple", alt: "A red apple with a leaf", question: "What is in this picture?" },
  { name: "boat", alt: "A sailing boat on the sea", question: "Is there a boat in the picture?" },
  { name: "house", alt: "A house and a tree under the sun", question: "Describe this picture." },
];

export function sampleAddress(sample) {
  return `/assets/samples/${sample.name}.svg`;
}

/** The sample as a picture to send. */
export async function drawSample(sample) {
  const response = await fetch(sampleAddress(sample));
  if (!response.ok) throw new Error(`The sample ${sample.name} could not be loaded.`);
  const picture = await readPicture(await response.blob(), sample.name);
  return { ...picture, note: "" };
}
