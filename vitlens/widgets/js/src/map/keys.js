// The keys of the map.

/** @import { FeatureMap } from "./map.js" */

/** @param {KeyboardEvent} event @param {FeatureMap} map */
export function handleKey(event, map) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { actions } = map;
  /** @type {Record<string, () => void>} */
  const keys = {
    ArrowRight: () => actions.move([1, 0]),
    ArrowLeft: () => actions.move([-1, 0]),
    ArrowUp: () => actions.move([0, -1]),
    ArrowDown: () => actions.move([0, 1]),
    Enter: () => actions.enter(event.shiftKey),
    " ": actions.toggle,
    o: actions.toggleCircle,
    l: () => actions.setLasso(!actions.lassoing()),
    "[": () => actions.widen(1 / 1.25),
    "]": () => actions.widen(1.25),
    "+": () => map.zoom(1.4),
    "=": () => map.zoom(1.4),
    "-": () => map.zoom(0.7),
    0: () => map.fit(),
    Escape: actions.clearSelection,
  };
  const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  event.stopPropagation();
  action();
}
