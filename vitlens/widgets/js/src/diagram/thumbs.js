// Thumbnails: a node's importance by patch on the picture, drawn once a node, a few a frame.

/** @import { Ground } from "../lib/heat.js" */
/** @import { Data } from "./data.js" */
import { h } from "../lib/dom.js";
import { drawGround, tokenColour } from "../lib/heat.js";
import { place, table } from "../lib/scale.js";
import { relativeHeat } from "./data.js";
import { SIZE } from "./scene.js";

const FINE = 2; // pixels of the canvas a pixel of the world: still sharp when zoomed in
const BUDGET = 4; // ms a frame
const COVER = 0.8; // opacity of the strongest heat

/** An empty thumbnail, with room for prefix tokens. */
export const emptyThumb = () =>
  h("canvas", {
    class: "vl-node-thumb",
    "aria-hidden": "true",
    width: FINE * (SIZE.thumb + SIZE.token),
    height: FINE * SIZE.thumb,
  });

/**
 * @param {() => Data | null} data
 * @param {() => Ground} picture
 */
export function createThumbs(data, picture) {
  /** @type {HTMLCanvasElement | null} */
  let ground = null;
  /** @type {Map<HTMLCanvasElement, number>} */
  const waiting = new Map();
  let frame = 0;

  function work() {
    frame = 0;
    const until = performance.now() + BUDGET;
    for (const [canvas, id] of waiting) {
      waiting.delete(canvas);
      draw(canvas, id);
      if (performance.now() > until) break;
    }
    if (waiting.size) frame = requestAnimationFrame(work);
  }

  /** @param {HTMLCanvasElement} canvas @param {number} id */
  function draw(canvas, id) {
    const about = data();
    if (!about || id >= about.total) return;
    ground ??= paleGround(about, picture());
    const prefix = about.prefixNames.length;
    const [width, height] = [ground.width, ground.height];
    const g = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    g.clearRect(0, 0, canvas.width, canvas.height);
    const { values, limit } = relativeHeat(about, id);
    const x = (FINE * SIZE.thumb - width) / 2;
    const y = (FINE * SIZE.thumb - height) / 2;
    g.globalAlpha = 1;
    g.drawImage(ground, x, y);
    g.imageSmoothingEnabled = false;
    g.globalAlpha = COVER;
    g.drawImage(heatOf(about, values, limit), x, y, width, height);
    g.globalAlpha = 1;
    const step = Math.min(FINE * SIZE.token, height / Math.max(prefix, 1));
    for (let token = 0; token < prefix; token++) {
      const corner = [FINE * SIZE.thumb + 2, y + token * step];
      g.fillStyle = "#ebebeb";
      g.fillRect(corner[0], corner[1], FINE * SIZE.token - 2, step - 1);
      g.fillStyle = tokenColour(values[token], { limit });
      g.fillRect(corner[0], corner[1], FINE * SIZE.token - 2, step - 1);
    }
  }

  return {
    /** Draws a candidate's thumbnail soon. @param {HTMLCanvasElement} canvas @param {number} id */
    ask(canvas, id) {
      waiting.set(canvas, id);
      frame ||= requestAnimationFrame(work);
    },
    /** Forgets the picture. */
    clear() {
      ground = null;
      waiting.clear();
    },
    end: () => cancelAnimationFrame(frame),
  };
}

/** @param {Data} data @param {Ground} picture */
function paleGround({ grid: [rows, columns] }, picture) {
  const longer = Math.max(rows, columns);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round((FINE * SIZE.thumb * columns) / longer);
  canvas.height = Math.round((FINE * SIZE.thumb * rows) / longer);
  drawGround(/** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")), picture);
  return canvas;
}

/** @param {Data} data @param {ArrayLike<number>} values @param {number} limit */
function heatOf({ grid: [rows, columns], prefixNames }, values, limit) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const g = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = g.createImageData(columns, rows);
  const colours = table("heat");
  for (let i = 0; i < rows * columns; i++) {
    const at = place(limit > 0 ? values[prefixNames.length + i] / limit : 0);
    image.data.set(colours.subarray(at, at + 4), 4 * i);
  }
  g.putImageData(image, 0, 0);
  return canvas;
}
