import "./lib/style.css";
import { mount } from "./explorer/index.js";
import { h } from "./lib/dom.js";
import { themed } from "./lib/theme.js";

/** @param {{ model: import("./lib/types").Model, el: HTMLElement }} context */
function render({ model, el }) {
  const ending = new AbortController();
  const root = h("div", { class: "vl-root vl-explorer" });
  el.append(root);
  themed(root, ending.signal);
  mount(model, root, ending.signal);
  return () => {
    ending.abort();
    root.remove();
  };
}

export default { render };
