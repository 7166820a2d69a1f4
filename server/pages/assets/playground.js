// The playground: wires the composer, the conversation and the API together. The conversation lives in this tab alone.

import { Answer, ask, chatBody } from "./chat.js";
import { AnswerView, showQuestion } from "./conversation.js";
import { Composer } from "./composer.js";
import { Problem, TabKey, call } from "./api.js";
import { SAMPLES, drawSample, sampleAddress } from "./samples.js";
import { asCurl, asPython } from "./snippets.js";
import { element } from "./dom.js";

const MODEL_WAIT = 4000; // milliseconds between looks for a model while there is none
const MODEL_TIMEOUT = 10_000;

const byId = (id) => document.getElementById(id);
const list = byId("conversation");
const key = new TabKey("tephra-api-key");
const composer = new Composer({ onError: notify });

let turns = []; // what the model has seen: {role, text, pictures}
let lastQuestion = null; // its place on the page
let running = null; // AbortController of the answer that streams
let lastView = null;
let retry = null; // what to do again once a key is given

function notify(text) {
  const notice = byId("notice");
  notice.textContent = text;
  notice.hidden = !text;
}

function say(text) {
  byId("status").textContent = text;
}

function askForKey(again) {
  retry = again;
  byId("key-panel").hidden = false;
  byId("key").focus();
}

function useKey() {
  const value = byId("key").value.trim();
  if (!value) return;
  key.value = value;
  byId("key").value = "";
  byId("key-panel").hidden = true;
  byId("key-forget").hidden = false;
  notify("");
  const again = retry;
  retry = null;
  again?.();
}

// --- models

async function findModels() {
  const select = byId("model");
  try {
    const response = await call("/v1/models", { key: key.value, signal: AbortSignal.timeout(MODEL_TIMEOUT) });
    const models = (await response.json()).data ?? [];
    if (models.length) {
      const chosen = select.value;
      select.replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
      if (models.some(({ id }) => id === chosen)) select.value = chosen;
      select.disabled = false;
      notify("");
      aboutModel();
      return;
    }
    select.replaceChildren(element("option", {}, "No model yet"));
    notify("No worker has joined yet. This page looks again by itself.");
  } catch (problem) {
    if (problem.status === 401) {
      notify(key.value ? "The server did not accept this API key." : "This server asks for an API key.");
      askForKey(findModels);
      return;
    }
    select.replaceChildren(element("option", {}, "No model"));
    notify(problem instanceof Problem ? `${problem.message}. ${problem.detail}` : "The list of models could not be read.");
  }
  select.disabled = true;
  setTimeout(findModels, MODEL_WAIT);
}

function aboutModel() {
  const note = byId("about-model");
  note.hidden = !/\bdemo\b/.test(byId("model").value);
  note.textContent =
    "The demo model is small. It was trained on scenes of common objects: it names them, says what kind of thing " +
    "they are and whether one is there; it counts and reads badly. It shows the system at work; do not trust it.";
}

// --- asking

function setRunning(controller) {
  running = controller;
  byId("stop").hidden = !controller;
  byId("ask").hidden = Boolean(controller);
  byId("fresh").hidden = !turns.length;
  byId("welcome").hidden = turns.length > 0;
}

/** Keeps the end in sight while the person has not scrolled away from it. */
function follower() {
  let following = true;
  const onScroll = () => (following = innerHeight + scrollY >= document.documentElement.scrollHeight - 80);
  addEventListener("scroll", onScroll, { passive: true });
  return {
    follow: () => following && scrollTo({ top: document.documentElement.scrollHeight }),
    end: () => removeEventListener("scroll", onScroll),
  };
}

async function answerTurns() {
  const model = byId("model").value;
  const asked = turns;
  const body = chatBody(model, asked, composer.settings);
  const answer = new Answer();
  lastView?.offer();
  const view = new AnswerView(list, model, answer);
  lastView = view;
  const controller = new AbortController();
  setRunning(controller);
  say("Waiting for the answer.");
  const { follow, end } = follower();
  scrollTo({ top: document.documentElement.scrollHeight });
  try {
    await ask(body, answer, {
      key: key.value,
      signal: controller.signal,
      changed: () => {
        view.update();
        requestAnimationFrame(follow);
      },
    });
    view.finish();
    say(answer.finish === "stopped" ? "Stopped." : "The answer is complete.");
  } catch (problem) {
    view.fail(problem);
    say("");
    if (problem.status === 401) askForKey(() => askAgain(view));
  } finally {
    end();
    if (turns === asked) { // else the person began a new conversation meanwhile
      if (answer.text) turns.push({ role: "assistant", text: answer.text, pictures: [] });
      view.offer(...actions(view, body));
      setRunning(null);
      follow();
    }
  }
}

function askAgain(view) {
  if (running) return;
  if (turns.at(-1)?.role === "assistant") turns.pop();
  view.node.remove();
  answerTurns();
}

function submit() {
  if (running) return;
  if (byId("model").disabled) {
    notify("There is no model to ask yet.");
    return;
  }
  const turn = composer.take();
  if (!turn) {
    composer.focus();
    return;
  }
  notify("");
  if (turns.at(-1)?.role === "user") {
    // Its answer failed, and would fail again as a part of every later request.
    turns.pop();
    lastQuestion.classList.add("left-out");
  }
  turns.push(turn);
  lastQuestion = showQuestion(list, turn);
  composer.focus(); // the button that was pressed gives way to Stop
  answerTurns();
}

function startAfresh() {
  running?.abort();
  turns = [];
  lastView = null;
  list.replaceChildren();
  notify("");
  setRunning(null);
  composer.focus();
}

// --- taking the request elsewhere

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`Copied as ${what}.`);
    return true;
  } catch {
    byId("copy-title").textContent = `Copy as ${what}`;
    byId("copy-text").value = text;
    byId("copy-dialog").showModal();
    byId("copy-text").select();
    return false;
  }
}

function actions(view, body) {
  const copier = (what, make) =>
    element(
      "button",
      {
        type: "button",
        class: "quiet",
        onclick: async ({ target }) => {
          if (!(await copy(make(location.origin, body, Boolean(key.value)), what))) return;
          target.textContent = "Copied";
          setTimeout(() => (target.textContent = `Copy as ${what}`), 1500);
        },
      },
      `Copy as ${what}`,
    );
  return [
    element("button", { type: "button", class: "quiet", onclick: () => askAgain(view) }, "Ask again"),
    copier("curl", asCurl),
    copier("Python", asPython),
  ];
}

// --- wiring

function showSamples() {
  byId("samples").append(
    ...SAMPLES.map((sample) =>
      element(
        "li",
        {},
        element(
          "button",
          {
            type: "button",
            onclick: async () => {
              try {
                composer.useSample(await drawSample(sample), sample.question);
              } catch (error) {
                notify(error.message);
              }
            },
          },
          element("img", { src: sampleAddress(sample), alt: sample.alt, width: 480, height: 360 }),
          element("span", {}, sample.question),
        ),
      ),
    ),
  );
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
composer.question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
byId("stop").addEventListener("click", () => {
  running?.abort();
  composer.focus();
});
byId("fresh").addEventListener("click", startAfresh);
byId("model").addEventListener("change", aboutModel);
byId("key-use").addEventListener("click", useKey);
byId("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  useKey();
});
byId("key-forget").addEventListener("click", () => {
  key.value = "";
  byId("key-forget").hidden = true;
  say("The key is forgotten.");
});
byId("key-forget").hidden = !key.value;

showSamples();
findModels();
composer.focus();
