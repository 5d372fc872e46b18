// A small form for the name of a node or a supernode.

import { h } from "../lib/dom.js";

/**
 * @param {HTMLElement} stage
 */
export function createNaming(stage) {
  /** @type {(() => void) | null} */
  let close = null;

  /**
   * @param {{ label: string, value: string, near: HTMLElement | undefined, done: (name: string | null) => void }} request
   * `done` receives null when the form is left
   */
  function ask({ label, value, near, done }) {
    close?.();
    const input = h("input", { class: "vl-input", value, maxlength: 60, "aria-label": label });
    const form = h(
      "form",
      { class: "vl-naming", "data-keep-keys": "true" },
      h("span", {}, label),
      input,
      h("button", { class: "vl-button", type: "submit" }, "OK"),
    );
    let ended = false; // removing the form removes its focus, which ends it too
    /** @param {string | null} name */
    const end = (name) => {
      if (ended) return;
      ended = true;
      close = null;
      form.remove();
      done(name);
    };
    close = () => end(null);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      end(input.value.trim());
    });
    form.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") end(null);
    });
    form.addEventListener("pointerdown", (event) => event.stopPropagation());
    form.addEventListener("focusout", (event) => {
      if (!form.contains(/** @type {Node | null} */ (event.relatedTarget))) end(null);
    });
    stage.append(form);
    const box = stage.getBoundingClientRect();
    const from = near?.getBoundingClientRect();
    const x = from ? from.left - box.left : 20;
    const y = from ? from.bottom - box.top + 4 : 20;
    form.style.left = `${Math.max(4, Math.min(x, box.width - form.offsetWidth - 4))}px`;
    form.style.top = `${Math.max(4, Math.min(y, box.height - form.offsetHeight - 4))}px`;
    input.focus();
    input.select();
  }

  return { ask };
}
