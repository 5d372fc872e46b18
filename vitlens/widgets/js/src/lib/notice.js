// Words for the user, and what is being computed.

/** @import { Model } from "./types" */
import { ask } from "./ask.js";
import { fill, h } from "./dom.js";
import { listen, save } from "./model.js";

/**
 * A banner for `notice` and a bar for `progress`; both take no room while empty.
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mountNotice(model, el, signal) {
  const banner = h("div", { class: "vl-notice" });
  const progress = h("div", { class: "vl-progress" });
  // What is said of changes is heard only where the region was there before.
  el.append(h("div", { role: "status", "aria-live": "polite" }, banner), progress);

  const drawBanner = () => {
    const words = model.get("notice");
    banner.hidden = !words;
    if (!words) return fill(banner);
    fill(
      banner,
      h("span", {}, words),
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
      onclick: () => ask(model, "cancel").catch((error) => tell(model, error)),
    },
    "Cancel",
  );
  const drawProgress = () => {
    const { done, what: words } = model.get("progress") ?? {};
    progress.hidden = done == null;
    if (done == null) return fill(progress);
    bar.value = done;
    what.textContent = words ?? "";
    bar.setAttribute("aria-label", words ?? "Progress");
    // The same elements stay, or a click on Cancel would miss the button.
    if (!cancel.isConnected || cancel.parentElement !== progress) fill(progress, what, bar, cancel);
  };

  listen(model, ["notice"], drawBanner, signal);
  listen(model, ["progress"], drawProgress, signal);
  drawBanner();
  drawProgress();
}

/**
 * Shows words, such as the reason why a question had no answer.
 * @param {Model} model
 * @param {unknown} error
 */
export function tell(model, error) {
  save(model, { notice: error instanceof Error ? error.message : String(error) });
}
