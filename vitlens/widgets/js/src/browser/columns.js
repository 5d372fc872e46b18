// What can be a column of the list: on this image, and over the atlas's images.

import { fixed, percent, plain } from "../lib/dom.js";

/** Columns on one image; `vitlens.widgets.browser.COLUMNS`. */
export const ON_IMAGE = ["importance", "max_activation", "mean_activation", "active_tokens"];

/**
 * @typedef {object} Column
 * @property {string} by what it is sorted by
 * @property {string} words its head
 * @property {string} hint
 * @property {number} wide in pixels
 * @property {(value: number) => string} [say]
 */

/** @type {Column[]} */
const KNOWN = [
  { by: "importance", words: "importance", hint: "share of the layer's positive importance here", wide: 112 },
  { by: "max_activation", words: "max", hint: "largest activation on this image", wide: 64 },
  { by: "mean_activation", words: "mean", hint: "mean activation where it is active", wide: 68 },
  { by: "active_tokens", words: "tokens", hint: "tokens of this image on which it is active", wide: 70, say: String },
  { by: "frequency", words: "frequency", hint: "share of all tokens of the atlas's images on which it is active", wide: 92, say: percent },
  { by: "trust", words: "trust", hint: "how far its pictures show what it stands for, 0 to 1", wide: 62, say: fixed },
  { by: "position", words: "position", hint: "share of its variance that the place in the image explains", wide: 78, say: fixed },
  { by: "orientation", words: "orientation", hint: "how far it prefers edges of one orientation, 0 to 1", wide: 100, say: fixed },
  { by: "curvature", words: "curvature", hint: "arcs before straight lines, −1 to 1", wide: 86, say: fixed },
  { by: "hue", words: "hue", hint: "how far it prefers one hue, 0 to 1", wide: 58, say: fixed },
  { by: "selectivity", words: "selectivity", hint: "how far it prefers one class, 0 to 1", wide: 90, say: fixed },
  { by: "class_information", words: "class", hint: "share of its variance over images that their class explains", wide: 62, say: fixed },
  { by: "monosemanticity", words: "one meaning", hint: "how much more alike its top images are than random ones", wide: 112, say: fixed },
];

/** @type {Column} */
const NUMBER = { by: "feature", words: "feature", hint: "the feature's number", wide: 76 };
/** @type {Column} */
const NAME = { by: "label", words: "name", hint: "names that people gave", wide: 0 };
/** @type {Column} */
export const PROPOSED = { by: "proposed", words: "proposed", hint: "what a program would call it; nobody's name", wide: 0 };

/**
 * The columns of a list.
 * @param {string[]} columns of the table
 * @param {boolean} texts whether there are proposals
 * @param {boolean} names whether any feature has a name; an empty column beside proposals is none
 * @returns {Column[]}
 */
export const shownColumns = (columns, texts, names) => [
  NUMBER,
  ...(names || !texts ? [NAME] : []),
  ...(texts ? [PROPOSED] : []),
  ...KNOWN.filter(({ by }) => columns.includes(by)),
];

/** @param {string} by */
export const headOf = (by) => KNOWN.find((column) => column.by === by)?.words ?? by;

/** A value of a column.
 * @param {Column} column @param {number} value
 */
export const said = ({ say = plain }, value) => (Number.isNaN(value) ? "–" : say(value));
