// Whether Python answers; where it does not, what needs it is switched off, and we say so.

/** @import { Model } from "../lib/types" */
import { ask } from "../lib/ask.js";
import { h } from "../lib/dom.js";

const WAIT = 20_000;
const WORDS =
  "Python does not answer: this was saved without a running kernel, or the kernel is busy. What is " +
  "in sight can be looked at, pruned and pinned; new images, targets, ablations and curves need Python.";

/**
 * @param {Model} model
 * @param {HTMLElement} root gets the class vl-x-alone while nobody answers
 * @param {AbortSignal} signal
 */
export function kernelNote(model, root, signal) {
  const element = h("p", { class: "vl-x-kernel", role: "status" });
  element.hidden = true;

  /** @param {boolean} alone */
  function mark(alone) {
    element.textContent = alone ? WORDS : "";
    element.hidden = !alone;
    root.classList.toggle("vl-x-alone", alone);
    for (const control of root.querySelectorAll("[data-needs-python]")) {
      control.toggleAttribute("inert", alone);
    }
  }

  async function look() {
    for (;;) {
      const asked = performance.now();
      try {
        await ask(model, "ping", {}, [], { wait: WAIT });
        if (!signal.aborted) mark(false);
        return;
      } catch {
        if (signal.aborted) return;
        mark(true);
        // At once refused: there is no way to Python at all, and never will be.
        if (performance.now() - asked < WAIT / 2) return;
      }
    }
  }
  look();
  return element;
}
