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

const HEIGHT = 48;

function frame(label, ...marks) {
  return drawing("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, ...marks);
}

/** One bar a second, the oldest first; `marked` (as long as `counts`) are drawn over them in the colour of errors. */
export function bars(label, counts, marked = []) {
  const top = Math.max(1, ...counts);
  const step = WIDTH / counts.length;
  const path = (values) =>
    values
      .map((value, index) => (value ? `M${(index * step + step / 2).toFixed(1)} ${HEIGHT}V${(HEIGHT * (1 - value / top)).toFixed(1)}` : ""))
      .join("");
  return frame(label, baseline(), drawing("path", { class: "bars", d: path(counts) }), drawing("path", { class: "bars bad", d: path(marked) }));
}

/** Lines over the same scale from 0; null is a gap. `series` is {class name: values}, all of `length` at most. */
export function lines(label, series, length) {
  const top = Math.max(1e-9, ...Object.values(series).flatMap((values) => values.filter((value) => value !== null)));
  const paths = Object.entries(series).map(([name, values]) => {
    const offset = length - values.length; // the newest stand at the right edge
    let pen = "M";
    const d = values.map((value, index) => {
      if (value === null) {
        pen = "M";
        return "";
      }
      const x = (((index + offset) / Math.max(1, length - 1)) * WIDTH).toFixed(1);
      const point = `${pen}${x} ${(1 + (HEIGHT - 2) * (1 - value / top)).toFixed(1)}`;
      const dot = pen === "M" ? "h.01" : ""; // a point alone is still seen
      pen = "L";
      return point + dot;
    });
    return drawing("path", { class: `line ${name}`, d: d.join("") });
  });
  return frame(label, baseline(), ...paths);
}

function baseline() {
  return drawing("line", { class: "baseline", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 });
}

/** A share of 1 as a small meter. */
export function meter(label, share) {
  return drawing(
    "svg",
    { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": label },
    drawing("rect", { class: "whole", width: 100, height: 6 }),
    drawing("rect", { class: "part", width: (100 * Math.min(1, Math.max(0, share))).toFixed(1), height: 6 }),
  );
}

/** Where a request's time went: `parts` is [[class name, seconds], ...], `longest` the seconds of the full width. */
export function spans(label, parts, longest) {
  let at = 0;
  const rects = parts.map(([name, seconds]) => {
    const x = at;
    at += (100 * seconds) / longest;
    return drawing("rect", { class: name, x: x.toFixed(2), width: Math.max(0.4, at - x).toFixed(2), height: 6 });
  });
  return drawing("svg", { class: "spans", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...rects);
}
