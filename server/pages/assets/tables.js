// The dashboard's tables: workers, errors, requests. Each takes what the controller told and gives elements.

import { UNKNOWN, ago, amount, duration, percent } from "./format.js";
import { element } from "./dom.js";
import { meter, spans } from "./charts.js";

const ROWS = 20; // requests shown
const SHARE_SHOWN = 0.05; // of a request's time: shorter phases are drawn, not written

/** Columns are [heading, class name, label on phones]; a cell is a node, a text, or null for nothing. */
function table(label, columns, rows) {
  const head = columns.map(([heading, kind]) => element("th", { scope: "col", class: kind || null }, heading));
  const body = rows.map((cells) =>
    element(
      "tr",
      {},
      ...cells.map((cell, index) =>
        element("td", { class: columns[index][1] || null, "data-label": columns[index][2] ?? null }, cell ?? ""),
      ),
    ),
  );
  return element("table", { "aria-label": label }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

const empty = (text) => element("p", { class: "empty" }, text);
const under = (...content) => element("span", { class: "under" }, ...content);

function both(text, below) {
  const cell = document.createDocumentFragment();
  cell.append(text);
  if (below) cell.append(" ", under(below));
  return cell;
}

function status(kind, text) {
  return element("span", { class: `status ${kind}` }, text);
}

/** Long names are cut for the eye and whole for a copy. */
const identity = (text) => (text ? element("span", { class: "id", title: text }, text) : null);

const KINDS = { joining: "good", healthy: "good", slow_start: "good", open: "bad", unhealthy: "bad", lost: "bad", drained: "" };
const STATES = { slow_start: "slow start", open: "breaker open", half_open: "breaker half open", drained: "drained, safe to stop" };

function stateCell(worker) {
  const words = [];
  if (worker.weight < 1) words.push(`weight ${percent(worker.weight)}`);
  if (worker.breaker !== "closed" && worker.breaker_reason) words.push(worker.breaker_reason.replaceAll("_", " "));
  if (worker.state === "draining") words.push(`${worker.in_hand ?? worker.in_flight} in hand`);
  const others = Object.entries(worker.states ?? {}).filter(([state]) => state !== worker.state);
  for (const [state, count] of others) words.push(`${STATES[state] ?? state} to ${count}`); // controller processes differ
  return both(status(KINDS[worker.state] ?? "warn", STATES[worker.state] ?? worker.state), words.join(" · "));
}

/** `act(worker, action)` is called for a worker that is to drain or undrain; null where nobody may. */
export function workersTable(workers, lost, now, act) {
  if (!workers.length && !lost.length) return empty("No worker has joined yet.");
  const rows = [...workers, ...lost].map((worker) => {
    const gone = worker.lost_seconds !== undefined;
    const kv = document.createDocumentFragment();
    if (!gone) kv.append(percent(worker.kv_usage), meter(`KV cache ${percent(worker.kv_usage)} in use`, worker.kv_usage));
    const action = worker.draining_since === null ? "drain" : "undrain";
    const button = element(
      "button",
      { type: "button", "data-action": `${action} ${worker.id}`, "aria-label": `${action} ${worker.id}`, onclick: () => act(worker, action) },
      action === "drain" ? "Drain" : "Undrain",
    );
    return [
      stateCell(worker),
      both(element("span", {}, worker.id), `${worker.engine} on ${worker.device} · ${worker.url.replace(/^https?:\/\//, "")}`),
      both(worker.model, worker.version),
      gone ? UNKNOWN : both(`${worker.running} / ${worker.max_running}`, `${worker.waiting} waiting`),
      gone ? UNKNOWN : duration(worker.queue_seconds || 0),
      gone ? UNKNOWN : both(amount(worker.answer_tokens_per_second), `${amount(worker.prompt_tokens_per_second)} in`),
      gone ? UNKNOWN : kv,
      gone ? UNKNOWN : both(percent(worker.prefix_hit_rate), `${percent(worker.image_hit_rate)} pictures`),
      gone ? `lost ${ago(worker.lost_seconds)}` : ago(Math.max(0, now - worker.heard_at)),
      gone || !act ? null : button,
    ];
  });
  return table(
    "Workers",
    [
      ["State", "wide"],
      ["Worker", "wide"],
      ["Model, version", "wide"],
      ["Running", "nowrap", "running"],
      ["Queue", "nowrap", "queue"],
      ["Tokens / s", "nowrap", "tokens / s"],
      ["KV cache", "", "KV cache"],
      ["Cache hits", "nowrap", "prefix hits"],
      ["Heard", "nowrap", "heard"],
      ["", "wide act"],
    ],
    rows,
  );
}

export function errorsTable(errors, now) {
  if (!errors.length) return empty("None in this time.");
  const rows = errors.map((error) => [
    status(error.status >= 500 || error.status < 400 ? "bad" : "warn", String(error.status)),
    element("span", { class: "code" }, error.code),
    amount(error.count),
    ago(Math.max(0, now - error.last)),
    identity(error.request_id),
  ]);
  return table(
    "Errors",
    [["Status", ""], ["Code", "", "code"], ["Times", "number", "times"], ["Last", "nowrap", "last"], ["Last request", "wide"]],
    rows,
  );
}

function outcome(request) {
  if (request.ended === "broken") return status("bad", "broken off");
  if (request.ended === "client_left") return status("", "client left");
  if (request.status >= 500) return status("bad", String(request.status));
  if (request.status >= 400) return status("warn", String(request.status));
  return status("good", "complete");
}

const PHASES = {
  prepare: "prepared here",
  lost: "failed attempts",
  queue: "queued at the worker",
  prefill: "prefill",
  worker: "worker, not told apart",
  decode: "decode",
  sending: "client taking it",
};
const SHORT = { ...PHASES, prepare: "prepare", lost: "lost", queue: "queue", worker: "worker", sending: "sending" };

function timeline(request, longest) {
  const parts = Object.entries(request.phases).filter(([, seconds]) => seconds > 0);
  const whole = Math.max(request.seconds, 1e-6);
  const words = parts.map(([name, seconds]) => `${PHASES[name]} ${duration(seconds)}`).join(", ");
  const main = parts.filter(([, seconds]) => seconds / whole >= SHARE_SHOWN).sort((one, other) => other[1] - one[1]);
  const cell = document.createDocumentFragment();
  cell.append(spans(words, parts, longest), under(main.slice(0, 3).map(([name, seconds]) => `${SHORT[name]} ${duration(seconds)}`).join(" · ")));
  return cell;
}

export function legend() {
  const entries = Object.entries(PHASES).map(([name, text]) => element("span", {}, spans("", [[name, 1]], 1), text));
  return element("p", { class: "key" }, ...entries);
}

/** Answers without a usage report have an answer's count only, or none. */
function tokens({ prompt_tokens: prompt, completion_tokens: completion }) {
  if (!prompt && !completion) return UNKNOWN;
  return prompt ? `${amount(prompt)} → ${amount(completion)}` : `→ ${amount(completion)}`;
}

function moved(request) {
  const words = [];
  if (request.retries) words.push(`${request.retries} repeated`);
  if (request.carried_over) words.push(`carried over ${request.carried_over}×`);
  return words.join(" · ") || request.error;
}

export function requestsTable(label, requests, now, none) {
  if (!requests.length) return empty(none);
  const shown = requests.slice(0, ROWS);
  const longest = Math.max(1e-3, ...shown.map((request) => request.seconds));
  const rows = shown.map((request) => [
    both(outcome(request), moved(request)),
    both(ago(Math.max(0, now - request.started_at)), identity(request.id)),
    both(request.model || UNKNOWN, [request.worker || "no worker", request.version].filter(Boolean).join(" · ")),
    request.images ? String(request.images) : UNKNOWN,
    tokens(request),
    duration(request.first_byte_seconds || NaN),
    duration(request.seconds),
    timeline(request, longest),
  ]);
  return table(
    label,
    [
      ["Outcome", ""],
      ["Began, request", ""],
      ["Model, worker, version", "wide"],
      ["Pictures", "number", "pictures"],
      ["Tokens", "number", "tokens"],
      ["First byte", "number", "first byte"],
      ["Total", "number", "total"],
      ["Where its time went", "wide spans-cell"],
    ],
    rows,
  );
}
