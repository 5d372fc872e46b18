// Messages for the user, and the progress of computations.

/** @import { Model } from "./types" */
import { ask } from "./ask.js";
import { fill, h } from "./dom.js";
import { listen, save } from "./model.js";

/**
 * A banner for `notice` and a bar for `progress`; both take no space while empty.
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mountNotice(model, el, signal) {
  const banner = h("div", { class: "vl-notice" });
  const progress = h("div", { class: "vl-progress" });
  // Screen readers announce changes only in a region that existed before.
  el.append(h("div", { role: "status", "aria-live": "polite" }, banner), progress);

  const drawBanner = () => {
    const text = model.get("notice");
    banner.hidden = !text;
    if (!text) return fill(banner);
    fill(
      banner,
      h("span", {}, text),
      h(
        "button",
        { class: "vl-button vl-quiet", "aria-label": "Dismiss", onclick: () => save(model, { notice: "" }) },
        "×",
      ),
    );
  };

  const bar = h("progress", { class: "vl-progress-bar", max: 1 });
  const what = h("span", { class: "vl-progress-what" });
  const cancel = h(
    "button",
    {
      class: "vl-button",
      onclick: () => ask(model, "cancel").catch((error) => showError(model, error)),
    },
    "Cancel",
  );
  const drawProgress = () => {
    const { done, what: text } = model.get("progress") ?? {};
    progress.hidden = done == null;
    if (done == null) return fill(progress);
    bar.value = done;
    what.textContent = text ?? "";
    bar.setAttribute("aria-label", text ?? "Progress");
    // The elements are kept: a click on Cancel must not miss the button.
    if (!cancel.isConnected || cancel.parentElement !== progress) fill(progress, what, bar, cancel);
  };

  listen(model, ["notice"], drawBanner, signal);
  listen(model, ["progress"], drawProgress, signal);
  drawBanner();
  drawProgress();
}

/**
 * Shows a message, such as the reason why a request failed.
 * @param {Model} model
 * @param {unknown} error
 */
export function showError(model, error) {
  save(model, { notice: error instanceof Error ? error.message : String(error) });
}
