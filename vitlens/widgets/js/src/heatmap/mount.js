// The heatmap: images with values over their patches, side by side on one scale.

/** @import { Model, Patch } from "../lib/types" */
import "./style.css";
import { fill, h, show } from "../lib/dom.js";
import { loadStrip } from "../lib/heat.js";
import { legend } from "../lib/legend.js";
import { floats, listen, same, save } from "../lib/model.js";
import { showError } from "../lib/notice.js";
import { strongest } from "../lib/scale.js";
import { exists, nameOf, step, tokenOf, tokens } from "./cells.js";
import { featureList } from "./features.js";
import { toolbar } from "./toolbar.js";
import { heatView } from "./view.js";

const DRAWN = [
  "values", "n_images", "grid", "prefix_names", "value_name", "signed", "limits", "opacity",
  "colours", "smooth", "show_grid", "grey", "title", "image_titles",
];

/**
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mountHeatmap(model, el, signal) {
  const title = h("div", { class: "vl-title" });
  const images = h("div", { class: "vl-heat-images" });
  const readout = h("div", { class: "vl-heat-readout", "aria-live": "polite" });
  const bar = legend({ limit: 1, signed: false, label: "" });
  const features = featureList(model, signal);
  const foot = h("div", { class: "vl-heat-foot" }, bar.element, readout);
  const figure = h("div", { class: "vl-heat-figure" }, images, foot);
  const main = h("div", { class: "vl-heat-main" }, figure, features.element);
  el.append(toolbar(model, signal), title, main);

  /** @type {ReturnType<typeof heatView>[]} */
  let views = [];
  /** @type {ImageBitmap | null} */
  let strip = null;
  /** @type {Patch | null} */
  let cursor = null;
  let asked = 0; // the image whose patch was chosen last

  const layout = () => ({
    grid: /** @type {[number, number]} */ (model.get("grid")),
    prefix: /** @type {string[]} */ (model.get("prefix_names")),
  });
  const patches = () => /** @type {Patch[]} */ (model.get("patches"));

  /** @param {number} image */
  const makeView = (image) =>
    heatView({
      hover: (cell) => point(cell),
      choose: (cell, add) => choose(image, cell, add),
      key: (event) => onKey(image, event),
    });

  function draw() {
    const n = /** @type {number} */ (model.get("n_images"));
    if (views.length !== n) {
      views = Array.from({ length: n }, (_, i) => makeView(i));
      fill(images, views.map((view) => view.element));
      main.classList.toggle("vl-heat-single", n === 1);
    }
    const all = floats(model, "values");
    const cells = layout();
    const size = tokens(cells);
    const scale = colourScale(model, all);
    const ratio = strip ? strip.height / (strip.width / n) : cells.grid[0] / cells.grid[1];
    title.textContent = model.get("title");
    title.hidden = !title.textContent;
    views.forEach((view, image) => {
      view.draw({
        layout: cells,
        ground: { strip, index: image, count: n, pale: model.get("grey") },
        heat: {
          ...scale,
          values: all.subarray(image * size, (image + 1) * size),
          offset: cells.prefix.length,
          grid: cells.grid,
          smooth: model.get("smooth"),
        },
        title: model.get("image_titles")[image] ?? (n > 1 ? `Image ${image + 1}` : ""),
        lines: model.get("show_grid"),
        ratio,
      });
    });
    bar.update({ ...scale, signed: model.get("signed"), label: model.get("value_name") });
    mark();
  }

  function mark() {
    for (const view of views) view.mark(cursor, patches());
    const all = floats(model, "values");
    const cells = layout();
    const cell = cursor ?? patches().at(-1);
    if (!cell || !all.length || !exists(cells, cell)) {
      const features = model.get("layers")?.length ? "; click it to list its features" : "";
      readout.textContent = `Point at a patch to see its value${features}.`;
      return;
    }
    const at = views.map((_, image) => all[image * tokens(cells) + tokenOf(cells, cell)]);
    readout.textContent = `${nameOf(cells, cell)}: ${at.map(show).join(" · ")}`;
  }

  /** @param {Patch | null} cell */
  function point(cell) {
    if (same(cell, cursor)) return;
    cursor = cell;
    mark();
  }

  /** @param {number} image @param {Patch} cell @param {boolean} add */
  function choose(image, cell, add) {
    asked = image;
    const others = patches().filter((patch) => !same(patch, cell));
    const had = others.length < patches().length;
    if (add) save(model, { patches: had ? others : [...others, cell] });
    else save(model, { patches: had && !others.length ? [] : [cell] });
  }

  /** @param {number} image @param {KeyboardEvent} event */
  function onKey(image, event) {
    const cells = layout();
    const from = cursor ?? patches().at(-1) ?? [0, 0];
    if (event.key === "Enter" || event.key === " ") {
      choose(image, from, event.ctrlKey || event.metaKey || event.shiftKey);
    } else if (event.key === "Escape") {
      cursor = null;
      save(model, { patches: [] });
      mark();
    } else {
      const to = step(cells, from, event.key);
      if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
      point(cursor ? to : from);
    }
    event.preventDefault();
    event.stopPropagation();
  }

  function chosen() {
    const cells = layout();
    const cell = patches().at(-1);
    const image = Math.min(asked, model.get("n_images") - 1);
    mark();
    features.load(
      cell && exists(cells, cell)
        ? { token: tokenOf(cells, cell), image, name: where(image, nameOf(cells, cell)) }
        : null,
    );
  }

  /** @param {number} image @param {string} name */
  const where = (image, name) =>
    views.length > 1 ? `${name} of ${model.get("image_titles")[image] ?? `image ${image + 1}`}` : name;

  async function load() {
    try {
      const view = model.get("image_strip");
      const loaded = await loadStrip(view);
      if (signal.aborted || view !== model.get("image_strip")) return;
      strip = loaded;
    } catch (error) {
      showError(model, `The image cannot be shown: ${error}`);
    }
    draw();
  }

  const sized = new ResizeObserver(draw);
  sized.observe(images);
  signal.addEventListener("abort", () => sized.disconnect(), { once: true });
  listen(model, DRAWN, draw, signal);
  listen(model, ["image_strip"], load, signal);
  listen(model, ["patches", "labels", "layers"], chosen, signal);
  draw();
  load();
  chosen();
}

/** @param {Model} model @param {Float32Array} values */
function colourScale(model, values) {
  const limits = /** @type {[number, number] | null} */ (model.get("limits"));
  const signed = model.get("signed");
  const [low, high] = limits ?? [undefined, strongest(values) || 1];
  const opacity = model.get("opacity");
  if (!signed) return { low, limit: high, opacity, scale: model.get("colours") };
  return { limit: Math.max(Math.abs(low ?? 0), Math.abs(high)), opacity, scale: /** @type {const} */ ("heat") };
}
