// Responses to synthetic stimuli: orientation, arcs, hue, texture.

import { h, s, show } from "../lib/dom.js";
import { css } from "../lib/scale.js";

/**
 * @typedef {object} Tuning responses in units of activation
 * @property {{ angles: number[], values: number[] }} orientation degrees from level,
 *   counter-clockwise, over half a turn
 * @property {{ directions: number[], radii: (number | null)[], values: number[][] }} arcs by
 *   radius, in patches, null for a straight line; and by direction, degrees from the right
 * @property {{ angles: number[], values: number[] }} hue OKLCh, in degrees
 * @property {{ names: string[], values: number[] }} texture
 * @property {number} blank response to an empty image
 */

const SIZE = 128;
const MIDDLE = SIZE / 2;
const RADIUS = 48;

/** @param {Tuning} tuning */
export function tuningPlots({ orientation, arcs, hue, texture }) {
  const both = [...orientation.values, ...orientation.values];
  const turned = [...orientation.angles, ...orientation.angles.map((angle) => angle + 180)];
  return h(
    "div",
    { class: "vl-card-tuning" },
    plot("edges and gratings, by orientation", orientation.values, polar(turned, both, "°")),
    plot("arcs, by radius and direction", arcs.values.flat(), arcGrid(arcs)),
    plot("hues", hue.values, polar(hue.angles, hue.values, "° of hue", hueColour)),
    plot("textures", texture.values, bars(texture)),
  );
}

/** @param {string} text @param {number[]} values @param {Element} figure */
function plot(text, values, figure) {
  const most = Math.max(0, ...values);
  figure.setAttribute("role", "img");
  figure.setAttribute("aria-label", `Response to ${text}, up to ${show(most)}`);
  return h(
    "figure",
    { class: "vl-card-plot" },
    h("figcaption", {}, text),
    most > 0 ? figure : h("p", { class: "vl-muted" }, "no response"),
    most > 0 && h("div", { class: "vl-card-hint vl-muted" }, `up to ${show(most)}`),
  );
}

/**
 * A closed curve around the middle.
 * @param {number[]} angles degrees from the right, counter-clockwise @param {number[]} values
 * @param {string} unit @param {(angle: number) => string} [colour]
 */
function polar(angles, values, unit, colour) {
  const most = Math.max(...values) || 1;
  const points = angles.map((angle, i) => at(angle, (RADIUS * Math.max(0, values[i])) / most));
  return s(
    "svg",
    { viewBox: `0 0 ${SIZE} ${SIZE}`, class: "vl-card-polar" },
    [0.5, 1].map((r) => s("circle", { cx: MIDDLE, cy: MIDDLE, r: RADIUS * r })),
    s("line", { x1: MIDDLE - RADIUS, x2: MIDDLE + RADIUS, y1: MIDDLE, y2: MIDDLE }),
    s("line", { y1: MIDDLE - RADIUS, y2: MIDDLE + RADIUS, x1: MIDDLE, x2: MIDDLE }),
    s("polygon", { points: points.map((point) => point.join(",")).join(" ") }),
    points.map(([x, y], i) =>
      s(
        "circle",
        {
          class: "vl-card-dot",
          cx: x,
          cy: y,
          r: colour ? 4 : 2.5,
          ...(colour ? { style: { fill: colour(angles[i]) } } : {}),
        },
        s("title", {}, `${show(angles[i])}${unit}: ${show(values[i])}`),
      ),
    ),
  );
}

/** @param {number} angle @param {number} r @returns {[number, number]} */
function at(angle, r) {
  const turn = (angle * Math.PI) / 180;
  return [round(MIDDLE + r * Math.cos(turn)), round(MIDDLE - r * Math.sin(turn))];
}

/** @param {number} x */
const round = (x) => Math.round(x * 10) / 10;

/** @param {number} angle */
const hueColour = (angle) => `oklch(0.7 0.1 ${angle})`;

const CELL = 13;
const LEFT = 34;

/** @param {Tuning["arcs"]} arcs */
function arcGrid({ directions, radii, values }) {
  const most = Math.max(...values.flat()) || 1;
  const [width, height] = [LEFT + directions.length * CELL, radii.length * CELL + 22];
  return s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "vl-card-arcs" },
    radii.map((radius, row) => [
      s("text", { x: LEFT - 4, y: (row + 0.75) * CELL, "text-anchor": "end" }, radius ?? "line"),
      directions.map((direction, column) => {
        const value = values[row][column];
        return s(
          "rect",
          {
            x: LEFT + column * CELL,
            y: row * CELL,
            width: CELL - 1,
            height: CELL - 1,
            style: { fill: css(Math.max(0, value) / most) },
          },
          s(
            "title",
            {},
            `${radius === null ? "line" : `radius ${radius} patches`}, ${show(direction)}°: ${show(value)}`,
          ),
        );
      }),
    ]).flat(2),
    directions.map((direction, column) =>
      s(
        "g",
        { transform: `translate(${LEFT + (column + 0.45) * CELL} ${radii.length * CELL + 9})` },
        s("path", { d: "M0,-4V4", transform: `rotate(${90 - direction})` }),
        s("path", { d: "M-2,-1.5L0,-4.5L2,-1.5", transform: `rotate(${90 - direction})` }),
      ),
    ),
  );
}

/** @param {Tuning["texture"]} texture */
function bars({ names, values }) {
  const most = Math.max(...values) || 1;
  return h(
    "ul",
    { class: "vl-card-textures" },
    names.map((name, i) =>
      h(
        "li",
        {},
        h("span", { class: "vl-card-class", title: name }, name),
        h(
          "span",
          { class: "vl-card-track" },
          h("span", {
            class: "vl-card-effect vl-up",
            style: { width: `${((100 * Math.max(0, values[i])) / most).toFixed(1)}%` },
          }),
        ),
        h("span", { class: "vl-card-number" }, show(values[i])),
      ),
    ),
  );
}
