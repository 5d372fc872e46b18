// Curves on demand: each method takes some seconds.

/** @import { Model } from "../lib/types" */
import { mount as mountCurves } from "../curves/index.js";
import { ask } from "../lib/ask.js";
import { field, h } from "../lib/dom.js";
import { listen } from "../lib/model.js";
import { showError } from "../lib/notice.js";

const HINT =
  "How much of the output do the top features carry? Each method takes a few seconds. " +
  "A single image has no intervals.";

/**
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mountMeasured(model, el, signal) {
  const cla = h("input", { type: "checkbox" });
  const button = h(
    "button",
    {
      type: "button",
      class: "vl-button",
      onclick: () =>
        ask(model, "compute_curves", { cla: cla.checked }).catch((error) => showError(model, error)),
    },
  );
  const hint = h("span", { class: "vl-muted" }, HINT);
  const update = () => {
    const measured = Boolean(model.get("curves")?.methods);
    hint.hidden = measured;
    button.textContent = measured ? "Measure again" : "Measure on this image";
  };
  listen(model, ["curves"], update, signal);
  update();
  const plot = h("div");
  el.append(
    h(
      "div",
      { class: "vl-toolbar vl-x-measure vl-needs-kernel" },
      button,
      field("with CLA (slower)", cla),
      hint,
    ),
    plot,
  );
  mountCurves(model, plot, signal);
}
