// The dashboard: asks the controller for its figures every two seconds and draws them. What is older than the
// controller remembers (percentiles over time) is kept in this page, for as long as it is open.

import { Problem, TabKey, call } from "./api.js";
import { amount, duration } from "./format.js";
import { bars, lines } from "./charts.js";
import { element } from "./dom.js";
import { errorsTable, recentTable, workersTable } from "./tables.js";

const POLL = 2000; // milliseconds between two looks
const PATIENCE = 5000; // milliseconds for one answer
const KEPT = 300; // looks kept for the lines: ten minutes

const byId = (id) => document.getElementById(id);
const key = new TabKey("tephra-admin-key");
const past = { ttft: [], latency: [] };
let heardAt = null; // when the figures on the page came
let timer = null;

function notify(text) {
  const notice = byId("notice");
  if (notice.textContent === text) return; // else it would be read out at every look
  notice.textContent = text;
  notice.hidden = !text;
}

function remember(list, percentiles) {
  list.push(percentiles);
  if (list.length > KEPT) list.shift();
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

function percentileMeasure(name, title, list, now) {
  const series = Object.fromEntries(["p99", "p90", "p50"].map((share) => [share, list.map((one) => one[share])]));
  const minutes = Math.max(1, Math.round((list.length * POLL) / 60_000));
  return measure(
    name,
    title,
    duration(now.p50 ?? NaN),
    now.count ? `p90 ${duration(now.p90)} · p99 ${duration(now.p99)}` : "no answer yet",
    lines(`${title}: p50, p90 and p99 since this page was opened`, series, Math.max(30, list.length)),
    [minutes === 1 ? "last minute" : `last ${minutes} minutes`, "now"],
  );
}

function drawMeasures(stats) {
  remember(past.ttft, stats.ttft_seconds);
  remember(past.latency, stats.latency_seconds);
  const window = stats.window_seconds === 60 ? "last minute" : `last ${stats.window_seconds} s`;
  const { requests, tokens, errors } = stats.history;
  byId("measures").replaceChildren(
    measure(
      "requests",
      "Requests / s",
      amount(stats.requests_per_second),
      `${amount(stats.requests_total)} in all · ${amount(errors.reduce((sum, count) => sum + count, 0))} failed lately`,
      bars(`Requests in each of the last ${requests.length} seconds`, requests, errors),
      [window, "now"],
    ),
    measure(
      "tokens",
      "Tokens / s",
      amount(stats.tokens_per_second),
      `${amount(stats.tokens_total)} in all`,
      bars(`Tokens in each of the last ${tokens.length} seconds`, tokens),
      [window, "now"],
    ),
    percentileMeasure("ttft", "First token", past.ttft, stats.ttft_seconds),
    percentileMeasure("latency", "Whole answer", past.latency, stats.latency_seconds),
  );
}

function count(number, one, many) {
  return `${number === 0 ? "no" : number} ${number === 1 ? one : many}`;
}

const READY = new Set(["joining", "healthy", "slow_start"]);

function headline(stats, workers) {
  const ready = workers.filter((worker) => READY.has(worker.state)).length;
  const running = count(stats.running, "answer", "answers");
  const words = `${count(ready, "worker", "workers")} ready, ${running} running, ${stats.waiting} waiting.`;
  return words[0].toUpperCase() + words.slice(1);
}

function draw(stats, workers) {
  byId("headline").textContent = headline(stats, workers);
  drawMeasures(stats);
  byId("workers").replaceChildren(workersTable(workers, stats.time));
  byId("recent").replaceChildren(recentTable(stats.recent, stats.time));
  byId("errors").replaceChildren(errorsTable(stats.recent, stats.time));
  byId("board").hidden = false;
  heardAt = Date.now();
}

function showProblem(problem) {
  document.body.classList.toggle("stale", heardAt !== null);
  if (problem.status === 401) {
    notify(key.value ? "The controller did not accept this admin key." : "The controller asks for its admin key.");
    if (byId("key-panel").hidden) {
      byId("key-panel").hidden = false;
      byId("key").focus();
    }
    byId("headline").textContent = "Locked.";
    return;
  }
  const since = heardAt === null ? "" : ` The figures below are from ${new Date(heardAt).toLocaleTimeString()}.`;
  notify(`${problem.detail}${since}`);
  byId("headline").textContent = problem.status === 0 ? "The controller cannot be reached." : `${problem.message}.`;
}

async function read(path) {
  const response = await call(path, { key: key.value, signal: AbortSignal.timeout(PATIENCE) });
  return response.json();
}

async function look() {
  clearTimeout(timer);
  try {
    const [stats, { workers }] = await Promise.all([read("/admin/stats"), read("/admin/workers")]);
    draw(stats, workers);
    document.body.classList.remove("stale");
    byId("key-panel").hidden = true;
    notify(stats.registry === "lost" ? "The shared state (Redis) is lost: this controller serves on the last table it knew." : "");
  } catch (error) {
    if (!(error instanceof Problem) && !(error instanceof SyntaxError) && error.name !== "TimeoutError") throw error;
    showProblem(error instanceof Problem ? error : new Problem(502, "The controller's figures could not be read."));
  }
  byId("freshness").textContent = heardAt ? `as of ${new Date(heardAt).toLocaleTimeString()}, every ${POLL / 1000} s` : "";
  // While nobody looks, nobody is asked; without the right key, not until there is one.
  if (!document.hidden && byId("key-panel").hidden) timer = setTimeout(look, POLL);
}

byId("key-panel").addEventListener("submit", (event) => {
  event.preventDefault();
  const value = byId("key").value.trim();
  if (!value) return;
  key.value = value;
  byId("key").value = "";
  look();
});
document.addEventListener("visibilitychange", () => document.hidden || look());
look();
