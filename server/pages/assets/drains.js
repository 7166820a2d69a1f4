// Draining a worker and taking it back: asked for on the page, confirmed, done with the admin key, and told.

import { Problem, call } from "./api.js";

const byId = (id) => document.getElementById(id);
const ASKED = {
  drain: {
    title: (id) => `Drain ${id}?`,
    text: "It gets no new requests from any controller and finishes what it has in hand. It is safe to stop once it is shown as drained.",
    yes: "Drain",
    done: (id) => `${id} drains: it gets no new requests.`,
  },
  undrain: {
    title: (id) => `Send ${id} requests again?`,
    text: "It gets a growing share of the requests, as after joining.",
    yes: "Undrain",
    done: (id) => `${id} gets requests again.`,
  },
};

function tell(text, kind) {
  const outcome = byId("outcome");
  outcome.textContent = text;
  outcome.className = kind;
  outcome.hidden = !text;
}

function confirmed(words, id) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = words.title(id);
  byId("confirm-text").textContent = words.text;
  byId("confirm-yes").textContent = words.yes;
  dialog.returnValue = "no"; // what Escape leaves
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

/** Asks, acts and tells. A Problem with status 401 is thrown on: the key is to be asked for. */
export async function changeDrain(worker, action, key) {
  const words = ASKED[action];
  if (!(await confirmed(words, worker.id))) return;
  try {
    await call(`/admin/workers/${encodeURIComponent(worker.id)}/${action}`, { key, body: {} });
    tell(words.done(worker.id), "good");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    tell(`${worker.id} was not changed. ${error.detail}`, "bad");
    if (error.status === 401) throw error;
  }
}
