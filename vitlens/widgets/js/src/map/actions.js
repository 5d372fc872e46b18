// The actions of pointer, keys and buttons: point, select, choose, move.

/** @import { FeatureMap } from "./map.js" */
import { same, save, slowSave } from "../lib/model.js";
import { keyOf, pointOf } from "./data.js";
import { inside, towards, within } from "./regions.js";

const REACH = 12; // maximum CSS pixels from the pointer to a point
const CIRCLE = 40; // CSS pixels: the first radius of the keyboard's circle

/** @param {FeatureMap} map */
export function createActions(map) {
  const { model, stage, tools } = map;
  const hoverSoon = slowSave(model, 120);
  let lassoing = false;

  /** @param {string} text */
  const announce = (text) => (map.live.textContent = text);

  /** @param {number} x @param {number} y in CSS pixels */
  function near(x, y) {
    const { grid, view } = map;
    if (!grid) return -1;
    const { scale } = view;
    return grid.nearest((x - view.x) / scale, (y - view.y) / scale, REACH / scale, map.shown);
  }

  /** @param {number} point */
  function point(point) {
    if (!map.data) return;
    const key = point < 0 ? null : keyOf(map.data, point);
    if (same(key, model.get("hovered") ?? null)) return;
    hoverSoon({ hovered: key });
    map.plan("over");
  }

  /** @param {number} x @param {number} y @param {MouseEvent} event */
  function click(x, y, event) {
    const point = near(x, y);
    stage.focus({ preventScroll: true });
    if (point < 0) return;
    map.cursor = point;
    if (event.ctrlKey || event.metaKey || event.shiftKey) toggle(point);
    else select(point);
  }

  /** @param {number} point */
  function select(point) {
    if (point < 0 || !map.data) return;
    save(model, { selected: keyOf(map.data, point) });
    announce(`Selected ${map.textOf(point)}`);
  }

  /** Adds a point to the choice, or removes it. @param {number} point */
  function toggle(point) {
    if (point < 0 || !map.data) return;
    const key = keyOf(map.data, point);
    const chosen = model.get("chosen") ?? [];
    const rest = chosen.filter((/** @type {unknown} */ other) => !same(other, key));
    const added = rest.length === chosen.length;
    save(model, { chosen: added ? [...rest, key] : rest });
    announce(`${added ? "Chosen" : "Removed"}: ${map.textOf(point)}`);
  }

  /** @param {number[]} found points @param {boolean} add to the previous choice */
  function choose(found, add) {
    const { data, isChosen } = map;
    if (!data) return;
    const points = new Set(found);
    if (add && isChosen) isChosen.forEach((on, point) => on && points.add(point));
    const keys = [...points].sort((a, b) => a - b).map((point) => keyOf(data, point));
    save(model, { chosen: keys });
    announce(`${keys.length} chosen`);
  }

  function chooseAll() {
    const all = [];
    for (let i = 0; i < map.shown.length; i++) if (map.shown[i]) all.push(i);
    choose(all, false);
  }

  /** @param {number[]} line in CSS pixels */
  function drawLasso(line) {
    map.lasso = line;
    map.plan("over");
  }

  /** @param {number[]} line in CSS pixels @param {boolean} add */
  function closeLasso(line, add) {
    drawLasso([]);
    if (!map.data || line.length < 6) return;
    const { view } = map;
    const corners = line.map((v, i) => (v - (i % 2 ? view.y : view.x)) / view.scale);
    choose(inside(map.data, map.shown, corners), add);
  }

  /** @param {boolean} add */
  function closeCircle(add) {
    const { data, cursor } = map;
    if (!data || cursor < 0) return;
    const radius = map.circle / map.view.scale;
    map.circle = 0;
    choose(within(data, map.shown, data.x[cursor], data.y[cursor], radius), add);
  }

  /** Opens or closes the circle around the current point. */
  function toggleCircle() {
    if (map.cursor < 0) move([0, 0]);
    map.circle = map.circle ? 0 : CIRCLE;
    announce(map.circle ? "Circle opened" : "Circle closed");
    map.plan("over");
  }

  /** @param {number} factor */
  function widen(factor) {
    if (!map.circle) return;
    map.circle = Math.max(8, Math.min(600, map.circle * factor));
    map.plan("over");
  }

  /** @param {boolean} on */
  function setLasso(on) {
    lassoing = on;
    tools.setLasso(on);
    stage.classList.toggle("vl-lassoing", on);
  }

  /** @param {[number, number]} way */
  function move(way) {
    const { data, view, shown, cursor } = map;
    if (!data) return;
    const selected = pointOf(data, model.get("selected"));
    const from = cursor >= 0 ? cursor : shown[selected] ? selected : -1;
    const centre = [stage.clientWidth / 2, stage.clientHeight / 2];
    const next =
      cursor < 0
        ? from >= 0
          ? from
          : (map.grid?.nearest((centre[0] - view.x) / view.scale, (centre[1] - view.y) / view.scale, 2, shown) ?? -1)
        : towards(data, shown, from, way);
    if (next < 0) return;
    map.cursor = next;
    hoverSoon({ hovered: keyOf(data, next) });
    announce(map.textOf(next));
    map.reveal(next);
  }

  function clearSelection() {
    if (map.circle) map.circle = 0;
    else if (lassoing) setLasso(false);
    else if (map.isChosen) save(model, { chosen: [] });
    else save(model, { selected: null });
    map.plan("over");
  }

  return {
    /** Whether a drag draws. */
    lassoing: () => lassoing,
    /** @param {number} x @param {number} y in CSS pixels */
    hover: (x, y) => point(near(x, y)),
    leave: () => point(-1),
    click,
    drawLasso,
    closeLasso,
    setLasso,
    chooseAll,
    move,
    /** Chooses the points in the circle, or selects the current point. */
    enter: (/** @type {boolean} */ add) => (map.circle ? closeCircle(add) : select(map.cursor)),
    toggle: () => toggle(map.cursor),
    toggleCircle,
    widen,
    clearSelection,
  };
}
