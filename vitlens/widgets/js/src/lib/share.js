// Shares in columns: one decimal, so that they align.

/** A share as percent; one that is not 0 but would read 0.0% becomes "<0.1%".
 * @param {number} x
 */
export function tenths(x) {
  if (!Number.isFinite(x)) return "–";
  const size = Math.abs(100 * x);
  if (size > 0 && size < 0.05) return x < 0 ? ">−0.1%" : "<0.1%";
  return `${(100 * x).toFixed(1)}%`.replace("-", "−");
}
