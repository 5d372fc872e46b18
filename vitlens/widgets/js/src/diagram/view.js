// Zoom and pan: the position of the columns on the stage.

/** @import { Scene } from "./scene.js" */
/** @import { View } from "./edges.js" */
import { SIZE } from "./scene.js";

const LEAST = 0.08;
const MOST = 4;
const READABLE = 0.72; // columns start no smaller than this; dragging shows the rest
const LOW = 0.55; // rows start no smaller than this
export const MARGIN = 10;
const DRAG = 4; // pixels: less is a click

/**
 * The scale at which columns of a height fit.
 * @param {number} columns their height @param {number} height of the stage
 * @param {boolean} readable no smaller than can be read
 */
export const scaleFor = (columns, height, readable) =>
  Math.min(1.25, Math.max(readable ? LOW : LEAST, (height - 2 * MARGIN) / columns));

/** The view that shows all of the scene.
 * @param {Scene} scene @param {number} width @param {number} height @returns {View}
 */
export function fitted(scene, width, height) {
  const scale = Math.min(scaleFor(scene.height, height, false), (width - 2 * MARGIN) / scene.width);
  return centred(scene, width, height, Math.max(LEAST, scale));
}

/**
 * The first view of a diagram: all of it, or, where that would be too small to read, the end with
 * the target and the middle rows.
 * @param {Scene} scene @param {number} width @param {number} height @returns {View}
 */
export function opening(scene, width, height) {
  const across = (width - 2 * MARGIN) / scene.width;
  const down = scaleFor(scene.height, height, true);
  const view = centred(scene, width, height, Math.min(down, Math.max(across, READABLE)));
  if (across < view.scale) view.x = width - MARGIN - scene.width * view.scale;
  return view;
}

/** @param {Scene} scene @param {number} width @param {number} height @param {number} scale */
function centred(scene, width, height, scale) {
  return {
    scale,
    x: (width - scene.width * scale) / 2,
    y: (height + SIZE.head * scale) / 2,
  };
}

/** Zooms about a point of the stage.
 * @param {View} view @param {number} factor @param {number} x @param {number} y @returns {View}
 */
export function zoomed(view, factor, x, y) {
  const scale = Math.min(MOST, Math.max(LEAST, view.scale * factor));
  const by = scale / view.scale;
  return { scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by };
}

/**
 * Drags on the stage pan; a wheel zooms while `wheels` says so, else the page scrolls.
 * @param {HTMLElement} stage
 * @param {AbortSignal} signal
 * @param {{ view: () => View, move: (view: View) => void, wheels: (event: WheelEvent) => boolean }} on
 */
export function handleGestures(stage, signal, { view, move, wheels }) {
  /** @type {{ x: number, y: number, from: View, moved: boolean } | null} */
  let drag = null;
  stage.addEventListener(
    "pointerdown",
    (event) => {
      if (event.button !== 0 || !event.isPrimary) return;
      drag = { x: event.clientX, y: event.clientY, from: view(), moved: false };
    },
    { signal },
  );
  stage.addEventListener(
    "pointermove",
    (event) => {
      if (drag && !(event.buttons & 1)) end(); // released outside, before the stage captured the pointer
      if (!drag) return;
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.moved && Math.hypot(dx, dy) < DRAG) return;
      if (!drag.moved) stage.setPointerCapture(event.pointerId);
      drag.moved = true;
      stage.classList.add("vl-panning");
      move({ ...drag.from, x: drag.from.x + dx, y: drag.from.y + dy });
    },
    { signal },
  );
  // The click event at the end of a drag is not a click.
  let ended = false;
  stage.addEventListener("click", (event) => ended && event.stopPropagation(), {
    signal,
    capture: true,
  });
  const end = () => {
    ended = Boolean(drag?.moved);
    if (ended) setTimeout(() => (ended = false), 0);
    drag = null;
    stage.classList.remove("vl-panning");
  };
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, end, { signal });
  stage.addEventListener(
    "wheel",
    (event) => {
      if (!wheels(event)) return;
      event.preventDefault();
      const box = stage.getBoundingClientRect();
      const factor = Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015));
      move(zoomed(view(), factor, event.clientX - box.left, event.clientY - box.top));
    },
    { signal, passive: false },
  );
}
