// The points in a lasso or a circle, and the next point in a direction.

/** @import { Data } from "./data.js" */

/**
 * Points inside a closed line, by the even-odd rule.
 * @param {Data} data @param {Uint8Array} shown
 * @param {number[]} line x and y of its corners, in turn
 * @returns {number[]}
 */
export function inside({ n, x, y }, shown, line) {
  const xs = line.filter((_, i) => i % 2 === 0);
  const ys = line.filter((_, i) => i % 2 === 1);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [top, bottom] = [Math.min(...ys), Math.max(...ys)];
  /** @type {number[]} */
  const found = [];
  for (let i = 0; i < n; i++) {
    if (!shown[i] || x[i] < left || x[i] > right || y[i] < top || y[i] > bottom) continue;
    let odd = false;
    for (let a = 0, b = xs.length - 1; a < xs.length; b = a++) {
      if (ys[a] > y[i] === ys[b] > y[i]) continue;
      if (x[i] < xs[a] + ((xs[b] - xs[a]) * (y[i] - ys[a])) / (ys[b] - ys[a])) odd = !odd;
    }
    if (odd) found.push(i);
  }
  return found;
}

/**
 * Points within a circle.
 * @param {Data} data @param {Uint8Array} shown @param {number} cx @param {number} cy
 * @param {number} radius
 */
export function within({ n, x, y }, shown, cx, cy, radius) {
  /** @type {number[]} */
  const found = [];
  for (let i = 0; i < n; i++) {
    if (shown[i] && (x[i] - cx) ** 2 + (y[i] - cy) ** 2 <= radius * radius) found.push(i);
  }
  return found;
}

/**
 * The point that an arrow key moves to: close, and in that direction; -1 for none.
 * @param {Data} data @param {Uint8Array} shown @param {number} from
 * @param {[number, number]} direction such as [1, 0] for right
 */
export function towards({ n, x, y }, shown, from, [wx, wy]) {
  let best = -1;
  let least = Infinity;
  for (let i = 0; i < n; i++) {
    if (i === from || !shown[i]) continue;
    const [dx, dy] = [x[i] - x[from], y[i] - y[from]];
    const along = dx * wx + dy * wy;
    const across = Math.abs(dx * wy) + Math.abs(dy * wx);
    if (along <= 0 || across > along) continue;
    const cost = along + 2 * across;
    if (cost < least) [best, least] = [i, cost];
  }
  return best;
}
