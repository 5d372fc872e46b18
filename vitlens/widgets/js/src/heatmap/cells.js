// The tokens of an image as cells: patches (row, column), and before them prefix token i as (-1, i).

/** @import { Patch } from "../lib/types" */

/**
 * @typedef {object} Layout
 * @property {[number, number]} grid rows and columns
 * @property {string[]} prefix names of the tokens before the patches
 */

/** @param {Layout} layout @param {Patch} cell */
export const tokenOf = ({ grid, prefix }, [row, column]) =>
  row < 0 ? column : prefix.length + row * grid[1] + column;

/** @param {Layout} layout */
export const tokens = ({ grid, prefix }) => prefix.length + grid[0] * grid[1];

/** Rows and columns counted from 1, as in all texts of vitlens.
 * @param {Layout} layout @param {Patch} cell
 */
export const nameOf = ({ prefix }, [row, column]) =>
  row < 0 ? (prefix[column] ?? "") : `row ${row + 1}, column ${column + 1}`;

/** @param {Layout} layout @param {Patch} cell */
export function exists({ grid, prefix }, [row, column]) {
  if (row < 0) return row === -1 && column >= 0 && column < prefix.length;
  return row < grid[0] && column >= 0 && column < grid[1];
}

/**
 * The cell that a key moves to; null for other keys. Prefix tokens are left of the first column.
 * @param {Layout} layout @param {Patch} cell @param {string} key
 * @returns {Patch | null}
 */
export function step(layout, [row, column], key) {
  const [rows, columns] = layout.grid;
  const last = layout.prefix.length - 1;
  if (row < 0) {
    if (key === "ArrowRight") return [Math.min(column, rows - 1), 0];
    if (key === "ArrowUp") return [-1, Math.max(0, column - 1)];
    if (key === "ArrowDown") return [-1, Math.min(last, column + 1)];
    if (key === "End") return [0, columns - 1];
    return key === "ArrowLeft" || key === "Home" ? [row, column] : null;
  }
  if (key === "ArrowLeft") {
    return column || last < 0 ? [row, Math.max(0, column - 1)] : [-1, Math.min(row, last)];
  }
  if (key === "ArrowRight") return [row, Math.min(columns - 1, column + 1)];
  if (key === "ArrowUp") return [Math.max(0, row - 1), column];
  if (key === "ArrowDown") return [Math.min(rows - 1, row + 1), column];
  if (key === "Home") return [row, 0];
  return key === "End" ? [row, columns - 1] : null;
}
