// A window onto many rows: only visible rows exist, and they are reused while scrolling.

import { h } from "../lib/dom.js";

export const ROW_HEIGHT = 28;
const SPARE = 4; // rows beyond the edges, so that a slow frame shows no gap

/**
 * @typedef {object} Rows
 * @property {HTMLElement} viewport
 * @property {(count: number) => void} show shows other rows, from the top
 * @property {() => void} renew creates the rows again, for other columns
 * @property {() => void} refresh fills the visible rows again
 * @property {(index: number) => void} reveal scrolls as little as needed to show a row
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
  // Chromium makes scrolling elements a tab stop; here the grid around it is the tab stop.
  const viewport = h(
    "div",
    { class: "vl-browser-viewport", role: "rowgroup", tabindex: -1 },
    space,
  );
  /** @type {HTMLElement[]} */
  let pool = [];
  /** @type {Int32Array} */
  let shown = new Int32Array(0); // the row of each element of the pool
  let count = 0;
  let waiting = false;
  let pendingRow = -1; // the row to reveal once it is visible: a hidden element cannot scroll

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

  function arrange() {
    waiting = false;
    if (!pool.length) return;
    const last = Math.max(0, count - pool.length);
    const first = Math.min(last, Math.max(0, Math.floor(viewport.scrollTop / ROW_HEIGHT) - SPARE));
    // In the order of the rows, in which a screen reader reads them.
    for (const [slot, row] of pool.entries()) {
      const index = first + slot;
      if (shown[slot] === index) continue;
      shown[slot] = index;
      row.hidden = index >= count;
      if (row.hidden) continue;
      row.style.transform = `translateY(${index * ROW_HEIGHT}px)`;
      fill(row, index);
    }
  }

  function soon() {
    if (!waiting) requestAnimationFrame(arrange);
    waiting = true;
  }

  function refresh() {
    shown.fill(-1);
    arrange();
  }

  viewport.addEventListener("scroll", soon, { signal, passive: true });
  /** @param {number} index */
  function reveal(index) {
    pendingRow = viewport.clientHeight ? -1 : index;
    const top = index * ROW_HEIGHT;
    const bottom = top + ROW_HEIGHT - viewport.clientHeight;
    if (viewport.scrollTop > top) viewport.scrollTop = top;
    else if (viewport.scrollTop < bottom) viewport.scrollTop = bottom;
    arrange();
  }

  const watcher = new ResizeObserver(() => {
    resize();
    if (pendingRow >= 0 && viewport.clientHeight) reveal(pendingRow);
    else arrange();
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
