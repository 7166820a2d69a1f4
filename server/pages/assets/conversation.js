// The turns on the page: questions with their pictures, answers with their measurements in the margin.

import { UNKNOWN, amount, duration } from "./format.js";
import { arrivalStrip } from "./charts.js";
import { element } from "./dom.js";

const ENDINGS = {
  length: "cut at the token limit",
  stopped: "stopped by you",
  content_filter: "withheld",
  abort: "ended by the server",
};

/** Adds a question to the page and returns its element. */
export function showQuestion(list, turn) {
  const pictures = turn.pictures.map((picture) =>
    element("img", { src: picture.url, alt: picture.name, width: picture.width, height: picture.height }),
  );
  const node = element(
    "article",
    { class: "turn question" },
    element("p", { class: "margin" }, "You"),
    element(
      "div",
      { class: "body" },
      pictures.length ? element("div", { class: "pictures" }, ...pictures) : null,
      element("p", { class: "text" }, turn.text),
    ),
  );
  list.append(node);
  return node;
}

/** An answer on the page; `update` may be called for every piece, it draws at most once a frame. */
export class AnswerView {
  #answer;
  #drawn = false;

  constructor(list, model, answer) {
    this.#answer = answer;
    this.figures = element("dl");
    this.text = element("div", { class: "text", "aria-busy": "true", "aria-live": "polite" });
    this.strip = element("div", { class: "strip" });
    this.actions = element("div", { class: "actions" });
    this.node = element(
      "article",
      { class: "turn answer live" },
      element("div", { class: "margin" }, element("p", { class: "model" }, model), this.figures),
      element("div", { class: "body" }, this.text, this.strip, this.actions),
    );
    list.append(this.node);
    this.#drawFigures(true);
  }

  update() {
    if (this.#drawn) return;
    this.#drawn = true;
    requestAnimationFrame(() => {
      this.#drawn = false;
      if (this.node.classList.contains("live")) this.#draw(true);
    });
  }

  #draw(live) {
    this.text.textContent = this.#answer.text;
    this.#drawFigures(live);
    if (this.#answer.arrivals.length) this.strip.replaceChildren(...arrivalStrip(this.#answer));
  }

  #drawFigures(live) {
    const { usage, version, requestId, finish, firstToken, tokensPerSecond, arrivals } = this.#answer;
    const rows = [];
    if (live || arrivals.length) {
      rows.push(
        ["first token", "first-token", firstToken === null ? UNKNOWN : duration(firstToken / 1000)],
        ["tokens / s", "tokens-per-second", amount(tokensPerSecond)],
        ["tokens in", "tokens-in", amount(usage?.prompt_tokens)],
        ["tokens out", "tokens-out", amount(usage?.completion_tokens ?? (live ? arrivals.length : undefined))],
      );
    }
    if (version) rows.push(["version", "version", version]);
    if (requestId && !live) rows.push(["request", "request", requestId]);
    if (!live && ENDINGS[finish]) rows.push(["ended", "ended", ENDINGS[finish]]);
    this.figures.replaceChildren(
      ...rows.map(([label, name, value]) =>
        element("div", { "data-figure": name }, element("dt", {}, label), element("dd", { title: value }, value)),
      ),
    );
  }

  /** The answer is whole, or as whole as it will be. */
  finish() {
    this.node.classList.remove("live");
    this.#draw(false);
    if (!this.#answer.text) this.text.replaceChildren(element("em", {}, "No text came."));
    this.text.setAttribute("aria-busy", "false");
  }

  /** Puts a problem where the answer would have gone on. */
  fail(problem) {
    this.finish();
    this.node.classList.add("failed");
    if (!this.#answer.text) this.text.remove();
    const details = [`${problem.status || "no answer"}`, problem.requestId].filter(Boolean).join(" · ");
    this.strip.replaceWith(
      element(
        "div",
        { class: "problem", role: "alert" },
        element("strong", {}, `${problem.message}.`),
        element("p", {}, problem.detail),
        problem.retryAfter ? element("p", {}, `Try again in ${problem.retryAfter} s.`) : null,
        element("p", { class: "aside" }, details),
      ),
    );
  }

  offer(...buttons) {
    this.actions.replaceChildren(...buttons);
  }
}
