// Small drawings made of figures: when the pieces of an answer arrived, and how a measure went over time.

import { drawing, element } from "./dom.js";
import { duration } from "./format.js";

const WIDTH = 1000;
const MOST_TICKS = 600; // more than the pixels of any column

/** The time of an answer as a strip: a wait, then one tick for each piece of text. */
export function arrivalStrip({ arrivals, firstToken }) {
  const end = arrivals.at(-1) || 1;
  const stride = Math.ceil(arrivals.length / MOST_TICKS);
  const x = (time) => ((time / end) * (WIDTH - 2) + 1).toFixed(1);
  const ticks = arrivals.filter((_, index) => index % stride === 0 || index === arrivals.length - 1);
  const label = `Text arrived from ${duration(firstToken / 1000)} to ${duration(end / 1000)} after the question.`;
  return [
    drawing(
      "svg",
      { viewBox: `0 0 ${WIDTH} 10`, preserveAspectRatio: "none", role: "img", "aria-label": label },
      drawing("line", { class: "wait", x1: 0, x2: x(firstToken), y1: 5, y2: 5 }),
      drawing("path", { class: "ticks", d: ticks.map((time) => `M${x(time)} 0V10`).join("") }),
    ),
    element("p", { class: "scale", "aria-hidden": "true" }, element("span", {}, "0"), element("span", {}, duration(end / 1000))),
  ];
}
