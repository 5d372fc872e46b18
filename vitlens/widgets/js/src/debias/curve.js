// Accuracies by number of features, with the choice as a point.

/** @import { Model, NodeKey } from "../lib/types" */
import { ask } from "../lib/ask.js";
import { fill, h, s } from "../lib/dom.js";
import { same } from "../lib/model.js";
import { showError } from "../lib/notice.js";
import { accuracy, chosen, features, request, verb } from "./request.js";

const HEIGHT = 210;
const MARGIN = { left: 44, right: 16, top: 12, bottom: 42 };
const DIAMOND = "M0,-7L7,0L0,7L-7,0Z";
const SQUARE = "M-3.5,-3.5H3.5V3.5H-3.5Z";
const DISC = "M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0Z";
const LINES = /** @type {const} */ ([
  ["average", "average", DISC, "5 4"],
  ["worst", "worst group", SQUARE, ""],
]);

/** @param {Model} model @param {AbortSignal} signal */
export function curvePlot(model, signal) {
  const svg = s("svg", { class: "vl-debias-plot", role: "img" });
  const slider = h("input", { type: "range", min: 0, step: 1 });
  const readout = h("output", { class: "vl-debias-readout" });
  const step = h("label", { class: "vl-field vl-needs-kernel" }, h("span", {}, "the first"), slider, readout);
  const measure = h("button", {
    class: "vl-button",
    onclick: () => ask(model, "measure").catch((error) => showError(model, error)),
  });
  const text = h("p", { class: "vl-muted vl-debias-note" });
  const key = h(
    "div",
    { class: "vl-debias-key", "aria-hidden": "true" },
    LINES.map(([name, text, marker, dash]) =>
      h(
        "span",
        {},
        s(
          "svg",
          { width: 26, height: 12, viewBox: "-13 -6 26 12", class: `vl-debias-${name}-line` },
          s("line", { x1: -13, x2: 13, y1: 0, y2: 0, "stroke-dasharray": dash }),
          s("path", { d: marker }),
        ),
        text,
      ),
    ),
    h(
      "span",
      {},
      s("svg", { width: 18, height: 16, viewBox: "-9 -8 18 16", class: "vl-debias-point" }, s("path", { d: DIAMOND })),
      "the choice",
    ),
  );
  const element = h("div", { class: "vl-debias-curve" }, svg, key, step, text, h("div", { class: "vl-needs-kernel" }, measure));
  slider.addEventListener("input", () => preview(Number(slider.value)), { signal });
  slider.addEventListener("change", () => {
    request(model, model.get("trade_off").order.slice(0, Number(slider.value)));
  }, { signal });
  const watch = new ResizeObserver(() => draw());
  watch.observe(element);
  signal.addEventListener("abort", () => watch.disconnect(), { once: true });

  /** Shows the values of the curve for the first n features.
   * @param {number} n
   */
  function preview(n) {
    const { n: steps = [], worst, average } = model.get("trade_off");
    const i = steps.indexOf(n);
    const figures = i < 0 ? "" : `: worst ${accuracy(worst[i])}, average ${accuracy(average[i])}`;
    readout.textContent = `${features(n)}${figures}`;
    slider.setAttribute("aria-valuetext", readout.textContent);
  }

  function draw() {
    const curve = model.get("trade_off") ?? {};
    const report = model.get("report") ?? {};
    const known = Boolean(curve.n?.length);
    const width = Math.max(240, element.clientWidth || 420);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("width", `${width}`);
    svg.setAttribute("height", `${HEIGHT}`);
    step.hidden = !known;
    measure.textContent = known ? "Measure every step" : "Measure the curve along the cards";
    measure.hidden = known && curve.n.length > curve.order.length;
    text.textContent = known
      ? `${curve.source}; other choices are not on the lines.`
      : `Not measured yet: accuracies with the first, the first two, … candidates ${verb(model).done}.`;
    const n = report.chosen?.length ?? 0;
    const most = Math.max(n, 1, ...(curve.n ?? []));
    const plotWidth = width - MARGIN.left - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    const low = lowest(curve, report);
    const x = (/** @type {number} */ k) => MARGIN.left + (plotWidth * k) / most;
    const y = (/** @type {number} */ a) => bottom - ((bottom - MARGIN.top) * (a - low)) / (1 - low);
    fill(
      svg,
      axes(x, y, low, most, width, bottom),
      known && LINES.map(([name, , marker, dash]) => line(curve, name, marker, dash, x, y)),
      report.groups &&
        LINES.map(([name]) =>
          s("path", {
            class: `vl-debias-point vl-debias-${name}-line`,
            d: DIAMOND,
            transform: `translate(${x(n)} ${y(report[name].accuracy)})`,
          }),
        ),
    );
    svg.setAttribute("aria-label", description(curve, report));
    if (!known) return;
    const path = /** @type {NodeKey[]} */ (curve.order);
    slider.max = String(path.length);
    const now = chosen(model);
    const isPrefix = same(now, path.slice(0, now.length));
    slider.value = String(Math.min(now.length, path.length));
    preview(Number(slider.value));
    if (!isPrefix) readout.textContent = `another choice of ${features(now.length)}`;
  }

  return { element, update: draw };
}

