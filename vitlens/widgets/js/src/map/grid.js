// Points in a grid, to find those near the pointer quickly.

/**
 * @param {Float32Array} x @param {Float32Array} y between 0 and 1
 */
export function createGrid(x, y) {
  const n = x.length;
  const side = Math.max(1, Math.ceil(Math.sqrt(n / 2)));
  const starts = new Uint32Array(side * side + 1);
  const cellOf = (/** @type {number} */ v) => Math.max(0, Math.min(side - 1, Math.floor(v * side)));
  const cells = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    cells[i] = cellOf(y[i]) * side + cellOf(x[i]);
    starts[cells[i] + 1] += 1;
  }
  for (let c = 0; c < side * side; c++) starts[c + 1] += starts[c];
  const next = starts.slice();
  const members = new Uint32Array(n);
  for (let i = 0; i < n; i++) members[next[cells[i]]++] = i;

  return {
    /**
     * The nearest point, -1 for none within the reach.
     * @param {number} px @param {number} py @param {number} reach
     * @param {Uint8Array} shown 1 for points that count
     */
    nearest(px, py, reach, shown) {
      let best = -1;
      let least = reach * reach;
      const [left, right] = [cellOf(px - reach), cellOf(px + reach)];
      const [top, bottom] = [cellOf(py - reach), cellOf(py + reach)];
      for (let row = top; row <= bottom; row++) {
        const end = starts[row * side + right + 1];
        for (let k = starts[row * side + left]; k < end; k++) {
          const i = members[k];
          const distance = (x[i] - px) ** 2 + (y[i] - py) ** 2;
          if (distance <= least && shown[i]) [best, least] = [i, distance];
        }
      }
      return best;
    },
  };
}
