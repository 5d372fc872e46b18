// Two panes with a bar between them, moved by pointer or keys.

import { h } from "../lib/dom.js";

const STEP = 2; // percent per press of an arrow key
const LEAST = 12; // minimum percent of each pane

/**
 * @param {"row" | "column"} direction side by side, or one above the other
 * @param {number} start percent of the first pane
 * @param {string} label for a screen reader
 * @param {HTMLElement} first
 * @param {HTMLElement} second
 * @param {AbortSignal} signal
 */
export function split(direction, start, label, first, second, signal) {
  const sideBySide = direction === "row";
  const bar = h("div", {
    class: "vl-x-splitter",
    role: "separator",
    tabindex: 0,
    "aria-label": label,
    "aria-orientation": sideBySide ? "vertical" : "horizontal",
    "aria-valuemin": LEAST,
    "aria-valuemax": 100 - LEAST,
  });
  const element = h("div", { class: `vl-x-split vl-x-${direction}` }, first, bar, second);
  let share = start;

  /** @param {number} next percent */
  function move(next) {
    share = Math.min(Math.max(next, LEAST), 100 - LEAST);
    element.style.setProperty("--vl-x-share", `${share}fr`);
    element.style.setProperty("--vl-x-rest", `${100 - share}fr`);
    bar.setAttribute("aria-valuenow", `${Math.round(share)}`);
  }

  bar.addEventListener("pointerdown", (event) => {
    bar.setPointerCapture(event.pointerId);
    event.preventDefault();
    bar.focus({ preventScroll: true });
  }, { signal });
  bar.addEventListener("pointermove", (event) => {
    if (!bar.hasPointerCapture(event.pointerId)) return;
    const box = element.getBoundingClientRect();
    move(
      100 * (sideBySide
        ? (event.clientX - box.left) / box.width
        : (event.clientY - box.top) / box.height),
    );
  }, { signal });
  bar.addEventListener("dblclick", () => move(start), { signal });
  bar.addEventListener("keydown", (event) => {
    /** @type {Record<string, number>} */
    const next = {
      [sideBySide ? "ArrowLeft" : "ArrowUp"]: share - STEP,
      [sideBySide ? "ArrowRight" : "ArrowDown"]: share + STEP,
      Home: LEAST,
      End: 100 - LEAST,
    };
    if (!(event.key in next)) return;
    event.preventDefault();
    event.stopPropagation();
    move(next[event.key]);
  }, { signal });

  move(start);
  return { element, bar };
}
