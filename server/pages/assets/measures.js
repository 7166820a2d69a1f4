// The dashboard's figures with their drawings. What is older than the controller remembers second by second (load and
// percentiles over time) is kept here, for as long as the page is open.

import { amount, duration } from "./format.js";
import { bars, lines } from "./charts.js";
import { element } from "./dom.js";

const KEPT = 300; // looks kept for the lines: ten minutes
const LEAST = 30; // looks that a line's width stands for at least

const past = { load: [], ttft: [], between: [], latency: [] };

function remember(list, values) {
  list.push(values);
  if (list.length > KEPT) list.shift();
}

/** Percentiles of another window are another line. */
export function forgetPercentiles() {
  for (const name of ["ttft", "between", "latency"]) past[name] = [];
}

function measure(name, title, value, more, chart, [from, to]) {
  return element(
    "div",
    { class: "measure", "data-measure": name },
    element("h3", {}, title),
    element("p", { class: "value" }, value),
    element("p", { class: "more" }, more),
    chart,
    element("p", { class: "scale" }, element("span", {}, from), element("span", {}, to)),
  );
}

function since(list, poll) {
  const minutes = Math.max(1, Math.round((list.length * poll) / 60_000));
  return [minutes === 1 ? "last minute" : `last ${minutes} minutes`, "now"];
}

function series(list, ...names) {
  return Object.fromEntries(names.map((name) => [name, list.map((one) => one[name])]));
}

function percentileMeasure(name, title, now, none, poll) {
  const list = past[name];
  remember(list, now);
  return measure(
    name,
    title,
    duration(now.p50 ?? NaN),
    now.count ? `p90 ${duration(now.p90)} · p99 ${duration(now.p99)}` : none,
    lines(`${title}: p50, p90 and p99 since this page was opened`, series(list, "p99", "p90", "p50"), Math.max(LEAST, list.length)),
    since(list, poll),
  );
}

/** `poll`: milliseconds between two looks. */
export function measures(stats, poll) {
  remember(past.load, { p50: stats.running, p90: stats.waiting });
  const { requests, tokens, errors } = stats.history;
  const failed = errors.reduce((sum, count) => sum + count, 0);
  const minute = ["last minute", "now"];
  return [
    measure(
      "requests",
      "Requests / s",
      amount(stats.requests_per_second),
      `${amount(stats.requests_total)} in all · ${amount(failed)} failed in a minute`,
      bars(`Requests in each of the last ${requests.length} seconds`, requests, errors),
      minute,
    ),
    measure(
      "tokens",
      "Tokens / s",
      amount(stats.tokens_per_second),
      `${amount(stats.tokens_total)} in all`,
      bars(`Tokens in each of the last ${tokens.length} seconds`, tokens),
      minute,
    ),
    measure(
      "load",
      "Running",
      amount(stats.running),
      `${amount(stats.waiting)} waiting at workers · ${amount(stats.in_flight)} under way here`,
      lines("Answers running and waiting since this page was opened", series(past.load, "p90", "p50"), Math.max(LEAST, past.load.length)),
      since(past.load, poll),
    ),
    percentileMeasure("ttft", "First token", stats.ttft_seconds, "no stream yet", poll),
    percentileMeasure("between", "Between tokens", stats.inter_token_seconds, "no stream yet", poll),
    percentileMeasure("latency", "Whole answer", stats.latency_seconds, "no answer yet", poll),
  ];
}

const COUNTS = [
  ["requests", "requests"],
  ["failed", "answered with an error"],
  ["refused_429", "answered 429"],
  ["limits_hit", "of those, a key's limit"],
  ["retries", "attempts repeated"],
  ["carried_over", "streams carried over"],
  ["broken", "streams broken off"],
  ["quarantined", "quarantined"],
  ["client_left", "clients left"],
];
const BAD = new Set(["failed", "broken", "quarantined"]);

export function counts(told) {
  return COUNTS.map(([name, words]) =>
    element(
      "div",
      { class: told[name] ? (BAD.has(name) ? "some bad" : "some") : null, "data-count": name },
      element("dt", {}, words),
      element("dd", {}, amount(told[name])),
    ),
  );
}
