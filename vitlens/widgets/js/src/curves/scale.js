// The position of a share of features on the axis, and the value of a curve there.

/** Part of a logarithmic axis that is linear, so that 0 has a position. */
const LINEAR_PART = 0.09;

/**
 * @typedef {object} Scale
 * @property {(share: number) => number} position share of features -> 0..1 along the axis
 * @property {(position: number) => number} share the inverse
 */

/**
 * @param {"log" | "linear"} axis
 * @param {number} smallest the smallest measured share above 0
 * @returns {Scale}
 */
export function shareScale(axis, smallest) {
  if (axis === "linear" || smallest >= 1) {
    return { position: (share) => share, share: (position) => position };
  }
  const span = -Math.log(smallest);
  const rest = 1 - LINEAR_PART;
  return {
    position: (share) =>
      share <= smallest
        ? (LINEAR_PART * Math.max(share, 0)) / smallest
        : LINEAR_PART + rest * (1 + Math.log(share) / span),
    share: (position) =>
      position <= LINEAR_PART
        ? (smallest * position) / LINEAR_PART
        : Math.exp(((position - LINEAR_PART) / rest - 1) * span),
  };
}

/**
 * The value of the drawn line: straight between measured steps on the displayed axis.
 *
 * @param {ArrayLike<number>} steps measured shares, ascending
 * @param {ArrayLike<number>} values one per step
 * @param {number} share
 * @param {Scale} scale
 * @returns {{ value: number, measured: boolean }}
 */
export function valueAt(steps, values, share, scale) {
  const last = steps.length - 1;
  for (let i = 0; i <= last; i++) {
    if (Math.abs(steps[i] - share) < 1e-9) return { value: values[i], measured: true };
  }
  let right = 1;
  while (right < last && steps[right] < share) right += 1;
  const [a, b] = [scale.position(steps[right - 1]), scale.position(steps[right])];
  const part = Math.min(Math.max((scale.position(share) - a) / (b - a), 0), 1);
  return { value: values[right - 1] * (1 - part) + values[right] * part, measured: false };
}

/**
 * @param {ArrayLike<number>} steps
 * @param {number} position 0..1 along the axis
 * @param {Scale} scale
 * @returns {number} index of the step nearest on the screen
 */
export function nearestStep(steps, position, scale) {
  let best = 0;
  for (let i = 1; i < steps.length; i++) {
    const closer =
      Math.abs(scale.position(steps[i]) - position) < Math.abs(scale.position(steps[best]) - position);
    if (closer) best = i;
  }
  return best;
}

/**
 * @param {"log" | "linear"} axis
 * @param {ArrayLike<number>} steps
 * @returns {number[]} tick labels of the axis
 */
export function shareTicks(axis, steps) {
  if (axis === "linear") return [0, 0.25, 0.5, 0.75, 1];
  const smallest = Array.from(steps).find((share) => share > 0) ?? 1;
  return [0, ...[0.001, 0.01, 0.1, 1].filter((share) => share >= smallest * 0.999)];
}

/**
 * @param {number} low
 * @param {number} high
 * @returns {number[]} about five round values from low to high
 */
export function valueTicks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999) ?? rough;
  const ticks = [];
  const first = Math.ceil(low / step - 1e-9);
  for (let i = first; i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
  return ticks;
}
