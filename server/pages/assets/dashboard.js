// The dashboard: asks the controller for its figures every two seconds, draws them, and lets an operator act.

import { Problem, TabKey, call } from "./api.js";
import { changeDrain } from "./drains.js";
import { counts, forgetPercentiles, measures } from "./measures.js";
import { errorsTable, legend, requestsTable, workersTable } from "./tables.js";

const POLL = 2000; // milliseconds between two looks
const PATIENCE = 5000; // milliseconds for one answer

const byId = (id) => document.getElementById(id);
const key = new TabKey("tephra-admin-key");
let heardAt = null; // when the figures on the page came
let timer = null;
let looks = 0; // so that an answer that comes after a newer question is not drawn

function notify(text) {
  const notice = byId("notice");
  if (notice.textContent === text) return; // else it would be read out at every look
  notice.textContent = text;
  notice.hidden = !text;
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

/** What an operator must know before any figure. */
function degraded(stats) {
  const words = [];
  if (stats.registry === "lost") words.push("The shared state (Redis) is lost: this controller serves on the last table it knew, and drains cannot be changed.");
  if (stats.limits === "local") words.push("Limits of keys are not shared: each controller holds them alone.");
  if (stats.limits === "refusing") words.push("Limits of keys cannot be checked: requests of limited keys are refused.");
  if (!stats.workers.healthy) words.push(stats.workers.total ? "No worker takes requests: they are answered 503." : "No worker has joined: requests are answered 404 or 503.");
  const { total, missing } = stats.processes;
  if (missing.length) words.push(`${missing.length} of ${total} controller processes did not answer (${missing.map((place) => `#${place}`).join(", ")}): the figures are without theirs.`);
  return words.join(" ");
}

/** Puts new content in place, and the focus back where a person had it. */
function replace(id, ...content) {
  const held = byId(id).contains(document.activeElement) ? document.activeElement.dataset.action : null;
  byId(id).replaceChildren(...content);
  if (held) byId(id).querySelector(`[data-action="${CSS.escape(held)}"]`)?.focus();
}

async function act(worker, action) {
  try {
    await changeDrain(worker, action, key.value);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(error);
    return;
  }
  look();
}

function draw(stats, { workers, lost }) {
  byId("headline").textContent = headline(stats, workers);
  replace("measures", ...measures(stats, POLL));
  replace("counts", ...counts(stats.counts));
  replace("workers", workersTable(workers, lost, stats.time, stats.actions ? act : null));
  replace("errors", errorsTable(stats.errors, stats.time));
  replace("slowest", requestsTable("Slowest requests", stats.slowest, stats.time, "No request in this time."), legend());
  replace("recent", requestsTable("Recent requests", stats.recent, stats.time, "No request has ended yet."));
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
  const number = ++looks;
  const seconds = document.querySelector("#windows input:checked").value;
  try {
    const [stats, members] = await Promise.all([read(`/admin/stats?window=${seconds}`), read("/admin/workers")]);
    if (number !== looks) return;
    draw(stats, members);
    document.body.classList.remove("stale");
    byId("key-panel").hidden = true;
    notify(degraded(stats));
  } catch (error) {
    if (!(error instanceof Problem) && !(error instanceof SyntaxError) && error.name !== "TimeoutError") throw error;
    if (number !== looks) return;
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
byId("windows").addEventListener("change", () => {
  forgetPercentiles();
  look();
});
document.addEventListener("visibilitychange", () => document.hidden || look());
look();
