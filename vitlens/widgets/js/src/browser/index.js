// The features of one layer: a table to sort, filter, search and navigate by keys.

/** @import { Model, NodeKey } from "../lib/types" */
/** @import { Sort } from "./order.js" */
import { ask } from "../lib/ask.js";
import { counted, h } from "../lib/dom.js";
import { floats, listen, same, save, slowSave } from "../lib/model.js";
import { showError } from "../lib/notice.js";
import { strongest } from "../lib/scale.js";
import { createHead, createRow, fillRow } from "./cells.js";
import { shownColumns } from "./columns.js";
import { order } from "./order.js";
import { createRows } from "./rows.js";
import "./style.css";
import { createTools } from "./tools.js";

const LIST = ["sort", "descending", "query", "active_only", "min_activation", "at_least"];

/**
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mount(model, el, signal) {
  const id = `vl-browser-${Math.random().toString(36).slice(2)}`;
  const tools = createTools(model, setLayer, signal);
  const head = createHead((/** @type {Sort} */ by) => sortBy(by));
  const rows = createRows(() => createRow(shown), draw, signal);
  const grid = h(
    "div",
    { class: "vl-browser-grid", role: "grid", tabindex: 0, "aria-describedby": `${id}-keys` },
    head.element,
    rows.viewport,
  );
  const unreadable = h("p", { class: "vl-unreadable", hidden: true });
  const empty = h("p", { class: "vl-browser-empty vl-muted", hidden: true });
  const keys =
    "Arrow up and down, Page Up, Page Down, Home and End move. Enter selects. Arrow left and right " +
    "change the layer.";
  const root = h(
    "div",
    { class: "vl-browser" },
    tools.element,
    h("p", { id: `${id}-keys`, class: "vl-hint" }, keys),
    unreadable,
    grid,
    empty,
  );
  el.append(root);

  /** @type {import("./columns.js").Column[]} */
  let shown = [];
  /** @type {Map<string, Float32Array>} */
  let columns = new Map();
  /** @type {Map<number, string>} */
  let labels = new Map();
  /** @type {Uint32Array} */
  let features = new Uint32Array(0);
  let named = false; // whether names have a column
  let active = 0; // index of the row that keys act on
  let widest = 1; // largest size of an importance, for the bars

  const info = () => model.get("browser") ?? {};
  const hoverSoon = slowSave(model, 120);

  function readTable() {
    const { columns: names = [], texts = [], chance = {} } = info();
    const table = floats(model, "browser_table");
    const size = table.length / (names.length || 1);
    columns = new Map();
    for (const [i, name] of names.entries()) {
      columns.set(name, table.subarray(i * size, (i + 1) * size));
    }
    widest = strongest(columns.get("importance") ?? []) || 1;
    named = anyNamed(model);
    const next = shownColumns(names, texts.length > 0, named);
    head.columns(next, chance);
    unreadable.textContent = info().unreadable ?? "";
    unreadable.hidden = !unreadable.textContent;
    if (same(next, shown)) return;
    shown = next;
    const tracks = shown.map(({ wide }) => (wide ? `${wide}px` : "minmax(90px, 1fr)"));
    grid.style.setProperty("--vl-columns", tracks.join(" "));
    const least = shown.reduce((sum, { wide }) => sum + (wide || 90) + 8, 8);
    grid.style.setProperty("--vl-least", `${least}px`);
    rows.renew();
  }

  function list() {
    const { layer, n_features = 0 } = info();
    tools.update();
    head.update(model.get("sort"), model.get("descending"));
    labels = labelsOf(model, layer);
    features = order(columns, labels, info().texts ?? [], {
      sort: model.get("sort"),
      descending: model.get("descending"),
      query: model.get("query"),
      activeOnly: model.get("active_only"),
      minActivation: model.get("min_activation"),
      atLeast: model.get("at_least") ?? {},
    });
    active = 0;
    grid.setAttribute("aria-label", `Features of layer ${layer}`);
    grid.setAttribute("aria-rowcount", `${features.length + 1}`);
    rows.show(features.length);
    empty.hidden = features.length > 0 || layer === undefined;
    empty.textContent = "No feature of this layer matches the search and the filters.";
    tools.setStatus(`${features.length.toLocaleString("en")} of ${counted(n_features, "feature")}`);
  }

  /** @param {HTMLElement} row @param {number} index */
  function draw(row, index) {
    const feature = features[index];
    const { layer, positive, texts = [], chance = {} } = info();
    row.id = `${id}-${index}`;
    row.setAttribute("aria-rowindex", `${index + 2}`);
    fillRow(row, shown, {
      feature,
      label: labels.get(feature) ?? "",
      text: texts[feature] ?? "",
      value: (by) => columns.get(by)?.[feature] ?? NaN,
      chance,
      positive,
      widest,
    });
    const selected = same(model.get("selected"), [layer, feature]);
    row.setAttribute("aria-selected", `${selected}`);
    row.classList.toggle("vl-hovered", same(model.get("hovered"), [layer, feature]));
    row.classList.toggle("vl-active", index === active);
    row.dataset.index = `${index}`;
  }

  /** @param {number} index */
  function moveTo(index) {
    active = Math.max(0, Math.min(features.length - 1, index));
    rows.reveal(active);
    rows.refresh();
    if (features.length) grid.setAttribute("aria-activedescendant", `${id}-${active}`);
    else grid.removeAttribute("aria-activedescendant");
  }

  function followSelected() {
    const selected = model.get("selected");
    const index = selected && selected[0] === info().layer ? features.indexOf(selected[1]) : -1;
    if (index >= 0) moveTo(index);
    else rows.refresh();
  }

  /** @param {number} index */
  function choose(index) {
    if (index >= features.length) return;
    /** @type {NodeKey} */
    const node = [info().layer, features[index]];
    moveTo(index);
    save(model, { selected: node });
  }

  /** @param {Sort} by */
  function sortBy(by) {
    const reverse = model.get("sort") === by;
    const first = by !== "feature" && by !== "label"; // numbers start descending, names ascending
    save(model, { sort: by, descending: reverse ? !model.get("descending") : first });
  }

  /** @param {number} layer */
  function setLayer(layer) {
    const { layers, layer: listed } = info();
    if (!layers?.includes(layer) || layer === model.get("layer")) return;
    save(model, { layer });
    // Python fills the table; without a kernel the listed layer stays.
    ask(model, "ping").catch((error) => {
      save(model, { layer: listed });
      showError(model, error);
    });
  }

  /** @param {KeyboardEvent} event */
  function onKey(event) {
    const ours = event.target === grid || event.target === rows.viewport;
    if (!ours || event.ctrlKey || event.metaKey || event.altKey) return;
    /** @type {Record<string, () => void>} */
    const actions = {
      ArrowDown: () => moveTo(active + 1),
      ArrowUp: () => moveTo(active - 1),
      PageDown: () => moveTo(active + rows.page()),
      PageUp: () => moveTo(active - rows.page()),
      Home: () => moveTo(0),
      End: () => moveTo(features.length - 1),
      Enter: () => choose(active),
      " ": () => choose(active),
      ArrowLeft: () => setLayer(tools.neighbour(-1)),
      ArrowRight: () => setLayer(tools.neighbour(1)),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  /** @param {Event} event */
  function rowOf(event) {
    const row = /** @type {Element} */ (event.target).closest?.(".vl-browser-row");
    return row instanceof HTMLElement ? Number(row.dataset.index) : -1;
  }

  /** @param {number} index */
  function hover(index) {
    const node = index >= 0 && index < features.length ? [info().layer, features[index]] : null;
    if (!same(node, model.get("hovered"))) hoverSoon({ hovered: node });
  }

  grid.addEventListener("keydown", onKey, { signal });
  rows.viewport.addEventListener(
    "click",
    (event) => {
      const index = rowOf(event);
      if (index < 0) return;
      grid.focus({ preventScroll: true });
      choose(index);
    },
    { signal },
  );
  rows.viewport.addEventListener("pointerover", (event) => hover(rowOf(event)), { signal });
  rows.viewport.addEventListener("pointerleave", () => hover(-1), { signal });

  rows.viewport.addEventListener(
    "scroll",
    () => (head.row.scrollLeft = rows.viewport.scrollLeft),
    { signal, passive: true },
  );
  // A header that receives the focus may scroll.
  head.row.addEventListener(
    "scroll",
    () => (rows.viewport.scrollLeft = head.row.scrollLeft),
    { signal, passive: true },
  );

  listen(
    model,
    ["browser", "browser_table", "labels", ...LIST],
    (changed) => {
      const others = changed.has("browser_table") || changed.has("browser");
      if (others || named !== anyNamed(model)) readTable();
      const onlyNames = changed.size === 1 && changed.has("labels");
      if (onlyNames && model.get("sort") !== "label" && !model.get("query").trim()) {
        labels = labelsOf(model, info().layer);
        head.update(model.get("sort"), model.get("descending"));
        rows.refresh(); // the scroll position stays
        return;
      }
      list();
      // A new order starts at its top; a new layer at the selected feature.
      if (others) followSelected();
    },
    signal,
  );
  listen(model, ["selected"], followSelected, signal);
  listen(model, ["hovered"], rows.refresh, signal);
  listen(model, ["layer"], tools.update, signal);
  signal.addEventListener("abort", () => root.remove(), { once: true });
  readTable();
  list();
  followSelected();
}

/** Whether any feature has a name. @param {Model} model */
const anyNamed = (model) =>
  (model.get("labels") ?? []).some((/** @type {[number, number, string]} */ [, f]) => f >= 0);

/** @param {Model} model @param {number} layer @returns {Map<number, string>} */
function labelsOf(model, layer) {
  /** @type {[number, number, string][]} */
  const all = model.get("labels") ?? [];
  return new Map(all.filter(([l]) => l === layer).map(([, feature, text]) => [feature, text]));
}
