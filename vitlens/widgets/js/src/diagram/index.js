// A circuit in layers, from the image to the target.

/** @import { Mount } from "../lib/types" */
import { Diagram } from "./diagram.js";
import "./style.css";

/** @type {Mount} */
export function mount(model, el, signal) {
  new Diagram(model, el, signal).start();
}
