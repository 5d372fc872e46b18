// Nodes that are switched off or set to a value, and the effect on the output.

/** @import { Model, Mount, NodeKey } from "../lib/types" */
import { h, isolated, percent, show } from "../lib/dom.js";
import { listen, same } from "../lib/model.js";
import { bars } from "./bars.js";
import { history } from "./history.js";
import { lines, nameOf } from "./lines.js";
import "./style.css";
import { ablations, request, toggle } from "./request.js";

const SHOWN = ["ablations", "outcome", "history", "selected", "labels", "graph_info", "can_ablate"];

/** @type {Mount} */
export function mount(model, el, signal) {
  const off = h(
    "button",
    {
      class: "vl-button",
      onclick: () => {
        const node = model.get("selected");
        if (canAblate(model, node)) toggle(model, [node]);
      },
    },
    "Switch off",
  );
  const reset = h("button", { class: "vl-button", onclick: () => request(model, []) }, "Reset");
  const cancel = h(
    "button",
    {
      class: "vl-button",
      // The latest request wins: the computation of the previous one is cancelled.
      onclick: () => request(model, model.get("outcome")?.ablations ?? []),
    },
    "Cancel",
  );
  const state = h("span", { class: "vl-muted", role: "status", "aria-live": "polite" });
  const empty = h(
    "p",
    { class: "vl-muted vl-ablation-empty" },
    "Select a node and switch it off (x) to see the effect on the output.",
  );
  const list = lines(model);
  const result = bars();
  const past = history(model);
  const root = h(
    "section",
    { class: "vl-ablation", "aria-label": "Ablations" },
    h("div", { class: "vl-toolbar" }, h("h3", { class: "vl-title" }, "Ablation"), off, reset, cancel, state),
    empty,
    list.element,
    result.element,
    past.element,
  );
  // JupyterLab would intercept Enter in a field, which then never reports its new value.
  root.addEventListener("keydown", (event) => event.stopPropagation(), { signal });
  el.append(root);

  function draw() {
    root.hidden = !model.get("can_ablate");
    if (root.hidden) return;
    const wanted = ablations(model);
    const outcome = model.get("outcome") ?? {};
    const selected = model.get("selected");
    const isAblated = wanted.some(([l, f]) => same([l, f], selected));
    const pending = wanted.length > 0 && !same(outcome.ablations, wanted);
    off.disabled = !canAblate(model, selected);
    off.textContent = canAblate(model, selected)
      ? `${isAblated ? "Restore" : "Switch off"} ${nameOf(model, selected)}`
      : "Switch off";
    reset.disabled = !wanted.length;
    cancel.hidden = !pending;
    empty.hidden = wanted.length > 0;
    state.textContent = pending ? "computing…" : describe(outcome);
    root.classList.toggle("vl-pending", pending);
    list.update(wanted);
    result.update(wanted.length ? outcome : {});
    past.update();
  }

  listen(model, SHOWN, draw, signal);
  draw();
}

/** Whether a node can be switched off: all but the target.
 * @param {Model} model @param {NodeKey | null} node
 */
const canAblate = (model, node) => Boolean(model.get("can_ablate") && node && node[1] >= -1);

/** The change in one sentence. @param {any} outcome */
function describe({ before, after, classes, target }) {
  if (!after) return "";
  const best = (/** @type {number[]} */ values) => values.indexOf(Math.max(...values));
  const [was, is] = [best(before.probabilities), best(after.probabilities)];
  const text =
    was === is
      ? `still ${isolated(classes[is])}, ${percent(before.probabilities[is])} → ${percent(after.probabilities[is])}`
      : `${isolated(classes[was])} → ${isolated(classes[is])} (${percent(after.probabilities[is])})`;
  return target == null ? text : `${text}; target ${show(target)}`;
}
