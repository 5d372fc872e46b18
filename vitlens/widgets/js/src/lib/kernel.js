// Whether a view has a Python kernel.

/** @import { Model } from "./types" */
import { ask, SILENCE } from "./ask.js";
import { h } from "./dom.js";

const DELAY = 8_000; // ms without an answer until the view says so
const LONG = 2 ** 31 - 1; // a kernel may be busy for hours, and then answer

/**
 * Shows a note when Python does not answer. The class vl-saved is on the root of a view that never
 * had a kernel: a saved page; `.vl-needs-kernel` is hidden there.
 * @param {Model} model
 * @param {HTMLElement} root
 * @param {AbortSignal} signal
 */
export function watchKernel(model, root, signal) {
  const note = h("div", { class: "vl-muted vl-no-kernel", role: "note", hidden: true });
  root.append(note);
  const setText = (/** @type {string} */ text) => {
    note.textContent = text;
    note.hidden = !text;
  };
  const timer = setTimeout(() => setText(`${SILENCE} New results cannot be computed.`), DELAY);
  signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  ask(model, "ping", {}, [], { wait: LONG })
    .then(() => setText(""))
    .catch(() => {
      root.classList.add("vl-saved");
      setText("This is a saved view. New results need a running kernel.");
    })
    .finally(() => clearTimeout(timer));
}
