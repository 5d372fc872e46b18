import { mount as mountAblation } from "./ablation/index.js";
import { mount as mountDiagram } from "./diagram/index.js";
import { widget } from "./lib/widget.js";

export default widget((model, el, signal) => {
  mountDiagram(model, el, signal);
  mountAblation(model, el, signal);
}, "circuit-diagram");
