// Thumbnails: a node's importance per patch over the image, drawn once per node, a few per frame.

/** @import { Ground } from "../lib/heat.js" */
/** @import { Data } from "./data.js" */
/** @import { View } from "./edges.js" */
/** @import { Scene } from "./scene.js" */
import { h } from "../lib/dom.js";
import { drawGround, EMPTY, tokenColour } from "../lib/heat.js";
import { offsetOf, table } from "../lib/scale.js";
import { relativeHeat } from "./data.js";
import { begin } from "./edges.js";
import { SIZE } from "./scene.js";

const FINE = 2; // pixels of a thumbnail per pixel of the world: sharp when zoomed in
const BUDGET = 4; // ms per frame
const COVER = 0.8; // opacity of the strongest heat

/**
 * Thumbnails share a canvas: with one canvas each, the browser would compose many layers in every
 * frame.
 * @param {{ ground: () => Ground, plan: (what: string) => void }} diagram
 */
export function createThumbs(diagram) {
  const canvas = h("canvas", { class: "vl-thumbs", "aria-hidden": "true" });
  /** @type {HTMLCanvasElement | null} */
  let ground = null;
  /** @type {Map<number, ImageBitmap>} */
  const known = new Map();
  const pad = new OffscreenCanvas(FINE * (SIZE.thumb + SIZE.token), FINE * SIZE.thumb);

  /** @param {Data} data @param {number} id */
  function make(data, id) {
    ground ??= paleGround(data, diagram.ground());
    const prefix = data.prefixNames.length;
    const { width, height } = ground;
    const g = /** @type {OffscreenCanvasRenderingContext2D} */ (pad.getContext("2d"));
    const { values, limit } = relativeHeat(data, id);
    const x = (FINE * SIZE.thumb - width) / 2;
    const y = (FINE * SIZE.thumb - height) / 2;
    g.fillStyle = EMPTY;
    g.fillRect(0, 0, FINE * SIZE.thumb, FINE * SIZE.thumb);
    g.drawImage(ground, x, y);
    g.imageSmoothingEnabled = false;
    g.globalAlpha = COVER;
    g.drawImage(heatOf(data, values, limit), x, y, width, height);
    g.globalAlpha = 1;
    const step = Math.min(FINE * SIZE.token, height / Math.max(prefix, 1));
    for (let token = 0; token < prefix; token++) {
      const corner = [FINE * SIZE.thumb + 2, y + token * step];
      g.fillStyle = EMPTY;
      g.fillRect(corner[0], corner[1], FINE * SIZE.token - 2, step - 1);
      g.fillStyle = tokenColour(values[token], { limit });
      g.fillRect(corner[0], corner[1], FINE * SIZE.token - 2, step - 1);
    }
    return pad.transferToImageBitmap();
  }

  return {
    canvas,
    /** Draws the nodes' thumbnails; those beyond the time limit are drawn in the next frame.
     * @param {Data} data @param {Scene} scene @param {View} view
     */
    draw(data, scene, view) {
      const g = begin(canvas, view);
      const until = performance.now() + BUDGET;
      let late = false;
      for (const { ids: [id], x, y } of scene.items) {
        if (id === data.total) continue; // the target
        let thumb = known.get(id);
        if (!thumb && performance.now() < until) known.set(id, (thumb = make(data, id)));
        if (thumb) g.drawImage(thumb, x, y, SIZE.thumb + SIZE.token, SIZE.thumb);
        else {
          late = true;
          g.fillStyle = EMPTY;
          g.fillRect(x, y, SIZE.thumb, SIZE.thumb);
        }
      }
      if (late) diagram.plan("thumbs");
    },
    /** Removes the image. */
    clear() {
      ground = null;
      for (const thumb of known.values()) thumb.close();
      known.clear();
    },
  };
}

/** @param {Data} data @param {Ground} image */
function paleGround({ grid: [rows, columns] }, image) {
  const longer = Math.max(rows, columns);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round((FINE * SIZE.thumb * columns) / longer);
  canvas.height = Math.round((FINE * SIZE.thumb * rows) / longer);
  drawGround(/** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")), image);
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
    const at = offsetOf(limit > 0 ? values[prefixNames.length + i] / limit : 0);
    image.data.set(colours.subarray(at, at + 4), 4 * i);
  }
  g.putImageData(image, 0, 0);
  return canvas;
}
