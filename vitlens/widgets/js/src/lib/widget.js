// Turns a mount function into a module of anywidget.

/** @import { Model, Mount } from "./types" */
import "./style.css";
import { h } from "./dom.js";
import { watchKernel } from "./kernel.js";
import { mountNotice } from "./notice.js";
import { themed } from "./theme.js";

/**
 * @param {Mount} mount builds the component
 * @param {string} name for the root's class, `vl-<name>`
 */
export function widget(mount, name) {
  /** @param {{ model: Model, el: HTMLElement }} context */
  function render({ model, el }) {
    const ending = new AbortController();
    const root = h("div", { class: `vl-root vl-${name}` });
    el.append(root);
    themed(root, ending.signal);
    mountNotice(model, root, ending.signal);
    mount(model, root, ending.signal);
    watchKernel(model, root, ending.signal);
    return () => {
      ending.abort();
      root.remove();
    };
  }
  return { render };
}
