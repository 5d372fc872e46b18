// Edges on a canvas.

/** @import { Item, Scene } from "./scene.js" */
import { SIZE } from "./scene.js";

const THICKEST = 7;
const THINNEST = 0.5;
const LEVELS = 10; // widths are rounded to this many levels, and drawn level by level
const AT_ONCE = 8;
const DRAWN = 3200; // the strongest ones; more cannot be distinguished, nor drawn in one frame
const FAR = 0.5; // below this scale, lines do not become thinner
const DASHED = 0.9; // thinner lines show their sign by colour alone

/**
 * @typedef {object} Colours
 * @property {string} positive
 * @property {string} negative
 *
 * @typedef {object} View position of the world on the screen
 * @property {number} scale
 * @property {number} x
 * @property {number} y
 */

/** Width of an edge, in pixels of the world.
 * @param {number} share @param {number} thickest
 */
export function widthOf(share, thickest) {
  const part = thickest > 0 ? Math.min(1, Math.abs(share) / thickest) : 0;
  return Math.max(THINNEST, THICKEST * Math.sqrt(part));
}

/** How many edges are drawn.
 * @param {Scene} scene
 */
export const drawnLinks = (scene) => Math.min(DRAWN, scene.links.length);

/**
 * @param {HTMLCanvasElement} canvas @param {Scene} scene @param {View} view @param {Colours} colours
 */
export function drawAll(canvas, scene, view, colours) {
  const g = begin(canvas, view);
  const start = scene.links.length - drawnLinks(scene);
  stroke(g, scene, view, range(start, scene.links.length), colours, () => 0.6);
}

/**
 * @param {HTMLCanvasElement} canvas @param {Scene} scene @param {View} view @param {Colours} colours
 * @param {Map<number, number>} links with their light, 0 to 1
 */
export function drawLit(canvas, scene, view, colours, links) {
  const g = begin(canvas, view);
  const order = [...links.keys()].sort((a, b) => a - b);
  stroke(g, scene, view, order, colours, (i) => 0.3 + 0.7 * /** @type {number} */ (links.get(i)));
}

/** Clears a canvas and sets its transform to the view. @param {HTMLCanvasElement} canvas @param {View} view */
export function begin(canvas, view) {
  const g = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const ratio = Number(canvas.dataset.ratio); // asking for its size would lay out the page
  g.setTransform(1, 0, 0, 1, 0, 0);
  g.clearRect(0, 0, canvas.width, canvas.height);
  g.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
  return g;
}

/**
 * Strokes links of the same style together, a few per path: this needs few changes of style, and
 * avoids long paths, which are slow.
 * @param {CanvasRenderingContext2D} g @param {Scene} scene @param {View} view
 * @param {number[]} links @param {Colours} colours @param {(link: number) => number} opacity
 */
function stroke(g, scene, view, links, colours, opacity) {
  const grown = Math.max(1, FAR / view.scale);
  /** @type {Map<number, number[]>} */
  const kinds = new Map();
  for (const i of links) {
    const link = scene.links[i];
    const level = Math.round((LEVELS * (widthOf(link.share, scene.thickest) - THINNEST)) / THICKEST);
    const light = Math.round(4 * opacity(i));
    const kind = (level * 8 + light) * 2 + (link.weight < 0 ? 1 : 0);
    const alike = kinds.get(kind);
    if (alike) alike.push(i);
    else kinds.set(kind, [i]);
  }
  for (const kind of [...kinds.keys()].sort((a, b) => a - b)) {
    const negative = kind % 2 === 1;
    const width = THINNEST + (THICKEST * Math.floor(kind / 16)) / LEVELS;
    g.lineWidth = grown * width;
    g.globalAlpha = (Math.floor(kind / 2) % 8) / 4;
    g.strokeStyle = negative ? colours.negative : colours.positive;
    g.setLineDash(negative && width > DASHED ? [Math.max(5, 2 * width), Math.max(3, width)] : []);
    const alike = /** @type {number[]} */ (kinds.get(kind));
    for (let start = 0; start < alike.length; start += AT_ONCE) {
      g.beginPath();
      for (const i of alike.slice(start, start + AT_ONCE)) {
        trace(g, scene.items[scene.links[i].from], scene.items[scene.links[i].to]);
      }
      g.stroke();
    }
  }
}

/** @param {CanvasRenderingContext2D} path @param {Item} from @param {Item} to */
function trace(path, from, to) {
  const [x, y, end] = ends(from, to);
  const bend = (to.x - x) / 2;
  path.moveTo(x, y);
  path.bezierCurveTo(x + bend, y, to.x - bend, end, to.x, end);
}

/** The start of an edge, and the height of its end.
 * @param {Item} from @param {Item} to
 */
function ends(from, to) {
  const height = to.key === "target" ? SIZE.target[1] : SIZE.thumb;
  return [from.x + SIZE.thumb + SIZE.token + 2, from.y + SIZE.thumb / 2, to.y + height / 2];
}

/** A point of an edge.
 * @param {Item} from @param {Item} to @param {number} t from its beginning, 0, to its end, 1
 * @returns {[number, number]}
 */
export function alongEdge(from, to, t) {
  const [x, y, end] = ends(from, to);
  const s = 1 - t;
  const middle = 1.5 * s * t * (x + to.x); // both control points are half-way across
  return [s ** 3 * x + middle + t ** 3 * to.x, y + (end - y) * t * t * (3 - 2 * t)];
}

/** @param {number} from @param {number} to */
const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);
