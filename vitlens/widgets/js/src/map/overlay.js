// The overlay: rings around single points, the lasso, and the circle of the keyboard.

/**
 * @typedef {object} Ring
 * @property {number} x in CSS pixels
 * @property {number} y
 * @property {"selected" | "hovered" | "cursor"} kind
 *
 * @typedef {object} Over
 * @property {Ring[]} rings
 * @property {number[]} lasso x and y of its corners, in turn
 * @property {{ x: number, y: number, radius: number } | null} circle
 * @property {{ line: string, ground: string, accent: string }} ink
 */

const RADII = { selected: 8, hovered: 6, cursor: 10 };

/**
 * @param {HTMLCanvasElement} canvas @param {number} ratio pixels of the canvas to one of CSS
 * @param {Over} over
 */
export function drawOver(canvas, ratio, { rings, lasso, circle, ink }) {
  const g = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, canvas.width / ratio, canvas.height / ratio);
  for (const { x, y, kind } of rings) {
    g.beginPath();
    g.arc(x, y, RADII[kind], 0, 2 * Math.PI);
    g.setLineDash(kind === "cursor" ? [3, 2] : []);
    g.strokeStyle = ink.ground; // visible over any points
    g.lineWidth = 5;
    g.stroke();
    g.strokeStyle = kind === "selected" ? ink.accent : ink.line;
    g.lineWidth = kind === "hovered" ? 1.5 : 2.5;
    g.stroke();
  }
  g.setLineDash([5, 3]);
  g.strokeStyle = ink.line;
  g.lineWidth = 1.5;
  g.fillStyle = ink.accent;
  if (lasso.length >= 4) {
    g.beginPath();
    for (let i = 0; i < lasso.length; i += 2) g.lineTo(lasso[i], lasso[i + 1]);
    g.closePath();
    area(g);
  }
  if (circle) {
    g.beginPath();
    g.arc(circle.x, circle.y, circle.radius, 0, 2 * Math.PI);
    area(g);
  }
}

/** @param {CanvasRenderingContext2D} g */
function area(g) {
  g.save();
  g.globalAlpha = 0.12;
  g.fill();
  g.restore();
  g.stroke();
}
