// The pointer on the map: drag to move, or to draw a lasso; the wheel zooms.

/** @import { View } from "./view.js" */

const DRAG = 4; // pixels: less is a click
const STEP = 3; // pixels between the corners of a lasso

/**
 * @typedef {object} On
 * @property {() => View} view
 * @property {(view: View) => void} move
 * @property {(factor: number, x: number, y: number) => void} zoom
 * @property {(x: number, y: number) => void} hover
 * @property {() => void} leave
 * @property {(x: number, y: number, event: MouseEvent) => void} click
 * @property {() => boolean} lassoing whether a drag draws
 * @property {(line: number[]) => void} draw shows the lasso so far, in pixels
 * @property {(line: number[], add: boolean) => void} close ends it
 * @property {(event: WheelEvent) => boolean} wheels whether a wheel zooms; else the page scrolls
 */

/** @param {HTMLElement} stage @param {AbortSignal} signal @param {On} on */
export function handleGestures(stage, signal, on) {
  /** @type {{ x: number, y: number, from: View, moved: boolean, line: number[] | null, add: boolean } | null} */
  let drag = null;
  /** @param {MouseEvent} event @returns {[number, number]} */
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  stage.addEventListener(
    "pointerdown",
    (event) => {
      if (event.button !== 0 || !event.isPrimary) return;
      const [x, y] = at(event);
      const line = on.lassoing() || event.shiftKey ? [x, y] : null;
      drag = { x, y, from: on.view(), moved: false, line, add: event.shiftKey };
    },
    { signal },
  );
  stage.addEventListener(
    "pointermove",
    (event) => {
      const [x, y] = at(event);
      if (!(event.buttons & 1)) cancel(); // released outside, before the stage captured the pointer
      if (!drag) return on.hover(x, y);
      if (!drag.moved && Math.hypot(x - drag.x, y - drag.y) < DRAG) return;
      if (!drag.moved) {
        stage.setPointerCapture(event.pointerId);
        on.leave();
      }
      drag.moved = true;
      const { line } = drag;
      if (!line) {
        on.move({ ...drag.from, x: drag.from.x + x - drag.x, y: drag.from.y + y - drag.y });
      } else if (Math.hypot(x - line[line.length - 2], y - line[line.length - 1]) >= STEP) {
        line.push(x, y);
        on.draw(line);
      }
    },
    { signal },
  );
  stage.addEventListener(
    "pointerup",
    (event) => {
      const ended = drag;
      drag = null;
      if (!ended) return;
      if (!ended.moved) on.click(...at(event), event);
      else if (ended.line) on.close(ended.line, ended.add);
    },
    { signal },
  );
  const cancel = () => {
    if (drag?.line) on.draw([]);
    drag = null;
  };
  stage.addEventListener("pointercancel", cancel, { signal });
  stage.addEventListener("pointerleave", () => on.leave(), { signal });
  stage.addEventListener(
    "wheel",
    (event) => {
      if (!on.wheels(event)) return;
      event.preventDefault();
      on.zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015)), ...at(event));
    },
    { signal, passive: false },
  );
}
