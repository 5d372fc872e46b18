// Shares in columns: one decimal, so that they line up.

/** A share as percent; what would read 0.0% though it is not 0 says so.
 * @param {number} x
 */
export function tenths(x) {
  if (!Number.isFinite(x)) return "–";
  const size = Math.abs(100 * x);
  if (size > 0 && size < 0.05) return x < 0 ? ">−0.1%" : "<0.1%";
  return `${(100 * x).toFixed(1)}%`.replace("-", "−");
}
