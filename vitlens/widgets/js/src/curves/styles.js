// The style of each method: colour, dash and marker, each of which suffices.

/** @typedef {{ dash: string, marker: string, name: string }} LineStyle */

/** Markers as paths around the origin, about 7 units wide. */
const CIRCLE = "M-3.4,0a3.4,3.4 0 1,0 6.8,0a3.4,3.4 0 1,0 -6.8,0Z";
const SQUARE = "M-3,-3H3V3H-3Z";
const UP = "M0,-3.8L3.7,2.9H-3.7Z";
const DIAMOND = "M0,-4.2L4.2,0L0,4.2L-4.2,0Z";
const DOWN = "M0,3.8L3.7,-2.9H-3.7Z";
const CROSS = "M-3.4,-2L-2,-3.4L0,-1.4L2,-3.4L3.4,-2L1.4,0L3.4,2L2,3.4L0,1.4L-2,3.4L-3.4,2L-1.4,0Z";

/** @type {Record<string, LineStyle>} */
const KNOWN = {
  rrm: { dash: "", marker: CIRCLE, name: "rrm" },
  cla: { dash: "7 3", marker: SQUARE, name: "cla" },
  node: { dash: "2 3", marker: UP, name: "node" },
  plain: { dash: "9 3 2 3", marker: DIAMOND, name: "plain" },
  activation: { dash: "5 2 2 2 2 2", marker: DOWN, name: "activation" },
  random: { dash: "1 4", marker: CROSS, name: "random" },
};

/** @type {LineStyle[]} */
const OTHERS = [
  { dash: "12 4", marker: DIAMOND, name: "other-0" },
  { dash: "4 4", marker: SQUARE, name: "other-1" },
  { dash: "8 2 2 2", marker: UP, name: "other-2" },
];

/**
 * @param {string[]} methods
 * @returns {Map<string, LineStyle>} a method has the same style in every plot
 */
export function lineStyles(methods) {
  const others = methods.filter((method) => !(method in KNOWN));
  return new Map(
    methods.map((method) => [
      method,
      KNOWN[method] ?? OTHERS[others.indexOf(method) % OTHERS.length],
    ]),
  );
}

/** @type {Record<string, string>} */
export const MEANINGS = {
  rrm: "walk back along the edges (the paper)",
  path: "path-integrated importance",
  eliminate: "repeated elimination",
  learned: "gates trained on the image",
  cla: "Cross-Layer Attribution",
  node: "node importance alone",
  plain: "node importance with plain gradients",
  activation: "size of the activation",
  random: "chance",
};
