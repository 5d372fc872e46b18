// The actions of clicks, keys and buttons.

/** @import { Diagram } from "./diagram.js" */
/** @import { Item } from "./scene.js" */
import { toggle } from "../ablation/request.js";
import { counted } from "../lib/dom.js";
import { same, save } from "../lib/model.js";
import { featureName, idOf } from "./data.js";
import { handleKey } from "./keys.js";
import { tidy } from "./order.js";
import { neighbour } from "./paths.js";
import { SIZE } from "./scene.js";
import { zoomed } from "./view.js";

const EDGE = 6; // minimum pixels between the current node and the stage's edge

/** @param {Diagram} diagram */
export function createActions(diagram) {
  const { model, annotations, stage } = diagram;

  /** @param {string} text */
  const announce = (text) => (diagram.live.textContent = text);

  /** The node that keys and buttons act on: the focused, else the selected one. */
  function currentItem() {
    const active = diagram.active();
    if (active) return diagram.item(active.dataset.key);
    const { data, scene } = diagram;
    const id = data ? idOf(data, model.get("selected")) : undefined;
    const index = id === undefined ? undefined : scene?.itemOf.get(id);
    return index === undefined ? undefined : scene?.items[index];
  }

  /** The current node, unless it is the target, which has no annotations. */
  function node() {
    const item = currentItem();
    return item?.key === "target" ? undefined : item;
  }

  /** @param {Item} item */
  function nameOf(item) {
    if (item.key === "target") return "the target";
    if (item.group) return item.group;
    const data = /** @type {import("./data.js").Data} */ (diagram.data);
    const label = annotations.labels().find(([l, f]) => same([l, f], diagram.keys(item)[0]))?.[2];
    return label ?? `${item.layer}/${featureName(data.features[item.ids[0]])}`;
  }

  /** @param {string} key */
  function focusAgain(key) {
    diagram.nextFocus = key;
    diagram.plan("scene");
  }

  /** @param {Item} item */
  function select(item) {
    const [key] = diagram.keys(item);
    const again = same(key, model.get("selected"));
    save(model, { selected: again ? null : key });
    announce(again ? `Deselected ${nameOf(item)}` : `Selected ${nameOf(item)}`);
  }

  /** @param {Item} item */
  function pin(item) {
    announce(`${annotations.togglePins(diagram.keys(item)) ? "Pinned" : "Unpinned"} ${nameOf(item)}`);
  }

  /** @param {Item} item */
  function choose(item) {
    if (item.key === "target") return;
    const on = !item.ids.every((id) => diagram.chosen.has(id));
    for (const id of item.ids) {
      if (on) diagram.chosen.add(id);
      else diagram.chosen.delete(id);
    }
    announce(`${on ? "Added" : "Removed"} ${nameOf(item)}; ${diagram.chosen.size} nodes chosen`);
    diagram.plan("scene");
  }

  function group() {
    const { data, scene } = diagram;
    const item = node();
    if (!data || !scene) return;
    const ids = diagram.chosen.size ? [...diagram.chosen] : (item?.ids ?? []);
    if (!ids.length) return;
    const near = item ?? scene.items[scene.itemOf.get(ids[0]) ?? 0];
    diagram.naming.ask({
      label: `Name of the group of ${ids.length}`,
      value: item?.group ?? "",
      near: diagram.nodes.element(near.key),
      done(name) {
        if (name) {
          annotations.group(name, ids.map((id) => diagram.keyOf(id)));
          diagram.chosen.clear();
          diagram.opened.delete(name);
          announce(`Grouped ${counted(ids.length, "node")} as ${name}`);
        }
        focusAgain(name ? `group ${near.layer} ${name}` : near.key);
      },
    });
  }

  /** @param {Item} item */
  function rename(item) {
    const [key] = diagram.keys(item);
    const label = annotations.labels().find(([l, f]) => same([l, f], key))?.[2] ?? "";
    diagram.naming.ask({
      label: item.group ? "Name of the group" : "Name of the node",
      value: item.group || label,
      near: diagram.nodes.element(item.key),
      done(name) {
        if (name !== null && item.group) annotations.renameGroup(item.group, name);
        else if (name !== null) annotations.rename(key, name);
        focusAgain(item.group && name ? `group ${item.layer} ${name}` : item.key);
      },
    });
  }

  /** The supernode of an item that is closed, or of which the item is a visible member.
   * @param {Item} item
   */
  const groupOf = (item) =>
    item.group || annotations.groups().find(([, keys]) => keys.some((key) => same(key, diagram.keys(item)[0])))?.[0];

  /** @param {Item} item */
  function ungroup(item) {
    const name = groupOf(item);
    if (!name) return;
    annotations.ungroup(annotations.groups().find(([other]) => other === name)?.[1] ?? []);
    announce(`Removed the group ${name}`);
    focusAgain(String(item.ids[0]));
  }

  /** @param {Item} item */
  function open(item) {
    const name = groupOf(item);
    if (!name) return;
    const closed = Boolean(item.group);
    if (closed) diagram.opened.add(name);
    else diagram.opened.delete(name);
    announce(`${name} ${closed ? "opened" : "closed"}`);
    diagram.plan("scene", "light");
    focusAgain(closed ? String(item.ids[0]) : `group ${item.layer} ${name}`);
  }

  /** @param {Item} item */
  function ablate(item) {
    if (!model.get("can_ablate")) return;
    announce(`${toggle(model, diagram.keys(item)) ? "Switched off" : "Restored"} ${nameOf(item)}`);
  }

  function clearSelection() {
    diagram.chosen.clear();
    diagram.hover(null);
    if (model.get("selected")) save(model, { selected: null });
    announce("Selection cleared");
    diagram.plan("scene", "light");
  }

  /** @param {number} factor */
  const zoom = (factor) =>
    diagram.move(zoomed(diagram.view, factor, stage.clientWidth / 2, stage.clientHeight / 2));

  function undo() {
    announce(annotations.undo() ? "Undone" : "Nothing to undo");
    update();
  }

  /** @param {string} arrow */
  function move(arrow) {
    const { scene } = diagram;
    const item = currentItem();
    if (!scene || !item) return;
    const next = neighbour(scene, scene.indexOf.get(item.key) ?? 0, arrow);
    if (next === undefined) return;
    diagram.pointed = null; // keys take precedence over a resting pointer
    diagram.nodes.focus(scene.items[next].key);
    reveal(scene.items[next]);
    diagram.hover(diagram.keys(scene.items[next])[0]);
  }

  /** Moves the view when the item is outside. @param {Item} item */
  function reveal(item) {
    const { scale, x, y } = diagram.view;
    const size = item.key === "target" ? SIZE.target : [SIZE.width, SIZE.row];
    const shift = (/** @type {number} */ at, /** @type {number} */ long, /** @type {number} */ room) =>
      at < EDGE ? EDGE - at : at + long > room - EDGE ? room - EDGE - at - long : 0;
    const dx = shift(x + item.x * scale, size[0] * scale, stage.clientWidth);
    const dy = shift(y + item.y * scale, size[1] * scale, stage.clientHeight);
    if (dx || dy) diagram.move({ scale, x: x + dx, y: y + dy });
  }

  const isFull = () => diagram.root.matches(":fullscreen") || diagram.root.classList.contains("vl-full");

  async function fullScreen() {
    if (document.fullscreenElement) return document.exitFullscreen();
    if (diagram.root.classList.contains("vl-full")) return diagram.root.classList.remove("vl-full");
    try {
      await diagram.root.requestFullscreen();
    } catch {
      diagram.root.classList.add("vl-full"); // a frame may not have the permission
    }
  }

  /** @param {(item: Item) => void} act */
  const onNode = (act) => () => {
    const item = node();
    if (item) act(item);
  };

  /** Enables the buttons that apply to the current node. */
  function update() {
    const item = node();
    const grouped = Boolean(item && groupOf(item));
    diagram.buttons.update({
      pin: { off: !item },
      rename: { off: !item },
      group: { off: !item && !diagram.chosen.size },
      ungroup: { hidden: !grouped },
      open: { hidden: !grouped },
      ablate: { off: !item, hidden: !model.get("can_ablate") },
      undo: { off: !annotations.canUndo() },
    });
  }

  const commands = {
    move,
    select: () => {
      const item = currentItem();
      if (item) select(item);
    },
    choose: onNode(choose),
    pin: onNode(pin),
    clearSelection,
    group,
    ungroup: onNode(ungroup),
    rename: onNode(rename),
    open: onNode(open),
    ablate: onNode(ablate),
    undo,
    zoom,
    fit: () => diagram.fit(),
  };

  return {
    update,
    reveal,
    isFull,
    /** @param {MouseEvent} event */
    clicked(event) {
      const item = diagram.itemAt(event);
      if (!item) {
        if (/** @type {Element} */ (event.target).matches?.(".vl-stage, .vl-clip, .vl-world")) clearSelection();
        return;
      }
      diagram.nodes.makeCurrent(item.key);
      if ((event.ctrlKey || event.metaKey) && item.key !== "target") pin(item);
      else if (event.shiftKey) choose(item);
      else select(item);
    },
    /** @param {KeyboardEvent} event */
    pressed(event) {
      if (event.key === "Escape" && diagram.root.classList.contains("vl-full")) {
        diagram.root.classList.remove("vl-full"); // as in the browser's full screen
        return event.stopPropagation();
      }
      const undoing = (event.ctrlKey || event.metaKey) && event.key === "z";
      if (!(diagram.active() || undoing) || !handleKey(event, commands)) return;
      event.preventDefault();
      event.stopPropagation();
    },
    buttons: {
      pin: { text: "Pin", hint: "p", press: commands.pin },
      rename: { text: "Rename", hint: "r", press: commands.rename },
      group: { text: "Group", hint: "g", press: group },
      open: { text: "Open", hint: "e", press: commands.open },
      ungroup: { text: "Ungroup", hint: "Shift g", press: commands.ungroup },
      ablate: { text: "Switch off", hint: "x", press: commands.ablate },
      undo: { text: "Undo", hint: "Ctrl z", press: undo },
      tidy: {
        text: "Tidy",
        hint: "Order the rows again",
        press: () => {
          if (diagram.kept) tidy(diagram.rank, diagram.kept);
          diagram.plan("scene", "light");
        },
      },
      out: { text: "−", hint: "Zoom out", press: () => zoom(0.8) },
      in: { text: "+", hint: "Zoom in", press: () => zoom(1.25) },
      fit: { text: "Fit", hint: "0", press: commands.fit },
      full: { text: "Full screen", hint: "", press: fullScreen },
    },
  };
}
