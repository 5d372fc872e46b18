// The keys of the map.

/** @import { FeatureMap } from "./map.js" */

/** @param {KeyboardEvent} event @param {FeatureMap} map */
export function handleKey(event, map) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  /** @type {Record<string, () => void>} */
  const actions = {
    ArrowRight: () => map.walk([1, 0]),
    ArrowLeft: () => map.walk([-1, 0]),
    ArrowUp: () => map.walk([0, -1]),
    ArrowDown: () => map.walk([0, 1]),
    Enter: () => (map.circle ? map.closeCircle(event.shiftKey) : map.select(map.cursor)),
    " ": () => map.toggle(map.cursor),
    o: () => map.toggleCircle(),
    l: () => map.setLasso(!map.lassoing),
    "[": () => map.widen(1 / 1.25),
    "]": () => map.widen(1.25),
    "+": () => map.zoom(1.4),
    "=": () => map.zoom(1.4),
    "-": () => map.zoom(0.7),
    0: () => map.fit(),
    Escape: () => map.letGo(),
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  event.stopPropagation();
  action();
}
