// Keys on a focused node.

/**
 * @typedef {object} Commands
 * @property {(arrow: string) => void} move
 * @property {() => void} select
 * @property {() => void} choose for a new group
 * @property {() => void} pin
 * @property {() => void} clearSelection
 * @property {() => void} group
 * @property {() => void} ungroup
 * @property {() => void} rename
 * @property {() => void} open or close a supernode
 * @property {() => void} ablate
 * @property {() => void} undo
 * @property {(factor: number) => void} zoom
 * @property {() => void} fit
 */

/** @param {KeyboardEvent} event @param {Commands} on @returns {boolean} whether the key was handled */
export function handleKey(event, on) {
  const { key, shiftKey } = event;
  if (event.ctrlKey || event.metaKey) {
    if (key.toLowerCase() !== "z" || shiftKey) return false;
    on.undo();
    return true;
  }
  if (event.altKey) return false;
  if (key.startsWith("Arrow")) {
    on.move(key);
    return true;
  }
  /** @type {Record<string, () => void>} */
  const plain = {
    Enter: shiftKey ? on.choose : on.select,
    " ": on.choose,
    p: on.pin,
    P: on.pin,
    Escape: on.clearSelection,
    g: on.group,
    G: on.ungroup,
    r: on.rename,
    R: on.rename,
    F2: on.rename,
    e: on.open,
    E: on.open,
    x: on.ablate,
    X: on.ablate,
    "+": () => on.zoom(1.25),
    "=": () => on.zoom(1.25),
    "-": () => on.zoom(0.8),
    0: on.fit,
  };
  const command = plain[key];
  if (!command) return false;
  command();
  return true;
}
