// Whether Python is behind a view.

/** @import { Model } from "./types" */
import { ask, SILENCE } from "./ask.js";
import { h } from "./dom.js";

const PATIENCE = 8_000; // ms until silence is worth a word
const LONG = 2 ** 31 - 1; // a kernel may be busy for hours, and answer then

/**
 * Says so when Python does not answer. The class vl-saved marks the root of a view that never had
 * a kernel: a saved page; `.vl-needs-kernel` is hidden there.
 * @param {Model} model
 * @param {HTMLElement} root
 * @param {AbortSignal} signal
 */
export function watchKernel(model, root, signal) {
  const words = h("div", { class: "vl-muted vl-no-kernel", role: "note", hidden: true });
  root.append(words);
  const say = (/** @type {string} */ text) => {
    words.textContent = text;
    words.hidden = !text;
  };
  const timer = setTimeout(() => say(`${SILENCE} Nothing new can be computed.`), PATIENCE);
  signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  ask(model, "ping", {}, [], { wait: LONG })
    .then(() => say(""))
    .catch(() => {
      root.classList.add("vl-saved");
      say("A saved view: nothing new can be computed without Python.");
    })
    .finally(() => clearTimeout(timer));
}
