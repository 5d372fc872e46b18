// One plot of curves: axes, bands, lines, the marker, and the line under the pointer.

import { percent, s as svg } from "../lib/dom.js";
import { valueLimits } from "./data.js";
import { shareTicks, valueAt, valueTicks } from "./scale.js";

/** @typedef {import("./data.js").CurveData} CurveData */
/** @typedef {import("./data.js").Direction} Direction */
/** @typedef {import("./scale.js").Scale} Scale */
/** @typedef {import("./styles.js").LineStyle} LineStyle */

/**
 * @typedef {object} PanelState
 * @property {CurveData} data
 * @property {Direction[]} directions all that are shown, so that their axes agree
 * @property {Scale} scale
 * @property {"log" | "linear"} axis
 * @property {Map<string, LineStyle>} styles
 * @property {(method: string) => boolean} isShown
 * @property {number} width
 * @property {number} height
 */

const ROOMY = 230; // pixels of height for the full text along the axis
const WIDE = 430; // pixels of width for the full text above and below
const TIGHT = 36; // pixels between the first two shares: their labels do not fit side by side
const MARGIN = { left: 46, right: 22, top: 24, bottom: 40 };

/** @type {Record<Direction, string>} */
const HEADINGS = {
  insertion: "Insertion: only the top features kept (high is good)",
  deletion: "Deletion: the top features removed (low is good)",
};

/** @type {Record<Direction, string>} */
const SHORT = { insertion: "Insertion (high is good)", deletion: "Deletion (low is good)" };

/** @type {Record<string, string>} */
const METRICS = {
  target: "target",
  logit: "logit",
  probability: "probability",
  top1: "share still predicted",
};

/**
 * @param {Direction} direction
 * @returns a panel: its element, and how to draw it
 */
