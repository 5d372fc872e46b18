// A window onto many rows: only those in sight exist, and they are used again while scrolling.

import { h } from "../lib/dom.js";

export const ROW_HEIGHT = 28;
const SPARE = 4; // rows beyond the edges, so that a slow frame shows no gap

/**
 * @typedef {object} Rows
 * @property {HTMLElement} viewport
 * @property {(count: number) => void} show shows other rows, from the top
 * @property {() => void} renew makes the rows anew, for other columns
 * @property {() => void} refresh fills the rows in sight anew
 * @property {(index: number) => void} reveal scrolls as little as needed to have a row in sight
 * @property {() => number} page rows that fit
 */

/**
 * @param {() => HTMLElement} create makes an empty row
 * @param {(row: HTMLElement, index: number) => void} fill
 * @param {AbortSignal} signal
 * @returns {Rows}
 */
export function createRows(create, fill, signal) {
  const space = h("div", { class: "vl-browser-space", role: "presentation" });
  // Chromium makes what scrolls a tab stop; here the grid around it is the one.
  const viewport = h(
    "div",
    { class: "vl-browser-viewport", role: "rowgroup", tabindex: -1 },
    space,
  );
  /** @type {HTMLElement[]} */
  let pool = [];
  /** @type {Int32Array} */
  let shown = new Int32Array(0); // which row each element of the pool holds
  let count = 0;
  let waiting = false;
  let hiddenWish = -1; // the row to reveal once there is room: a hidden element cannot scroll

  function resize() {
    const needed = Math.ceil(viewport.clientHeight / ROW_HEIGHT) + 2 * SPARE + 1;
    while (pool.length < needed) {
      const row = create();
      pool.push(row);
      space.append(row);
    }
    shown = new Int32Array(pool.length).fill(-1);
  }

  function renew() {
    for (const row of pool) row.remove();
    pool = [];
    resize();
  }

  function place() {
    waiting = false;
    if (!pool.length) return;
    const last = Math.max(0, count - pool.length);
    const first = Math.min(last, Math.max(0, Math.floor(viewport.scrollTop / ROW_HEIGHT) - SPARE));
    // In the order of the rows, which is the order in which a screen reader reads them.
    for (const [place, row] of pool.entries()) {
      const index = first + place;
      if (shown[place] === index) continue;
      shown[place] = index;
      row.hidden = index >= count;
      if (row.hidden) continue;
      row.style.transform = `translateY(${index * ROW_HEIGHT}px)`;
      fill(row, index);
    }
  }

  function soon() {
    if (!waiting) requestAnimationFrame(place);
    waiting = true;
  }

  function refresh() {
    shown.fill(-1);
    place();
  }

  viewport.addEventListener("scroll", soon, { signal, passive: true });
  /** @param {number} index */
  function reveal(index) {
    hiddenWish = viewport.clientHeight ? -1 : index;
    const top = index * ROW_HEIGHT;
    const bottom = top + ROW_HEIGHT - viewport.clientHeight;
    if (viewport.scrollTop > top) viewport.scrollTop = top;
    else if (viewport.scrollTop < bottom) viewport.scrollTop = bottom;
    place();
  }

  const watcher = new ResizeObserver(() => {
    resize();
    if (hiddenWish >= 0 && viewport.clientHeight) reveal(hiddenWish);
    else place();
  });
  watcher.observe(viewport);
  signal.addEventListener("abort", () => watcher.disconnect(), { once: true });

  return {
    viewport,
    show(rows) {
      count = rows;
      space.style.height = `${count * ROW_HEIGHT}px`;
      viewport.scrollTop = 0;
      refresh();
    },
    renew,
    refresh,
    reveal,
    page: () => Math.max(1, Math.floor(viewport.clientHeight / ROW_HEIGHT) - 1),
  };
}
