// Accuracy of every group: a bar with its interval, and a line for the unchanged model.

/** @import { Model } from "../lib/types" */
import { counted, fill, h } from "../lib/dom.js";
import { accuracy, points } from "./request.js";

/**
 * @typedef {object} Row
 * @property {string} name
 * @property {number} right
 * @property {number} count
 * @property {number | null} accuracy
 * @property {number | null} low
 * @property {number | null} high
 * @property {Row} before
 * @property {number | null} change
 */

const KEY = [
  ["vl-debias-now", "now"],
  ["vl-debias-now vl-debias-low", "now, the worst group"],
  ["vl-debias-was", "before"],
  ["vl-debias-range", "95% interval"],
];

/** @param {Model} model */
export function groupTable(model) {
  const caption = h("caption", { class: "vl-hint" });
  const body = h("tbody");
  const table = h(
    "table",
    { class: "vl-debias-groups" },
    caption,
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "group"),
        h("td"),
        h("th", { scope: "col" }, "accuracy"),
        h("th", { scope: "col", class: "vl-debias-wide" }, "95% interval"),
        h("th", { scope: "col" }, "change"),
        h("th", { scope: "col" }, "images"),
      ),
    ),
    body,
  );
  const key = h(
    "div",
    { class: "vl-debias-key", "aria-hidden": "true" },
    KEY.map(([name, text]) => h("span", {}, h("i", { class: name }), text)),
  );
  const note = h("p", { class: "vl-muted vl-debias-note" });
  return {
    element: h("div", {}, table, key, note),
    update() {
      const interim = model.get("interim") ?? {};
      const report = interim.groups ? interim : model.get("report");
      const about = model.get("debias") ?? {};
      if (!report?.groups) return fill(body);
      const isInterim = report === interim;
      table.classList.toggle("vl-debias-interim", isInterim);
      caption.textContent = `Accuracy by group, ${about.n_images} ${about.name}`;
      note.textContent = isInterim
        ? `So far, on ${report.n_images} of ${counted(about.n_images, "image")}.`
        : "Wilson intervals, for independent images.";
      fill(body, row(report.average, report, isInterim), report.groups.map((/** @type {Row} */ x) => row(x, report, isInterim)));
    },
  };
}

/** @param {Row} item @param {any} report @param {boolean} isInterim */
function row(item, report, isInterim) {
  const low = report.worst.accuracy;
  // With equal accuracies, no group is the worst.
  const differ = report.groups.some((/** @type {Row} */ x) => x.accuracy != null && x.accuracy > low);
  const isWorst = differ && item !== report.average && item.accuracy === low;
  const kind = item === report.average ? "vl-debias-average" : isWorst ? "vl-debias-worst" : "";
  return h(
    "tr",
    { class: kind },
    h("th", { scope: "row" }, item.name, isWorst && h("span", { class: "vl-debias-tag" }, "worst")),
    h("td", { class: "vl-debias-cell", "aria-hidden": "true" }, bar(item, isWorst)),
    h("td", { class: "vl-debias-number" }, accuracy(item.accuracy)),
    h(
      "td",
      { class: "vl-debias-number vl-muted vl-debias-wide" },
      item.low == null || item.high == null
        ? "–"
        : `${(100 * item.low).toFixed(0)}–${(100 * item.high).toFixed(0)}%`,
    ),
    h("td", { class: "vl-debias-number" }, change(isInterim ? null : item.change)),
    h(
      "td",
      { class: "vl-debias-number vl-muted", title: `${item.right} of ${item.count} correct` },
      `${item.count}`,
    ),
  );
}

/** @param {number | null} x */
function change(x) {
  if (x == null) return "…";
  const kind = x > 0 ? "vl-debias-gain" : x < 0 ? "vl-debias-loss" : "vl-muted";
  return h("span", { class: kind }, points(x), x < 0 && h("span", { class: "vl-hint" }, " lost"));
}

/** @param {Row} item @param {boolean} isWorst */
function bar({ accuracy: now, low, high, before }, isWorst) {
  const at = (/** @type {number} */ x) => `${100 * x}%`;
  return h(
    "div",
    { class: "vl-debias-track" },
    now != null && h("i", { class: `vl-debias-now${isWorst ? " vl-debias-low" : ""}`, style: { width: at(now) } }),
    low != null && high != null &&
      h("i", { class: "vl-debias-range", style: { left: at(low), width: at(high - low) } }),
    before.accuracy != null && h("i", { class: "vl-debias-was", style: { left: at(before.accuracy) } }),
  );
}