export function createPanel(direction) {
  const root = svg("svg", { class: "vl-curves-panel", role: "group" });
  const fixed = svg("g");
  const pointer = svg("g", { class: "vl-curves-pointer" });
  const point = svg("g", { class: "vl-curves-point" });
  const line = svg("line", { class: "vl-curves-point-line" });
  const dots = svg("g");
  const handle = svg("path", { class: "vl-curves-handle", d: "M-6,10V1L0,-7L6,1V10Z" });
  point.append(line, dots, handle);
  root.append(fixed, pointer, point);
  /** @type {PanelState | null} */
  let state = null;
  /** @type {(value: number) => number} */
  let y = (value) => value;

  const plotWidth = () => (state ? state.width - MARGIN.left - MARGIN.right : 0);
  const isWide = () => Boolean(state && state.width >= WIDE);
  const bottom = () => (state ? state.height - MARGIN.bottom : 0);
  /** @param {number} share */
  const x = (share) => MARGIN.left + plotWidth() * (state ? state.scale.position(share) : 0);

  /** @param {PanelState} next */
  function draw(next) {
    state = next;
    const [low, high] = valueLimits(state.data, state.directions);
    const plotHeight = bottom() - MARGIN.top;
    y = (value) => bottom() - (plotHeight * (value - low)) / (high - low);
    root.setAttribute("viewBox", `0 0 ${state.width} ${state.height}`);
    root.setAttribute("width", `${state.width}`);
    root.setAttribute("height", `${state.height}`);
    root.setAttribute("aria-label", HEADINGS[direction]);
    fixed.replaceChildren(
      text((isWide() ? HEADINGS : SHORT)[direction], MARGIN.left, 14, "vl-curves-heading"),
      ...axes(state, low, high),
      ...bands(state),
      ...lines(state),
    );
    line.setAttribute("y1", `${MARGIN.top}`);
    line.setAttribute("y2", `${bottom()}`);
  }

  /**
   * @param {PanelState} s
   * @param {number} low
   * @param {number} high
   */
  function axes(s, low, high) {
    const { info } = s.data;
    const right = s.width - MARGIN.right;
    const parts = [];
    for (const tick of valueTicks(low, high)) {
      const is_end = info.is_share && (Math.abs(tick) < 1e-9 || Math.abs(tick - 1) < 1e-9);
      parts.push(
        svg("line", {
          class: is_end ? "vl-curves-end" : "vl-curves-grid",
          x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick),
        }),
        text(`${Number(tick.toFixed(6))}`.replace("-", "−"), MARGIN.left - 6, y(tick) + 4, "vl-curves-tick", "end"),
      );
    }
    const shares = shareTicks(s.axis, info.q);
    for (const tick of shares) {
      const isTight = tick === 0 && x(shares[1]) - x(0) < TIGHT;
      parts.push(
        svg("line", {
          class: "vl-curves-grid", x1: x(tick), x2: x(tick), y1: MARGIN.top, y2: bottom(),
        }),
        text(percent(tick), x(tick), bottom() + 20, "vl-curves-tick", isTight ? "end" : "middle"),
      );
    }
    const middle = (MARGIN.left + right) / 2;
    const name = METRICS[info.metric] ?? info.metric;
    const ends = s.height < ROOMY ? "0 to 1" : "empty model 0, full model 1";
    const what = info.is_share ? `${name} (${ends})` : `${name}, as measured`;
    const label = text(what, 0, 0, "vl-curves-label", "middle");
    label.setAttribute("transform", `translate(11 ${(MARGIN.top + bottom()) / 2}) rotate(-90)`);
    parts.push(
      label,
      text(`share of the features${isWide() ? " kept or removed" : ""}, in every layer`, middle,
        bottom() + 36, "vl-curves-label", "middle"),
    );
    return parts;
  }

  /** @param {PanelState} s */
  function bands(s) {
    return shownMethods(s).flatMap((method) => {
      const { low, high } = s.data.curve(direction, method);
      const steps = s.data.info.q.map((share, i) => ({ share, low: low[i], high: high[i] }));
      const known = steps.filter((step) => !Number.isNaN(step.low));
      if (known.length < 2) return [];
      const up = known.map((step) => `${x(step.share)},${y(step.high)}`);
      const down = known.map((step) => `${x(step.share)},${y(step.low)}`).reverse();
      return svg("path", {
        class: `vl-curves-band vl-curve-${styleName(s, method)}`,
        d: `M${[...up, ...down].join("L")}Z`,
      });
    });
  }

  /** @param {PanelState} s */
  function lines(s) {
    // The first method is drawn last, on top.
    return shownMethods(s).reverse().flatMap((method) => {
      const { mean } = s.data.curve(direction, method);
      const style = s.styles.get(method);
      const points = s.data.info.q.map((share, i) => [x(share), y(mean[i])]);
      const colour = `vl-curve-${styleName(s, method)}`;
      return [
        svg("path", {
          class: `vl-curves-line ${colour}`,
          "stroke-dasharray": style?.dash ?? "",
          d: `M${points.map(([px, py]) => `${px},${py}`).join("L")}`,
        }),
        ...points.map(([px, py]) =>
          svg("path", {
            class: `vl-curves-marker ${colour}`,
            d: style?.marker ?? "",
            transform: `translate(${px} ${py})`,
          }),
        ),
      ];
    });
  }

  /** @param {number} share */
  function movePoint(share) {
    if (!state) return;
    const s = state;
    line.setAttribute("x1", `${x(share)}`);
    line.setAttribute("x2", `${x(share)}`);
    handle.setAttribute("transform", `translate(${x(share)} ${bottom()})`);
    dots.replaceChildren(
      ...shownMethods(s).reverse().map((method) => {
        const { value } = valueAt(
          s.data.info.q, s.data.curve(direction, method).mean, share, s.scale,
        );
        return svg("circle", {
          class: `vl-curves-dot vl-curve-${styleName(s, method)}`,
          cx: x(share), cy: y(value), r: 4.5,
        });
      }),
    );
  }

  /** @param {number | null} step index of the step under the pointer */
  function movePointer(step) {
    if (!state || step === null) return pointer.replaceChildren();
    const s = state;
    const at = x(s.data.info.q[step]);
    return pointer.replaceChildren(
      svg("line", { x1: at, x2: at, y1: MARGIN.top, y2: bottom() }),
      ...shownMethods(s).map((method) =>
        svg("circle", {
          class: `vl-curves-dot vl-curve-${styleName(s, method)}`,
          cx: at, cy: y(s.data.curve(direction, method).mean[step]), r: 4.5,
        }),
      ),
    );
  }

  return {
    direction,
    element: root,
    handle,
    draw,
    movePoint,
    movePointer,
    /** @param {PointerEvent} event @returns {number} 0..1 along the axis */
    position: (event) => {
      const box = root.getBoundingClientRect();
      return Math.min(Math.max((event.clientX - box.left - MARGIN.left) / plotWidth(), 0), 1);
    },
    /** @param {number} share @returns {number} pixels from the left */
    x,
  };
}

/** @param {PanelState} state */
function shownMethods(state) {
  return state.data.info.methods.filter(state.isShown);
}

/** @param {PanelState} state @param {string} method */
function styleName(state, method) {
  return state.styles.get(method)?.name ?? "other-0";
}

/**
 * @param {string} text
 * @param {number} x
 * @param {number} y
 * @param {string} className
 * @param {"start" | "middle" | "end"} [anchor]
 */
function text(text, x, y, className, anchor = "start") {
  const element = svg("text", { class: className, x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}
