// The dashboard's tables: workers, recent requests, errors. Each takes what the controller told and gives elements.

import { UNKNOWN, ago, amount, duration, percent } from "./format.js";
import { element } from "./dom.js";
import { meter, spans } from "./charts.js";

export const ROWS = 20; // recent requests shown
const ENDED = { complete: "complete", error: "refused", client_left: "client left", broken: "broken off" };

/** Columns are [heading, class name or ""]; a cell is a node, a text, or null for nothing. */
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
const under = (text) => element("span", { class: "under" }, text);

function both(text, below) {
  const cell = document.createDocumentFragment();
  cell.append(text, " ", under(below));
  return cell;
}

function status(kind, text) {
  return element("span", { class: `status ${kind}` }, text);
}

const STATES = { joining: "good", healthy: "good", slow_start: "good", open: "bad", unhealthy: "bad" };

export function workersTable(workers, now) {
  if (!workers.length) return empty("No worker has joined yet.");
  const rows = workers.map((worker) => {
    const kv = document.createDocumentFragment();
    kv.append(percent(worker.kv_usage), meter(`KV cache ${percent(worker.kv_usage)} in use`, worker.kv_usage));
    return [
      status(STATES[worker.state] ?? "warn", worker.state.replace("_", " ")),
      both(worker.id, worker.url),
      both(worker.model, worker.version),
      both(worker.engine, worker.device),
      both(`${worker.running} / ${worker.max_running}`, `${worker.waiting} waiting`),
      kv,
      ago(Math.max(0, now - worker.heard_at)),
    ];
  });
  const columns = [
    ["State", "wide"],
    ["Worker", "wide"],
    ["Model, version", "wide"],
    ["Engine, device", ""],
    ["Running", "", "running"],
    ["KV cache", "", "KV cache"],
    ["Heard", "number", "heard"],
  ];
  return table("Workers", columns, rows);
}

const failed = (request) => request.status >= 400 || request.ended === "broken";

function outcome(request) {
  if (request.ended === "broken") return status("bad", "broken off");
  if (request.status >= 500) return status("bad", String(request.status));
  if (request.status >= 400) return status("warn", String(request.status));
  return status(request.ended === "complete" ? "good" : "", ENDED[request.ended] ?? request.ended);
}

function timeline(request, longest) {
  const total = Math.max(request.seconds, 1e-6);
  const prepare = Math.min(request.prepare_seconds, total);
  const first = request.first_byte_seconds ? Math.min(request.first_byte_seconds, total) : total;
  const parts = failed(request)
    ? [["bad", total]]
    : [["prepare", prepare], ["first", Math.max(0, first - prepare)], ["stream", total - first]];
  const words = `prepared in ${duration(prepare)}, first byte at ${duration(request.first_byte_seconds || NaN)}, done at ${duration(total)}`;
  return spans(words, parts.filter(([, seconds]) => seconds > 0), longest);
}

function legend() {
  const entry = (name, text) => element("span", {}, spans("", [[name, 1]], 1), text);
  return element("p", { class: "key" }, entry("prepare", "prepared here"), entry("first", "until the first byte"), entry("stream", "streaming"), entry("bad", "failed"));
}

/** Answers without a usage report have an answer's count only, or none. */
function tokens({ prompt_tokens: prompt, completion_tokens: completion }) {
  if (!prompt && !completion) return UNKNOWN;
  return prompt ? `${amount(prompt)} → ${amount(completion)}` : `→ ${amount(completion)}`;
}

export function recentTable(requests, now) {
  if (!requests.length) return empty("No request has ended yet.");
  const shown = requests.slice(0, ROWS);
  const longest = Math.max(1e-3, ...shown.map((request) => request.seconds));
  const rows = shown.map((request) => [
    outcome(request),
    ago(Math.max(0, now - request.started_at)),
    both(request.model || UNKNOWN, request.worker || "no worker"),
    request.images ? String(request.images) : UNKNOWN,
    tokens(request),
    duration(failed(request) ? NaN : request.first_byte_seconds || NaN),
    duration(request.seconds),
    timeline(request, longest),
  ]);
  const columns = [
    ["Outcome", ""],
    ["Began", "nowrap"],
    ["Model, worker", "wide"],
    ["Pictures", "number", "pictures"],
    ["Tokens", "number", "tokens"],
    ["First byte", "number", "first byte"],
    ["Total", "number", "total"],
    ["Time", "wide spans-cell"],
  ];
  const cell = document.createDocumentFragment();
  cell.append(table("Recent requests", columns, rows), legend());
  return cell;
}

export function errorsTable(requests, now) {
  const kinds = new Map();
  for (const request of requests.filter(failed)) {
    const code = request.error || (request.ended === "broken" ? "stream_broken" : "error");
    const name = `${request.status} ${code}`;
    const kind = kinds.get(name) ?? { status: request.status, code, count: 0, last: 0, id: "" };
    kind.count += 1;
    if (request.started_at > kind.last) Object.assign(kind, { last: request.started_at, id: request.id });
    kinds.set(name, kind);
  }
  if (!kinds.size) return empty(requests.length ? `None among the last ${requests.length} requests.` : "None so far.");
  const rows = [...kinds.values()]
    .sort((one, other) => other.last - one.last)
    .map((kind) => [
      status(kind.status >= 500 || kind.status < 400 ? "bad" : "warn", String(kind.status)),
      element("span", { class: "code" }, kind.code),
      amount(kind.count),
      ago(Math.max(0, now - kind.last)),
      kind.id,
    ]);
  return table(
    "Errors",
    [["Status", ""], ["Code", ""], ["Times", "number", "times"], ["Last", "nowrap", "last"], ["Request", "wide", "request"]],
    rows,
  );
}
