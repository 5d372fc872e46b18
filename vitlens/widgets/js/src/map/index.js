// All features of all layers as points: to hover, navigate, colour, filter, and choose with a lasso.

/** @import { Mount } from "../lib/types" */
import { FeatureMap } from "./map.js";
import "./style.css";

/** @type {Mount} */
export function mount(model, el, signal) {
  new FeatureMap(model, el, signal).start();
}
