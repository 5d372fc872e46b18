// The columns of the list: of this image, and of the images of the atlas.

import { fixed, percent, plain } from "../lib/dom.js";

/** Columns on one image; `vitlens.widgets.browser.COLUMNS`. */
export const ON_IMAGE = ["importance", "max_activation", "mean_activation", "active_tokens"];

/**
 * @typedef {object} Column
 * @property {string} by name of the column, to sort by
 * @property {string} header
 * @property {string} hint
 * @property {number} wide in pixels
 * @property {(value: number) => string} [write]
 */

/** @type {Column[]} */
const KNOWN = [
  { by: "importance", header: "importance", hint: "share of the layer's positive importance here", wide: 112 },
  { by: "max_activation", header: "max", hint: "largest activation on this image", wide: 64 },
  { by: "mean_activation", header: "mean", hint: "mean activation over the tokens where it is active", wide: 68 },
  { by: "active_tokens", header: "tokens", hint: "number of tokens of this image where it is active", wide: 70, write: String },
  { by: "frequency", header: "frequency", hint: "share of all tokens of the atlas where it is active", wide: 92, write: percent },
  { by: "trust", header: "trust", hint: "how well its top images represent it, 0 to 1", wide: 62, write: fixed },
  { by: "position", header: "position", hint: "share of its variance explained by the position in the image", wide: 78, write: fixed },
  { by: "orientation", header: "orientation", hint: "preference for edges of one orientation, 0 to 1", wide: 100, write: fixed },
  { by: "curvature", header: "curvature", hint: "preference for arcs over straight lines, −1 to 1", wide: 86, write: fixed },
  { by: "hue", header: "hue", hint: "preference for one hue, 0 to 1", wide: 58, write: fixed },
  { by: "selectivity", header: "selectivity", hint: "preference for one class, 0 to 1", wide: 90, write: fixed },
  { by: "class_information", header: "class", hint: "share of its variance over images explained by their class", wide: 62, write: fixed },
  { by: "monosemanticity", header: "one meaning", hint: "similarity of its top images, compared with random images", wide: 112, write: fixed },
];

/** @type {Column} */
const NUMBER = { by: "feature", header: "feature", hint: "the feature's number", wide: 76 };
/** @type {Column} */
const NAME = { by: "label", header: "name", hint: "names given by people", wide: 0 };
/** @type {Column} */
export const PROPOSED = { by: "proposed", header: "proposed", hint: "names proposed by a program, not given by a person", wide: 0 };

/**
 * The columns of a list.
 * @param {string[]} columns of the table
 * @param {boolean} texts whether there are proposals
 * @param {boolean} names whether any feature has a name; next to proposals, an empty column is left out
 * @returns {Column[]}
 */
export const shownColumns = (columns, texts, names) => [
  NUMBER,
  ...(names || !texts ? [NAME] : []),
  ...(texts ? [PROPOSED] : []),
  ...KNOWN.filter(({ by }) => columns.includes(by)),
];

/** @param {string} by */
export const headerOf = (by) => KNOWN.find((column) => column.by === by)?.header ?? by;

/** A value of a column.
 * @param {Column} column @param {number} value
 */
export const format = ({ write = plain }, value) => (Number.isNaN(value) ? "–" : write(value));