/** The lower end of the axis: a multiple of 20 %. @param {any} curve @param {any} report */
function lowest({ worst = [] }, report) {
  const all = [...worst, report.worst?.accuracy ?? 1, report.worst_before?.before.accuracy ?? 1];
  return Math.max(0, Math.min(0.8, Math.floor(5 * Math.min(...all) - 0.25) / 5));
}

/**
 * @param {(k: number) => number} x @param {(a: number) => number} y @param {number} low
 * @param {number} most @param {number} width @param {number} bottom
 */
function axes(x, y, low, most, width, bottom) {
  const parts = [];
  const rise = low < 0.45 ? 0.2 : 0.1;
  for (let a = low; a <= 1.001; a += rise) {
    parts.push(
      s("line", { class: "vl-debias-grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(a), y2: y(a) }),
      text(`${Math.round(100 * a)}%`, MARGIN.left - 6, y(a) + 4, "end"),
    );
  }
  const stride = [1, 2, 5, 10, 20, 50, 100].find((k) => most / k <= 10) ?? 200;
  for (let k = 0; k <= most; k += stride) parts.push(text(`${k}`, x(k), bottom + 20, "middle"));
  parts.push(text("features removed", (MARGIN.left + width - MARGIN.right) / 2, bottom + 37, "middle"));
  return parts;
}

/**
 * @param {any} curve @param {"average" | "worst"} name @param {string} marker @param {string} dash
 * @param {(k: number) => number} x @param {(a: number) => number} y
 */
function line(curve, name, marker, dash, x, y) {
  const points = curve.n.map((/** @type {number} */ k, /** @type {number} */ i) => [x(k), y(curve[name][i])]);
  return s(
    "g",
    { class: `vl-debias-${name}-line` },
    s("path", {
      class: "vl-debias-stroke",
      "stroke-dasharray": dash,
      d: `M${points.map((/** @type {number[]} */ p) => p.join(",")).join("L")}`,
    }),
    points.map((/** @type {number[]} */ [px, py], /** @type {number} */ i) =>
      s(
        "path",
        { d: marker, transform: `translate(${px} ${py})` },
        s("title", {}, `${features(curve.n[i])}: ${name} ${accuracy(curve[name][i])}`),
      ),
    ),
  );
}

/** @param {any} curve @param {any} report */
function description(curve, report) {
  const now = report.groups
    ? `The choice: ${features(report.chosen.length)}, worst group ${accuracy(report.worst.accuracy)}, average ${accuracy(report.average.accuracy)}.`
    : "";
  if (!curve.n?.length) return `Accuracy by number of features. ${now}`;
  const best = curve.worst.indexOf(Math.max(...curve.worst));
  return (
    `Accuracy by number of removed features: worst group from ${accuracy(curve.worst[0])} without any ` +
    `to at best ${accuracy(curve.worst[best])} with ${curve.n[best]}; average from ` +
    `${accuracy(curve.average[0])} to ${accuracy(curve.average[best])} there. ${now}`
  );
}

/**
 * @param {string} text @param {number} x @param {number} y @param {"middle" | "end"} anchor
 */
function text(text, x, y, anchor) {
  const element = s("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}
