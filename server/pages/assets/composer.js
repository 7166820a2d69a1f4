// The lower part of the playground: the pictures to send, the question and the settings.

import { element } from "./dom.js";
import { MOST_PICTURES, filesIn, readPicture } from "./pictures.js";

const SETTINGS = ["temperature", "max_tokens", "top_p", "seed"];
const byId = (id) => document.getElementById(id);

export class Composer {
  constructor({ onError }) {
    this.pictures = [];
    this.sampled = false; // the tray holds a sample that the next sample replaces
    this.onError = onError;
    this.tray = byId("tray");
    this.question = byId("question");
    this.question.addEventListener("input", () => this.fit());
    byId("files").addEventListener("change", async (event) => {
      await this.add([...event.target.files]);
      event.target.value = ""; // so that the same file can be chosen again
    });
    byId("settings-toggle").addEventListener("click", () => this.toggleSettings());
    this.#listenForDrops();
    document.addEventListener("paste", (event) => {
      const files = filesIn(event.clipboardData);
      if (!files.length) return;
      event.preventDefault();
      this.add(files);
    });
  }

  #listenForDrops() {
    let depth = 0; // dragenter and dragleave come for every element under the pointer
    const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
    const mark = () => document.body.classList.toggle("dropping", depth > 0);
    addEventListener("dragenter", (event) => {
      if (!carriesFiles(event)) return;
      depth += 1;
      mark();
    });
    addEventListener("dragleave", () => {
      depth = Math.max(0, depth - 1);
      mark();
    });
    addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      depth = 0;
      mark();
      const files = filesIn(event.dataTransfer);
      if (files.length) this.add(files);
      else this.onError("That is no picture.");
    });
  }

  async add(files) {
    if (this.sampled) this.clearPictures();
    for (const file of files) {
      if (this.pictures.length >= MOST_PICTURES) {
        this.onError(`At most ${MOST_PICTURES} pictures go with one question.`);
        break;
      }
      try {
        this.pictures.push(await readPicture(file, file.name || "Pasted picture"));
      } catch (error) {
        this.onError(error.message);
      }
      this.#showTray();
    }
    this.focus();
  }

  useSample(picture, question) {
    this.pictures = [picture];
    this.sampled = true;
    this.#showTray();
    this.question.value = question;
    this.fit();
    this.focus();
  }

  clearPictures() {
    this.pictures = [];
    this.sampled = false;
    this.#showTray();
  }

  remove(picture) {
    this.pictures = this.pictures.filter((other) => other !== picture);
    this.sampled = false;
    this.#showTray();
    this.focus();
  }

  #showTray() {
    this.tray.hidden = !this.pictures.length;
    this.tray.replaceChildren(
      ...this.pictures.map((picture) =>
        element(
          "li",
          {},
          element("img", { src: picture.url, alt: picture.name }),
          element(
            "p",
            {},
            element("span", { class: "name" }, picture.name),
            element("span", { class: "size" }, `${picture.width} × ${picture.height}`),
            picture.note ? element("span", { class: "note" }, picture.note) : null,
          ),
          element(
            "button",
            { type: "button", class: "remove", "aria-label": `Remove ${picture.name}`, onclick: () => this.remove(picture) },
            "×",
          ),
        ),
      ),
    );
  }

  /** Where a keyboard is at hand; on a phone the focus would cover half the page with one. */
  focus() {
    if (matchMedia("(pointer: fine)").matches) this.question.focus();
  }

  /** The field grows with the question, up to the limit that the style sheet sets. */
  fit() {
    this.question.style.height = "auto";
    this.question.style.height = `${this.question.scrollHeight}px`;
  }

  toggleSettings() {
    const toggle = byId("settings-toggle");
    const open = toggle.getAttribute("aria-expanded") !== "true";
    toggle.setAttribute("aria-expanded", String(open));
    byId("settings").hidden = !open;
    if (open) byId("temperature").focus();
  }

  /** Only what the person set: everything else is left to the server. */
  get settings() {
    return Object.fromEntries(
      SETTINGS.map((name) => [name, byId(name)])
        .filter(([, field]) => field.value !== "")
        .map(([name, field]) => [name, field.valueAsNumber]),
    );
  }

  /** What is to be sent, taken out of the composer; null when there is nothing. */
  take() {
    const text = this.question.value.trim();
    if (!text) return null;
    const turn = { role: "user", text, pictures: this.pictures };
    this.question.value = "";
    this.fit();
    this.clearPictures();
    return turn;
  }
}
